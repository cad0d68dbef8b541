"""What `autoencoder.kind` adds to a run: the trainings of the package's autoencoders, or of a user's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ldmae.autoencoders.trainings import Training
from ldmae.config import Config, as_dict
from ldmae.config.registry import AUTOENCODERS, own_settings, resolve
from ldmae.config.training import TrainingConfig
from ldmae.core.errors import UserError


def autoencoder_trainings(config: Config) -> dict[str, Training]:
    """Returns the trainings of a run's autoencoder in order, by stage; none where it takes a trained one.

    Raises:
        UserError: a class of the user's does not say how it is trained, or has other settings.
    """
    auto = config.autoencoder
    if auto.source is not None:
        return {}
    component, settings = resolve(AUTOENCODERS, auto.kind), auto
    trainings: Any = getattr(component, "trainings", None)
    found: Any = []
    if callable(trainings):
        if auto.own_kind is not None:
            settings = own_settings(component, auto.options, "autoencoder.options", ("sample_size",))
        found = trainings(settings, config.image_size)
    if not found or not all(isinstance(training, Training) for training in found):
        raise UserError(
            f"autoencoder.kind={auto.kind} must have a static method `trainings(config, image_size)`: a "
            "list of ldmae.autoencoders.trainings.Training"
        )
    if auto.own_kind is not None:
        found = [_with_options(training, auto.kind, settings) for training in found]
    return {f"autoencoder.{training.name}": training for training in found}


def untrained(config: Config, stage: str, before: nn.Module | None = None) -> nn.Module:
    """Builds what a training of an autoencoder trains, on torch's default device.

    It starts from the autoencoder `before`, or from random weights of the settings' shape.
    """
    device = torch.get_default_device()
    for name, training in autoencoder_trainings(config).items():
        objective: Any = training.build(before, device)
        if name == stage:
            return objective
        before = before or objective.model
    raise KeyError(stage)


def _with_options(training: Training, kind: str, settings: Any) -> Training:
    """Returns a training of a user's own class, with the options that decide what it makes."""
    schedules = {name for name, value in dict(settings).items() if isinstance(value, TrainingConfig)}
    options = {name: value for name, value in as_dict(settings).items() if name not in schedules}
    return replace(training, settings={**training.settings, "kind": kind, "options": options})
