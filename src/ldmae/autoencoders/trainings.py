"""What an autoencoder that is named by `autoencoder.kind` tells a run: how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ldmae.config.data import AugmentConfig
from ldmae.config.training import TrainingConfig


@dataclass(frozen=True)
class Training:
    """One training of an autoencoder: a stage of a run."""

    name: str
    """A word; the stage is `autoencoder.NAME`."""
    title: str
    """What tables and the estimate call it."""
    image_size: int
    """Pixels along an image's side."""
    config: TrainingConfig
    """Steps, batch, optimizer."""
    build: Callable[[Any, torch.device], nn.Module]
    """Gets the autoencoder that the training before made (None in the first) and the device of frozen
    networks, and gives the objective, whose `model` is trained and saved."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and mirror images."""
