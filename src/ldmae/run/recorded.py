"""What of a run's settings determines the weights of its trainings: these may not change on the way."""

from __future__ import annotations

import json
from typing import Any

from ldmae.config import Config, as_dict
from ldmae.config.training import CHANGES_NO_WEIGHT, TrainingConfig
from ldmae.diffusion.backbones import backbone_settings
from ldmae.run.own import own_record, own_trainings


def plain(settings: Any) -> dict[str, Any]:
    """Returns settings as JSON holds them, so that they compare equal after a write and a read."""
    return json.loads(json.dumps(as_dict(settings)))


def training_settings(config: Config, precision: str) -> dict[str, dict[str, Any]]:
    """Returns for each training of a run, by stage, all that determines its weights besides its inputs.

    Args:
        config: the settings.
        precision: `no`, `bf16` or `fp16`, as resolved for the device.
    """
    common = {"seed": config.seed, "mixed_precision": precision}
    parts = {}
    for part in config.autoencoder.stages:
        parts[f"autoencoder.{part}"] = _autoencoder_settings(config, part, common)
    for name, training in own_trainings(config).items():
        parts[name] = {**common, "training": _weighty(training.config, True), **own_record(config, training)}
    parts["diffusion"] = {
        **common,
        "training": _weighty(config.diffusion.training),
        "model": backbone_settings(config.diffusion),
        "flow": plain(config.diffusion.flow),
        **({} if config.diffusion.other_kind is None else {"kind": config.diffusion.other_kind}),
    }
    return parts


def _autoencoder_settings(config: Config, part: str, common: dict[str, Any]) -> dict[str, Any]:
    auto, stage = config.autoencoder, getattr(config.autoencoder, part)
    if part == "tuning" and not auto.tuning.enabled:
        return {"enabled": False, "image_size": config.image_size}
    adversary = stage.objective.adversarial_weight > 0
    shared = {
        **common,
        "training": _weighty(stage.training, adversary),
        "objective": plain(stage.objective),
        "augment": plain(stage.augment),
    }
    discriminator = {"discriminator": [stage.discriminator_layers, stage.discriminator_channels]}
    if adversary and part != "baseline":
        shared |= discriminator
    if part == "pretraining":
        return shared | {
            "model": plain(auto.model),
            "image_size": config.pretraining_size,
            "initial_logvar": stage.initial_logvar,
            "init": auto.init,
        }
    if part == "tuning":
        return shared | {
            "enabled": True,
            "image_size": config.image_size,
            "freeze_encoder": stage.freeze_encoder,
        }
    return shared | {
        "kind": auto.kind,
        "network": stage.network,
        "model": plain(auto.model if auto.is_vit else stage.model),
        "image_size": config.image_size,
        "initial_logvar": stage.initial_logvar,
        **discriminator,
    }


def latents_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that change the latents that are written."""
    how = ("batch_size", "num_workers", "fingerprint")
    return {k: v for k, v in plain(config.latents).items() if k not in how}


def trainings(config: Config) -> dict[str, TrainingConfig]:
    """Returns the settings of the trainings that a run makes, by stage."""
    auto = config.autoencoder
    stages = [part for part in auto.stages if part != "tuning" or auto.tuning.enabled]
    own = {name: training.config for name, training in own_trainings(config).items()}
    ours = {f"autoencoder.{part}": getattr(auto, part).training for part in stages}
    return {**ours, **own, "diffusion": config.diffusion.training}


def training_steps(config: Config) -> dict[str, int]:
    """Returns the steps that the settings ask for, by stage."""
    auto = config.autoencoder
    steps = {f"autoencoder.{part}": getattr(auto, part).training.steps for part in auto.stages}
    if not auto.tuning.enabled and "autoencoder.tuning" in steps:
        steps["autoencoder.tuning"] = 0
    own = {name: training.config.steps for name, training in own_trainings(config).items()}
    return {**steps, **own, "diffusion": config.diffusion.training.steps}


def _weighty(training: TrainingConfig, adversary: bool = False) -> dict[str, Any]:
    settings = {key: value for key, value in plain(training).items() if key not in CHANGES_NO_WEIGHT}
    optimizer = settings["optimizer"]
    if not adversary:  # whose rates then change nothing
        optimizer = {k: v for k, v in optimizer.items() if not k.startswith("discriminator_")}
    if optimizer["name"] == "adamw":
        optimizer = {k: v for k, v in optimizer.items() if not k.startswith("muon_")}
    return {**settings, "optimizer": optimizer}
