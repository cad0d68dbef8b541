"""A run that trains the decoder of an existing autoencoder alone: its settings, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, load_config, to_yaml, typed_settings
from ldmae.core.autoencoding import setting
from ldmae.core.errors import UserError
from ldmae.core.progress import duration
from ldmae.loading import load_autoencoder, settings_of
from ldmae.run.external import require_data
from ldmae.run.folders import refuse_comparison
from ldmae.run.initial import with_initial_autoencoder
from ldmae.run.opening import open_accelerator
from ldmae.run.plan import describe_training, plan_trainings
from ldmae.run.preflight import check_models
from ldmae.run.trials import seconds_of_steps

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
    if path.is_file() and load_config(str(path)).autoencoder.kind != "decoder":
        raise UserError(f"{folder} is the folder of another run; name one for the new decoder with --out")
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
    refuse_comparison(folder)
    config, initial = with_initial_autoencoder(config, folder)
    check_models(config, initial)
    accelerator = open_accelerator(config, folder)
    plan = next(plan for plan in plan_trainings(config, initial=initial) if plan.stage == _STAGE)
    first, last, start = seconds_of_steps(config, _STAGE, accelerator, initial)
    seconds = start * first + (plan.steps - start) * last
    trained, fixed = plan.trainable / 1e6, (plan.parameters - plan.trainable) / 1e6
    return "\n".join(
        [
            to_yaml(config),
            f"# run folder: {folder}",
            describe_training(plan),
            f"# {type(initial).__name__}: {trained:.2f} M parameters of its decoder are trained, "
            f"{fixed:.2f} M others stay as they are.",
            f"# about {duration(seconds)} on this machine ({accelerator.device.type}), by a few steps",
        ]
    )
