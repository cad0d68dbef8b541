"""Autoencoders of a user's own: what `autoencoder.kind=package.module:Name` adds to a run."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from ldmae.autoencoders.trainings import Training
from ldmae.config import Config, as_dict
from ldmae.config.base import Settings
from ldmae.config.registry import own_settings
from ldmae.config.training import TrainingConfig
from ldmae.core.errors import UserError
from ldmae.core.imports import import_object


def own_config(config: Config) -> Settings:
    """Returns the settings of the user's own autoencoder.

    Raises:
        UserError: an option that it does not have, or a wrong value.
    """
    assert config.autoencoder.own_kind is not None
    component = import_object(config.autoencoder.own_kind)
    return own_settings(component, config.autoencoder.options, "autoencoder.options", ("sample_size",))


def own_trainings(config: Config) -> dict[str, Training]:
    """Returns the trainings of the user's own autoencoder, by stage; none where a run trains none.

    Raises:
        UserError: the class does not say how it is trained.
    """
    kind = config.autoencoder.own_kind
    if kind is None:
        return {}
    trainings = getattr(import_object(kind), "trainings", None)
    found: Any = trainings(own_config(config), config.image_size) if callable(trainings) else []
    if not found or not all(isinstance(training, Training) for training in found):
        raise UserError(
            f"autoencoder.kind={kind} must have a static method `trainings(config, image_size)`: a list "
            "of ldmae.autoencoders.trainings.Training"
        )
    return {f"autoencoder.{training.name}": training for training in found}


def own_record(config: Config, training: Training) -> dict[str, Any]:
    """Returns what determines the weights of one of these trainings, besides its schedule."""
    own = own_config(config)
    harmless = {name for name, value in dict(own).items() if isinstance(value, TrainingConfig)}
    options = {name: value for name, value in as_dict(own).items() if name not in harmless}
    return {
        "kind": config.autoencoder.own_kind,
        "options": json.loads(json.dumps(options)),
        "augment": as_dict(training.augment),
        "image_size": training.image_size,
    }


def own_objective(config: Config, stage: str) -> nn.Module:
    """Builds what one of these trainings trains, without weights that were trained before."""
    before: Any = None
    for name, training in own_trainings(config).items():
        objective: Any = training.build(before, torch.get_default_device())
        if name == stage:
            return objective
        before = objective.model
    raise KeyError(stage)
