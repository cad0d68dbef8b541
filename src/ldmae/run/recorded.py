"""What of a run's settings determines the weights of its trainings: these may not change on the way."""

from __future__ import annotations

from typing import Any

from ldmae.config import Config
from ldmae.config.base import plain
from ldmae.config.training import CHANGES_NO_WEIGHT, TrainingConfig
from ldmae.diffusion.backbones import backbone_settings
from ldmae.run.components import autoencoder_trainings


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
    ours = {name: training.config for name, training in autoencoder_trainings(config).items()}
    made = {name: training for name, training in ours.items() if training is not None}
    return {**made, "diffusion": config.diffusion.training}


def training_steps(config: Config) -> dict[str, int]:
    """Returns the steps that the settings ask for, by stage."""
    return {name: training.steps for name, training in trainings(config).items()}


def _weighty(training: TrainingConfig, adversary: bool = False) -> dict[str, Any]:
    settings = {key: value for key, value in plain(training).items() if key not in CHANGES_NO_WEIGHT}
    optimizer = settings["optimizer"]
    if not adversary:  # whose rates then change nothing
        optimizer = {k: v for k, v in optimizer.items() if not k.startswith("discriminator_")}
    if optimizer["name"] == "adamw":
        optimizer = {k: v for k, v in optimizer.items() if not k.startswith("muon_")}
    return {**settings, "optimizer": optimizer}
