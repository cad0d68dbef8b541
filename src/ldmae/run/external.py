"""An autoencoder that is opened with the settings to use it with."""

from __future__ import annotations

from typing import Any

import torch

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, as_dict, load_config
from ldmae.config.data import DataConfig
from ldmae.core.autoencoding import reconstruct
from ldmae.core.errors import UserError
from ldmae.images.sources import kind_of
from ldmae.loading import check_source, is_run_folder, load_autoencoder, refuse_code, settings_of
from ldmae.run.initial import teachers


def open_autoencoder(source: str, overrides: list[str], allow_code: bool) -> tuple[Any, Config, set[str]]:
    """Loads an autoencoder, the settings to use it with, and the networks it was trained with.

    The defaults are those it was trained with where they are known (but for a run's images), else the
    package's, at the image size that a VMAE was trained for.

    Raises:
        UserError: there is no such autoencoder, no images are named, or it does not give back an image of
            their size.
    """
    check_source(source)
    settings: dict[str, Any] = {"autoencoder": {"source": source}}
    trained_on: set[str] = set()
    run, made_with = is_run_folder(source), settings_of(source)
    if made_with is not None:
        own = load_config(made_with)
        trained_on = teachers(own)
        refuse_code(made_with, [own.autoencoder.source or ""], allow_code)
        source = own.autoencoder.source or source
        settings = {"base": made_with, "autoencoder": {"source": source}}
        if run or names_data(overrides):  # its images' classes and columns are not those of others
            settings["data"] = as_dict(DataConfig())
    config = load_config(settings, overrides)
    alone = "; with settings a run folder is measured like any autoencoder, without them on its own images"
    require_data(config, alone if run else "")
    autoencoder = load_autoencoder(source, allow_code).eval().requires_grad_(False)
    sized = made_with is not None or any(item.startswith("image_size=") for item in overrides)
    if not sized and isinstance(autoencoder, AutoencoderVMAE):
        config = load_config(settings | {"image_size": autoencoder.config["sample_size"]}, overrides)
    reconstruct(autoencoder, torch.zeros(1, 3, config.image_size, config.image_size), "a grey image".format)
    return autoencoder, config, trained_on


def require_data(config: Config, more: str = "") -> None:
    """Raises a UserError where no images are named, which ends with `more`, or none that are there."""
    if not config.data.source:
        raise UserError(
            f"data is not set; give data=PATH, a folder of images or any other source of them{more}"
        )
    kind_of(config.data.source)


def names_data(overrides: list[str]) -> bool:
    """Says whether other images are named than those an autoencoder was trained on."""
    return any(item.startswith(("data=", "data.source=")) for item in overrides)
