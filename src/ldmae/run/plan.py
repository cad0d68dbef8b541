"""What a run would do and cost, before it does: settings, parameters, steps, memory."""

# b rows of a micro-batch

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldmae.config import Config, to_yaml
from ldmae.config.training import TrainingConfig
from ldmae.contracts import BatchKeys
from ldmae.diffusion.backbones import patch_size
from ldmae.run.folders import refuse_comparison
from ldmae.run.initial_diffusion import with_initial_weights
from ldmae.run.loading_rate import Reading, describe_loading
from ldmae.run.preflight import check_components
from ldmae.run.run import latent_channels
from ldmae.run.trainings import autoencoder_trainings, trainings, untrained, untrained_objective
from ldmae.training.engine import checked_output


@dataclass(frozen=True)
class _TrainingPlan:
    """One training of a run, counted on a machine without memory (the meta device)."""

    stage: str
    parameters: int
    trainable: int
    steps: int
    batch_size: int
    flops: float
    """Of the whole training, a multiply-add counting 2; the perceptual network's are not in it."""
    memory: float
    """Bytes on one device: weights, gradients, AdamW's moments, averaged weights, kept activations."""


def plan_trainings(
    config: Config,
    processes: int = 1,
    num_classes: int | None = None,
    latent_shape: tuple[int, int] | None = None,
    initial: Any = None,
) -> list[_TrainingPlan]:
    """Counts what each training of a run costs, for one of `processes` that share a batch.

    The data has `num_classes`, 1000 where that is not known. `latent_shape` is (C, cells along a side) of
    another's autoencoder; unknown, 16 and an eighth of the image's. `initial` is the autoencoder that
    training starts from, on the device `meta`.
    """
    auto = config.autoencoder
    if auto.has_shape:
        latent_shape = (auto.latent_channels, config.image_size // auto.patch_size)
    elif own := [*autoencoder_trainings(config)]:
        with torch.device("meta" if initial is not None else "cpu"):
            model: Any = untrained(config, own[-1], initial).model
            latent_shape = latent_channels(model, config.image_size)
    patch = patch_size(config.diffusion)
    shape = latent_shape or (16, -(-config.image_size // (8 * patch)) * patch)
    plans = []
    for stage, training in trainings(config).items():
        with torch.device("meta"):
            objective = untrained_objective(config, stage, shape, num_classes or 1000, initial)
            row = example_rows(config, stage, shape, 1)
        plans.append(_count(stage, objective, row, training, processes))
    return plans


def example_rows(
    config: Config, stage: str, latent_shape: tuple[int, int], count: int
) -> dict[str, torch.Tensor]:
    """Returns a batch of zeros of the shape that a training gets."""
    if stage == "diffusion":
        channels, grid = latent_shape
        latents = torch.zeros(count, channels, grid, grid)
        return {"latents": latents, "labels": torch.zeros(count, dtype=torch.long)}
    size = autoencoder_trainings(config)[stage].image_size
    return {"images": torch.zeros(count, 3, size, size)}


def _count(
    stage: str, objective: nn.Module, row: dict[str, torch.Tensor], training: TrainingConfig, processes: int
) -> _TrainingPlan:
    """Runs one row through an objective on the meta device, counting operations and what backward keeps."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            kept[storage._cdata] = storage.nbytes()
        return tensor

    objective.train()
    counter = FlopCounterMode(display=False)
    keys = BatchKeys(0, 0, range(1), 1)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output: Any = checked_output(objective(row, keys), stage)
    model: Any = objective.model  # beside which an objective may hold an adversary
    trainable, trained = (
        sum(p.numel() for p in part.parameters() if p.requires_grad) for part in (model, objective)
    )
    everything = sum(p.numel() for p in objective.parameters())
    total = sum(p.numel() for p in model.parameters())
    local = -(-training.batch_size // processes)
    micro = min(local, training.micro_batch_size or local)
    states = 4 * everything + 12 * trained + (4 * total if training.ema_decay is not None else 0)
    del output
    return _TrainingPlan(
        stage=stage,
        parameters=total,
        trainable=trainable,
        steps=training.steps,
        batch_size=training.batch_size,
        flops=3.0
        * counter.get_total_flops()
        * training.batch_size
        * training.steps,  # backward is twice forward
        memory=states + micro * sum(kept.values()),
    )


def _peta(flops: float) -> str:
    peta = flops / 1e15
    return f"{peta:,.0f}" if peta >= 100 else f"{peta:.3g}"


def describe_training(plan: _TrainingPlan) -> str:
    """Returns the line of a training in the text of `--dry-run`."""
    return (
        f"# {plan.stage}: {plan.parameters / 1e6:.2f} M parameters ({plan.trainable / 1e6:.2f} M trainable), "
        f"{plan.steps:,} steps of {plan.batch_size}, {_peta(plan.flops)} PFLOP, "
        f"about {plan.memory / 2**30:.2f} GiB of memory on one device in fp32 "
        f"({12 * plan.trainable / 2**20:,.1f} MiB of it for gradients and optimizer)"
    )


def describe_plan(config: Config, folder: Path) -> str:
    """Returns the text of `--dry-run`: resolved settings, then a line a training."""
    refuse_comparison(folder)
    config, initial = with_initial_weights(config, folder)
    lines = [to_yaml(config), f"# run folder: {folder}"]
    check_components(config)
    plans = plan_trainings(config, initial=initial)
    lines += [describe_training(plan) for plan in plans]
    if config.autoencoder.source is not None:
        lines.append(
            f"# {config.autoencoder.source} is not opened; its latents are assumed to have 16 channels "
            "and an eighth of the image's side."
        )
    lines.append("# Counted for one process, the diffusion model with 1,000 classes.")
    lines.append("# Counted without the perceptual network; bf16 keeps about half of the activations' share.")
    on_images = [
        Reading(plan.stage, plan.steps * plan.batch_size, plan.flops)
        for plan in plans
        if plan.stage.startswith("autoencoder.") and plan.flops
    ]
    return "\n".join([*lines, *(f"# {line}" for line in describe_loading(config, on_images))])
