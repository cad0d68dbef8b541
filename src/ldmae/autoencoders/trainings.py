"""What an autoencoder that is named by `autoencoder.kind` tells a run: how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ldmae.config import as_dict
from ldmae.config.data import AugmentConfig
from ldmae.config.training import TrainingConfig
from ldmae.perception.lpips import PerceptualDistance, load_perceptual


@dataclass(frozen=True)
class Training:
    """One training of an autoencoder: a stage of a run."""

    name: str
    """A word; the stage is `autoencoder.NAME`."""
    title: str
    """What tables and the estimate call it."""
    image_size: int
    """Pixels along an image's side."""
    config: TrainingConfig | None
    """Steps, batch, optimizer; None: nothing is trained, and the `model` that is built is the result."""
    build: Callable[[Any, torch.device], nn.Module]
    """Returns the objective, whose `model` is trained and saved.

    It gets the autoencoder to start from: what the training before made, in the first that of
    `autoencoder.init`, or None. And the device of frozen networks; on the device `meta`, where only shapes
    are wanted, they may be left out.
    """
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and mirror images."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Whatever else decides what it makes, such as the weights of its loss: JSON values."""
    adversarial_start: int | None = None
    """Step from which a discriminator counts, which makes steps slower; None: there is none."""
    keeps_encoder: bool = False
    """Whether it leaves the encoder as it was, so that more steps leave latents valid."""
    prepare: Callable[[torch.device], object] | None = None
    """Loads its frozen networks, so that one which can't be had is reported before the first stage."""


def with_perceptual(objective: Any, device: torch.device) -> tuple[Any, PerceptualDistance | None]:
    """Returns an objective's settings and its perceptual distance; on the device `meta` without either."""
    if device.type == "meta":
        objective = objective.replace(perceptual_weight=0.0)
    used = objective.perceptual_weight > 0
    return objective, load_perceptual(objective.perceptual, device) if used else None


def adversarial_start(stage: Any) -> int | None:
    """Returns `Training.adversarial_start` of a stage."""
    return stage.objective.adversarial_start_step if stage.objective.adversarial_weight > 0 else None


def recorded_losses(stage: Any) -> dict[str, Any]:
    """Returns what `Training.settings` says of a stage's objective, and of its discriminator if any."""
    shape = [stage.discriminator_layers, stage.discriminator_channels]
    adversarial = stage.objective.adversarial_weight > 0
    return {"objective": as_dict(stage.objective), **({"discriminator": shape} if adversarial else {})}
