"""A run that trains the decoder of an existing autoencoder alone: its settings, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, load_config, to_yaml, typed_settings
from ldmae.core.autoencoding import setting
from ldmae.core.progress import duration
from ldmae.loading import load_autoencoder, settings_of
from ldmae.run.external import require_data
from ldmae.run.initial import with_initial_autoencoder
from ldmae.run.opening import check_models, open_accelerator
from ldmae.run.plan import describe_training, plan_trainings
from ldmae.run.trainings import autoencoder_trainings, untrained
from ldmae.run.trials import seconds_of_an_image, step_of
from ldmae.training.data import split_rows

_STAGE = "autoencoder.decoder"


def decoder_config(source: str, overrides: list[str], folder: Path) -> Config:
    """Returns the settings of a run that trains the decoder of an autoencoder alone.

    The image size is that of the source where it is known (a run's, a shipped model's, a VMAE's), else the
    default. A run folder that is resumed needs no source.

    Raises:
        UserError: there is no such source, or a setting is wrong or missing.
    """
    layer: dict[str, Any] = {"autoencoder": {"kind": "decoder", "init": source}}
    config = load_config(layer, overrides)
    require_data(config)
    path = folder / "config.yaml"
    made_with = str(path) if path.is_file() else settings_of(source)
    if made_with is not None:
        layer["image_size"] = load_config(made_with).image_size
    elif isinstance(model := load_autoencoder(source), AutoencoderVMAE):
        layer["image_size"] = model.config["sample_size"]
    elif (patches := setting(model, "encoder_input_size")) is not None:  # an AutoencoderRAE, of one size only
        patch = setting(model, "encoder_patch_size")
        layer["image_size"] = patches // patch * setting(model, "patch_size")
    config = load_config(layer, overrides)
    with_initial_autoencoder(config, folder, typed_settings(None, overrides))  # refuses what contradicts it
    return config


def describe_decoder(config: Config, folder: Path) -> str:
    """Returns the text of `--dry-run`: settings, the decoder's parameters, memory, and hours on this machine.

    A few steps are timed, on random weights and black images.
    """
    config, initial = with_initial_autoencoder(config, folder)
    check_models(config, initial)
    training, accelerator = autoencoder_trainings(config)[_STAGE], open_accelerator(config, folder)
    plan = next(plan for plan in plan_trainings(config, initial=initial) if plan.stage == _STAGE)
    schedule, size = config.autoencoder.decoder.training, config.image_size
    with torch.device(str(accelerator.device)):
        objective = untrained(config, _STAGE, type(initial).from_config(initial.config).eval())
    rows = split_rows(schedule.batch_size, schedule.micro_batch_size, 0, 1)
    start = min(training.adversarial_start or 0, schedule.steps)
    images = {"images": torch.zeros(len(rows[0]), 3, size, size)}
    step, device = step_of(objective, images, schedule, accelerator), accelerator.device
    first, last = (
        seconds_of_an_image(lambda count, number=number: step(count, number), len(rows[0]), device)
        for number in (0, schedule.steps)
    )
    seconds = schedule.batch_size * (start * first + (schedule.steps - start) * last)
    trained, fixed = plan.trainable / 1e6, (plan.parameters - plan.trainable) / 1e6
    return "\n".join(
        [
            to_yaml(config),
            f"# run folder: {folder}",
            describe_training(plan),
            f"# {type(initial).__name__}: {trained:.2f} M parameters of its decoder are trained, "
            f"{fixed:.2f} M others stay as they are.",
            f"# about {duration(seconds)} on this machine ({device.type}), by a few steps",
        ]
    )
