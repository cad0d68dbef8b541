"""A run's trainings: which its settings ask for, and what of them determines the weights.

Those of the autoencoder are declared by its kind: the package's, or a user's own class. What determines
weights may not change on the way.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ldmae.autoencoders.trainings import Training
from ldmae.config import Config, as_dict, plain
from ldmae.config.registry import AUTOENCODERS, own_settings, resolve
from ldmae.config.training import CHANGES_NO_WEIGHT, TrainingConfig
from ldmae.core.errors import UserError, reason_of
from ldmae.diffusion.backbones import backbone_settings, build_backbone
from ldmae.diffusion.flow import FlowMatchingObjective
from ldmae.diffusion.lora import add_adapter


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
    found, why = [], ""
    if callable(trainings):
        if auto.own_kind is not None:
            settings = own_settings(component, auto.options, "autoencoder.options", ("sample_size",))
        try:
            made: Any = trainings(settings, config.image_size)
            found = [*made]
        except TypeError as error:  # no static method, no list, or the user's own
            why = f" ({reason_of(error)})"
    names = {each.name for each in found if isinstance(each, Training) and re.fullmatch(r"[\w-]+", each.name)}
    if not found or len(names) < len(found):
        raise UserError(
            f"autoencoder.kind={auto.kind} must have a static method `trainings(config, image_size)`: a "
            f"list of ldmae.autoencoders.trainings.Training, each with a word of its own as name{why}"
        )
    if auto.own_kind is not None:
        found = [_with_options(training, auto.kind, settings) for training in found]
    return {f"autoencoder.{training.name}": training for training in found}


def check_networks(training: Training, device: torch.device) -> None:
    """Raises a UserError that names the training, where a frozen network of it can't be had."""
    try:
        if training.prepare is not None:
            training.prepare(device)
    except UserError as error:
        raise UserError(f"autoencoder.{training.name}: {error}") from error


def untrained(config: Config, stage: str, before: nn.Module | None) -> nn.Module:
    """Builds what a training of an autoencoder trains, on torch's default device.

    It starts from the autoencoder `before`, or from random weights of the settings' shape.
    """
    device = torch.empty(0).device  # that of a context, too, which torch 2.7's get_default_device overlooks
    for name, training in autoencoder_trainings(config).items():
        objective: Any = training.build(before, device)
        if not hasattr(objective, "model"):
            raise UserError(
                f"build() of {name} gave {type(objective).__name__}; expected an objective, a "
                "torch.nn.Module with the `model` that it trains"
            )
        if name == stage:
            return objective
        before = before or objective.model
    raise KeyError(stage)


def untrained_objective(
    config: Config,
    stage: str,
    latent_shape: tuple[int, int],
    num_classes: int,
    before: nn.Module | None = None,
) -> nn.Module:
    """Builds what a training trains, from random weights, to be counted or timed.

    `latent_shape` is (C, cells along a side); a training of an autoencoder starts from `before`, or from the
    settings' shape.
    """
    if stage != "diffusion":
        return untrained(config, stage, before)
    channels, grid = latent_shape
    transformer = build_backbone(config.diffusion, grid, channels, num_classes)
    transformer = add_adapter(transformer, config.diffusion.lora)
    return FlowMatchingObjective(transformer, config.diffusion.flow)


def training_settings(config: Config, precision: str) -> dict[str, dict[str, Any]]:
    """Returns for each training of a run, by stage, all that determines its weights besides its inputs.

    The precision, `no`, `bf16` or `fp16`, is that resolved for the device.
    """
    common = {"seed": config.seed, "mixed_precision": precision}
    parts: dict[str, dict[str, Any]] = {}
    for name, training in autoencoder_trainings(config).items():
        parts[name] = {"image_size": training.image_size, **plain(training.settings)}
        if training.config is not None:
            adversarial = training.adversarial_start is not None or config.autoencoder.own_kind is not None
            schedule = _weighty(training.config, adversarial)
            parts[name] |= {**common, "training": schedule, "augment": plain(training.augment)}
    parts["diffusion"] = {
        **common,
        "training": _weighty(config.diffusion.training),
        "model": backbone_settings(config.diffusion),
        "flow": plain(config.diffusion.flow),
        **({} if config.diffusion.other_kind is None else {"kind": config.diffusion.other_kind}),
        **({"lora": plain(config.diffusion.lora)} if config.diffusion.lora.rank else {}),
    }
    return parts


def latents_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that change the latents that are written."""
    how = ("batch_size", "num_workers", "fingerprint")
    return {k: v for k, v in plain(config.latents).items() if k not in how}


def trainings(config: Config) -> dict[str, TrainingConfig]:
    """Returns the settings of the trainings that a run makes, by stage."""
    ours = autoencoder_trainings(config).items()
    made = {name: training.config for name, training in ours if training.config is not None}
    return {**made, "diffusion": config.diffusion.training}


def training_steps(config: Config) -> dict[str, int]:
    """Returns the steps that the settings ask for, by stage."""
    return {name: training.steps for name, training in trainings(config).items()}


def adversary_start(config: Config, stage: str) -> int:
    """Returns the step from which an adversary has a part in a training; 0 where it always or never has."""
    training = autoencoder_trainings(config).get(stage)
    return 0 if training is None else training.adversarial_start or 0


def _with_options(training: Training, kind: str, settings: Any) -> Training:
    """Returns a training of a user's own class, with the options that decide what it makes."""
    schedules = {name for name, value in dict(settings).items() if isinstance(value, TrainingConfig)}
    options = {name: value for name, value in as_dict(settings).items() if name not in schedules}
    return replace(training, settings={**training.settings, "kind": kind, "options": options})


def _weighty(training: TrainingConfig, adversary: bool = False) -> dict[str, Any]:
    settings = {key: value for key, value in plain(training).items() if key not in CHANGES_NO_WEIGHT}
    optimizer = settings["optimizer"]
    if not adversary:  # whose rates then change nothing
        optimizer = {k: v for k, v in optimizer.items() if not k.startswith("discriminator_")}
    if optimizer["name"] == "adamw":
        optimizer = {k: v for k, v in optimizer.items() if not k.startswith("muon_")}
    return {**settings, "optimizer": optimizer}
