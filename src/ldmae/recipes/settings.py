"""What of a run's settings determines the weights of its trainings: these may not change on the way."""

from __future__ import annotations

import json
from typing import Any

from ldmae.config import Config, as_dict
from ldmae.training.settings import CHANGES_NO_WEIGHT, TrainingConfig


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
    if config.autoencoder.source is None:
        pretraining, tuning = config.autoencoder.pretraining, config.autoencoder.tuning
        parts["autoencoder.pretraining"] = {
            **common,
            "training": _weighty(pretraining.training),
            "model": plain(config.autoencoder.model),
            "objective": plain(pretraining.objective),
            "image_size": config.pretraining_size,
            "initial_logvar": pretraining.initial_logvar,
            "augment": plain(pretraining.augment),
            "init": config.autoencoder.init,
        }
        parts["autoencoder.tuning"] = {"enabled": tuning.enabled, "image_size": config.image_size}
        if tuning.enabled:
            parts["autoencoder.tuning"] |= {
                **common,
                "training": _weighty(tuning.training),
                "objective": plain(tuning.objective),
                "freeze_encoder": tuning.freeze_encoder,
                "augment": plain(tuning.augment),
            }
    parts["diffusion"] = {
        **common,
        "training": _weighty(config.diffusion.training),
        "model": plain(config.diffusion.model),
        "flow": plain(config.diffusion.flow),
    }
    return parts


def training_steps(config: Config) -> dict[str, int]:
    """Returns the steps that the settings ask for, by stage."""
    tuning = config.autoencoder.tuning
    return {
        "autoencoder.pretraining": config.autoencoder.pretraining.training.steps,
        "autoencoder.tuning": tuning.training.steps if tuning.enabled else 0,
        "diffusion": config.diffusion.training.steps,
    }


def _weighty(training: TrainingConfig) -> dict[str, Any]:
    return {key: value for key, value in plain(training).items() if key not in CHANGES_NO_WEIGHT}
