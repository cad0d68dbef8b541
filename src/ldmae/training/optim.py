"""AdamW, its parameter groups and its rate over the steps."""

import math

import torch
from torch import nn

from ldmae.training.settings import OptimizerConfig


def parameter_groups(module: nn.Module, weight_decay: float, without: nn.Module | None = None) -> list[dict]:
    """Splits the trainable parameters: biases, norms, tokens and embeddings do not decay.

    Those of the part `without` are left out.
    """
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    others = set() if without is None else {id(parameter) for parameter in without.parameters()}
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or id(parameter) in others:
            continue
        free = parameter.ndim < 2 or id(parameter) in embeddings or name.endswith(("token", "bias"))
        (plain if free else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Builds a fused AdamW over the trainable parameters of a module.

    Those of its `adversary`, where it has one, are a group with a rate and betas of their own, without decay.
    """
    adversary = getattr(module, "adversary", None)
    groups = parameter_groups(module, config.weight_decay, without=adversary)
    if adversary is not None:
        rate = config.adversary_learning_rate or config.learning_rate
        groups.append(
            {
                "params": list(adversary.parameters()),
                "weight_decay": 0.0,
                "betas": tuple(config.adversary_betas),
                "lr": rate,
                "relative_rate": rate / config.learning_rate,
            }
        )
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(beta1, beta2), fused=True)


def learning_rate_at(step: int, steps: int, config: OptimizerConfig) -> float:
    """Returns the rate of step 0 ≤ `step` < `steps`: linear warm-up, then constant or a half cosine to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, (config.schedule_steps or steps) - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
