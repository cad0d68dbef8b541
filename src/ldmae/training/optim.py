"""The optimizer, its parameter groups and its rate over the steps."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ldmae.config.training import OptimizerConfig, TrainingConfig
from ldmae.core.errors import UserError
from ldmae.core.progress import tell
from ldmae.training.muon import Muon


def _parameter_groups(module: nn.Module, weight_decay: float, without: Iterable[Tensor] = ()) -> list[dict]:
    """Splits trainable parameters, but those `without`: biases, norms, tokens and embeddings do not decay."""
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    others = {id(parameter) for parameter in without}
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or id(parameter) in others:
            continue
        free = parameter.ndim < 2 or id(parameter) in embeddings or name.endswith(("token", "bias"))
        (plain if free else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def block_matrices(model: nn.Module) -> list[Tensor]:
    """Returns the trainable weights of the linear layers in a model's transformer blocks, each (R, C).

    Raises:
        UserError: the model names no blocks.
    """
    blocks = set(getattr(model, "_repeated_blocks", None) or ())
    if not blocks:
        raise UserError(
            "optimizer.name=muon trains the matrices of transformer blocks, and "
            f"{type(model).__name__} names none; set optimizer.name=adamw"
        )
    linear = (
        layer
        for block in model.modules()
        if type(block).__name__ in blocks
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    )
    return [layer.weight for layer in linear if layer.weight.requires_grad]


def build_optimizer(module: Any, config: OptimizerConfig) -> torch.optim.AdamW:
    """Builds the optimizer of an objective's trainable parameters: a fused AdamW, or Muon.

    Those of its `adversary`, where it has one, are a group with a rate and betas of their own, without decay.

    Raises:
        UserError: Muon for a model without transformer blocks.
    """
    adversary = getattr(module, "adversary", None)
    matrices = block_matrices(module.model) if config.name == "muon" else []
    theirs = [] if adversary is None else list(adversary.parameters())
    groups = _parameter_groups(module, config.weight_decay, without=[*matrices, *theirs])
    if matrices:
        groups.append(
            {
                "params": matrices,
                "weight_decay": config.weight_decay,
                "muon": True,
                "momentum": config.muon_momentum,
                "relative_rate": config.muon_learning_rate / config.learning_rate,
            }
        )
    if adversary is not None:
        rate = config.discriminator_learning_rate or config.learning_rate
        groups.append(
            {
                "params": theirs,
                "weight_decay": 0.0,
                "betas": tuple(config.discriminator_betas),
                "lr": rate,
                "relative_rate": rate / config.learning_rate,
            }
        )
    beta1, beta2 = config.betas
    kind = Muon if matrices else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=(beta1, beta2), fused=True)


def learning_rate_at(step: int, steps: int, config: OptimizerConfig) -> float:
    """Returns the rate of step 0 ≤ `step` < `steps`: linear warm-up, then constant or a half cosine to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, (config.schedule_steps or steps) - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def report_long_warmup(stage: str, config: TrainingConfig) -> None:
    """Says where a training ends within the warm-up of its learning rate, which then only rises."""
    warmup, steps = config.optimizer.warmup_steps, config.steps
    if warmup >= steps:
        tell(
            f"{stage}: its {steps:,} steps end within the warm-up of the learning rate "
            f"(warmup_steps={warmup:,}), so the rate only rises, to {steps / warmup:.0%} of learning_rate; "
            f"set {stage}.training.optimizer.warmup_steps to {steps // 10}, or train longer"
        )
