"""The autoencoder that training starts from, `autoencoder.init`: its shape, and the copy that a run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from ldmae.autoencoders.baselines import FULL_WIDTHS
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config
from ldmae.config.autoencoder import BaselineConfig, VMAEConfig
from ldmae.core.autoencoding import reconstruct
from ldmae.core.errors import UserError
from ldmae.core.provenance import Records
from ldmae.loading import load_autoencoder
from ldmae.run.run import Run, save_model

INITIAL = "autoencoder.init"
"""The stage that copies it, and the artefact that this makes."""
COPY = f"checkpoints/{INITIAL}/model"
"""Where the copy is in the run folder: a run resumes without the source."""


def keep_initial(run: Run) -> dict[str, str]:
    """Copies the autoencoder that training starts from into the run folder."""
    assert run.config.autoencoder.init is not None
    model = load_autoencoder(run.config.autoencoder.init)
    return {INITIAL: save_model(run, model, run.folder / COPY)}


def load_copy(run: Run) -> Any:
    """Loads the run's copy of the autoencoder that training starts from."""
    return load_autoencoder(str(run.folder / COPY))


def initial_shape(config: Config, folder: Path, restart: str | None = None) -> Any:
    """Returns what training starts from, without memory (on the meta device); None where it is drawn.

    Args:
        config: the settings.
        folder: the run folder, whose copy counts where it has one.
        restart: a stage that is about to be forgotten, and its copy with it.

    Raises:
        UserError: `autoencoder.init` can't be loaded, or does not take the images that are trained on.
    """
    source = config.autoencoder.init
    if source is None or config.autoencoder.source is not None:
        return None
    record = Records(folder).get(INITIAL) if restart != INITIAL else None
    kept = record is not None and record.status == "done" and record.settings == {"init": source}
    model = load_autoencoder(str(folder / COPY) if kept and (folder / COPY).exists() else source)
    kind = type(model)
    if kind is not AutoencoderVMAE and getattr(diffusers, kind.__name__, None) is not kind:
        raise UserError(
            f"autoencoder.init={source} is of the class {kind.__name__}, of which a run can keep no copy; "
            "name an AutoencoderVMAE or an autoencoder of diffusers"
        )
    with torch.device("meta"):
        shape: Any = kind.from_config(model.config)
        shape.eval()
        if config.autoencoder.kind == "decoder":
            reconstruct(shape, torch.zeros(1, 3, config.image_size, config.image_size))
    return shape


def with_shape(config: Config, shape: Any, typed: dict[str, Any] | None = None) -> Config:
    """Returns a run's settings with the shape of what training starts from.

    Args:
        config: the settings.
        shape: of `initial_shape`.
        typed: the settings that the user wrote, nested.

    Raises:
        UserError: one of these contradicts it, or the image size does not fit.
    """
    auto = config.autoencoder
    if isinstance(shape, AutoencoderVMAE):
        found = {name: shape.config[name] for name in VMAEConfig.model_fields}
        group, adopted = "model", auto.replace(model=VMAEConfig(**found))
    elif isinstance(shape, AutoencoderKL):
        widths = shape.config["block_out_channels"]
        found = {
            "factor": 2 ** (len(widths) - 1),
            "latent_channels": shape.config["latent_channels"],
            "width": widths[0] / FULL_WIDTHS[0],
        }
        model = BaselineConfig(**found)
        group, adopted = "baseline.model", auto.replace(baseline=auto.baseline.replace(model=model))
    else:
        return config
    refuse_contradictions(typed, f"autoencoder.{group}", found, INITIAL, auto.init)
    config = config.replace(autoencoder=adopted)
    if isinstance(shape, AutoencoderVMAE) == auto.is_vit:  # else it is of another kind, and refused as that
        try:
            config.check_sizes()
        except ValueError as error:
            raise UserError(str(error)) from error
    return config


def refuse_contradictions(
    typed: dict[str, Any] | None, group: str, found: dict[str, Any], init: str, source: str | None
) -> None:
    """Raises a UserError where the user wrote another shape, `group`, than the weights of `init` have."""
    written: Any = typed
    for part in group.split("."):
        written = written.get(part) if isinstance(written, dict) else None
    for name, value in (written or {}).items():
        if name in found and value != found[name]:
            raise UserError(
                f"{group}.{name}={value} contradicts {init}={source}, whose {name} is {found[name]}; omit "
                f"it, or train from nothing with {init}=null"
            )
