"""Any autoencoder on any images: latents and measurements without a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import load_config
from ldmae.core.autoencoding import reconstruct
from ldmae.core.errors import UserError
from ldmae.core.files import write_json
from ldmae.images.dataset import ImageDataset
from ldmae.images.index import open_all_images, open_images
from ldmae.loading import is_run_folder, load_autoencoder
from ldmae.recipes.evaluation import perceptual_teacher
from ldmae.recipes.latents import encode_into
from ldmae.recipes.measurements import Subject, check_names, measure
from ldmae.recipes.run import latents_fingerprint, open_accelerator
from ldmae.settings import Config
from ldmae.stages import locked


def encode_with(source: str, overrides: list[str], folder: Path) -> int:
    """Encodes all images of `data` with any autoencoder into shards in LightningDiT's layout.

    Args:
        source: the autoencoder: a run folder, a diffusers folder or Hub name, `official:FILE`.
        overrides: settings as key=value; `data=PATH` is needed.
        folder: where shards and `latents_stats.pt` go.

    Returns:
        How many images were encoded.
    """
    autoencoder, config, _ = _open(source, overrides)
    with locked(folder):
        accelerator = open_accelerator(config, folder)
        with accelerator.main_process_first():
            images = open_all_images(config.data, folder / "data", progress=accelerator.is_main_process)
        _check_size(autoencoder, config.image_size)
        inputs = {
            "images": images.fingerprint(),
            "encoder": latents_fingerprint(autoencoder, config.image_size),
        }
        dataset = ImageDataset(images, config.image_size, config.seed, None)
        encode_into(folder, autoencoder.to(accelerator.device), dataset, config, accelerator, inputs)
        if accelerator.is_main_process:
            made = {"autoencoder": source, "image_size": config.image_size, "classes": images.classes}
            write_json(folder / "latents.json", made)
    return len(images)


def evaluate_with(source: str, overrides: list[str], folder: Path, only: list[str] | None = None) -> None:
    """Measures any autoencoder on all images of `data`; writes `results.json`.

    The latents' deviation is taken over the same images, and the linear probe learns from one half of them
    and is measured on the other. Where `data.val` is given, the images held out are measured on, and both are
    fitted on the rest.

    Args:
        source: the autoencoder, as in `encode_with`.
        overrides: settings as key=value; `data=PATH` is needed.
        folder: where the results go.
        only: the measurements to make; None: all.
    """
    check_names(only)
    autoencoder, config, trained_on = _open(source, overrides)
    with locked(folder):
        accelerator = open_accelerator(config, folder)
        if any(item.startswith("data.val=") for item in overrides):
            train, held_out = open_images(config.data, folder / "data")
        else:
            train = held_out = open_all_images(config.data, folder / "data")
        _check_size(autoencoder, config.image_size)
        subject = Subject(
            autoencoder=autoencoder.to(accelerator.device),
            held_out=held_out,
            train=train,
            size=config.image_size,
            config=config.evaluation,
            folder=folder,
            trained_on=trained_on,
        )
        measured = {"autoencoder": source, "data": config.data.source, "image_size": config.image_size}
        write_json(folder / "measured.json", measured)
        measure(subject, only)


def _open(source: str, overrides: list[str]) -> tuple[Any, Config, str | None]:
    """Loads an autoencoder, the settings to use it with, and the perceptual distance it was trained on.

    The defaults are the run's where the source is one (but for its images), else the package's, at the image
    size that a VMAE was trained for.
    """
    settings: dict[str, Any] = {"autoencoder": {"source": source}}
    trained_on = None
    if is_run_folder(source):
        path = Path(source) / "config.yaml"
        own = load_config(str(path))
        trained_on = perceptual_teacher(own)
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings.pop("data", None)  # its images' classes and columns are not those of others
        settings["autoencoder"]["source"] = source = own.autoencoder.source or source
    config = load_config(settings, overrides)
    if not config.data.source:
        raise UserError("data is not set; give data=PATH, a folder of images or any other source of them")
    autoencoder = load_autoencoder(source).eval().requires_grad_(False)
    sized = "image_size" in settings or any(item.startswith("image_size=") for item in overrides)
    if not sized and isinstance(autoencoder, AutoencoderVMAE):
        config = load_config(settings | {"image_size": autoencoder.config["sample_size"]}, overrides)
    return autoencoder, config, trained_on


@torch.no_grad()
def _check_size(autoencoder: Any, size: int) -> None:
    """Raises a UserError where the autoencoder does not give back an image of the size it got."""
    restored = reconstruct(autoencoder, torch.zeros(1, 3, size, size)).shape[-1]
    if restored != size:
        raise UserError(
            f"the autoencoder makes {restored} px of images of {size} px; give image_size a multiple of its "
            f"patches, such as image_size={restored}"
        )
