"""What a run would do and cost, before it does: settings, parameters, steps, memory."""

# b rows of a micro-batch

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldmae.autoencoders.masked_objective import MaskedObjective
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.contracts import BatchKeys
from ldmae.diffusion.flow import FlowMatchingObjective
from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel
from ldmae.recipes.settings import training_steps
from ldmae.recipes.training import baseline_training
from ldmae.settings import Config, as_dict
from ldmae.stages import STAGES
from ldmae.training.checkpoint import list_checkpoints
from ldmae.training.settings import TrainingConfig


@dataclass(frozen=True)
class TrainingPlan:
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
) -> list[TrainingPlan]:
    """Counts what each training of a run costs.

    Args:
        config: the settings.
        processes: how many share a batch.
        num_classes: of the data; 1000 where it is not known.
        latent_shape: channels of the latents and their cells along a side; of another's autoencoder, where
            they are not known, 16 and an eighth of the image's.
    """
    auto = config.autoencoder
    plans = []
    for part in auto.stages:
        stage: Any = getattr(auto, part)
        if part == "tuning" and not auto.tuning.enabled:
            continue
        size = config.pretraining_size if part == "pretraining" else config.image_size
        without = replace(stage.objective, perceptual_weight=0.0)
        with torch.device("meta"):
            if part == "baseline":
                objective: nn.Module = baseline_training(replace(stage, objective=without), size, None)
            else:
                model = AutoencoderVMAE(sample_size=size, use_mask_token=True, **as_dict(auto.model))
                if part == "tuning" and auto.tuning.freeze_encoder:
                    model.freeze_encoder()
                objective = MaskedObjective(model, without)
        row = {"images": torch.zeros(1, 3, size, size, device="meta")}
        plans.append(_count(f"autoencoder.{part}", objective, row, stage.training, processes))
    if auto.stages:
        latent_shape = (auto.latent_channels, config.image_size // auto.patch_size)
    patch = config.diffusion.model.patch_size
    channels, grid = latent_shape or (16, -(-config.image_size // (8 * patch)) * patch)
    with torch.device("meta"):
        classes = num_classes or 1000
        transformer = LightningDiTTransformer2DModel(
            sample_size=grid, in_channels=channels, num_classes=classes, **as_dict(config.diffusion.model)
        )
    latents = torch.zeros(1, channels, grid, grid, device="meta")
    row = {"latents": latents, "labels": torch.zeros(1, dtype=torch.long, device="meta")}
    objective = FlowMatchingObjective(transformer, config.diffusion.flow)
    plans.append(_count("diffusion", objective, row, config.diffusion.training, processes))
    return plans


def latent_shape(transformer: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the channels and the cells along a side of what a diffusion model of this config generates."""
    return transformer["in_channels"], transformer["sample_size"]


def _count(
    stage: str, objective: nn.Module, row: dict[str, torch.Tensor], training: TrainingConfig, processes: int
) -> TrainingPlan:
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
        output: Any = objective(row, keys)
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
    return TrainingPlan(
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


def describe_stages(config: Config, folder: Path) -> str:
    """Returns a line that names the stages of a run, with the steps of its trainings done and to do."""
    steps = training_steps(config)
    parts = []
    for stage in STAGES:
        if steps.get(stage):
            checkpoints = list_checkpoints(folder / "checkpoints" / stage)
            done = f"{checkpoints[-1][0]:,} of " if checkpoints else ""
            parts.append(f"{stage} ({done}{steps[stage]:,} steps)")
        elif stage in steps or not stage.startswith("autoencoder."):
            parts.append(stage)
    return " → ".join(parts)


def _peta(flops: float) -> str:
    peta = flops / 1e15
    return f"{peta:,.0f}" if peta >= 100 else f"{peta:.3g}"


def describe_plan(config: Config, folder: Path) -> str:
    """Returns the text of `--dry-run`: resolved settings, then a line a training."""
    lines = [OmegaConf.to_yaml(OmegaConf.structured(config)), f"# run folder: {folder}"]
    for plan in plan_trainings(config):
        lines.append(
            f"# {plan.stage}: {plan.parameters / 1e6:.2f} M parameters ({plan.trainable / 1e6:.2f} M "
            "trainable), "
            f"{plan.steps:,} steps of {plan.batch_size}, {_peta(plan.flops)} PFLOP, "
            f"about {plan.memory / 2**30:.2f} GiB of memory on one device in fp32"
        )
    if not config.autoencoder.stages:
        lines.append(
            f"# {config.autoencoder.source} is not opened for it: its latents are taken to have 16 channels "
            "and an eighth of the image's side."
        )
    lines.append(
        "# Counted for one process, the diffusion model with 1,000 classes, as no image is opened for it."
    )
    lines.append("# Counted without the perceptual network; bf16 keeps about half of the activations' share.")
    return "\n".join(lines)
