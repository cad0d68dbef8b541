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
from ldmae.core.files import read_json, write_json
from ldmae.images.dataset import ImageDataset
from ldmae.images.index import open_all_images, open_images
from ldmae.loading import is_run_folder, load_autoencoder
from ldmae.recipes.evaluation import perceptual_teacher
from ldmae.recipes.latents import encode_into
from ldmae.recipes.measurements import check_names, measure
from ldmae.recipes.run import latents_fingerprint, open_accelerator
from ldmae.recipes.subject import Subject
from ldmae.report.html import render_report
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
    """Measures any autoencoder on all images of `data`; writes `results.json` and `report.html`.

    The latents' deviation is taken over the same images, and the linear probe learns from one half of them
    and is measured on the other. Where `data.val` is given, the images held out are measured on, and both are
    fitted on the rest.

    Args:
        source: the autoencoder, as in `encode_with`.
        overrides: settings as key=value; `data=PATH` is needed.
        folder: where the results go.
        only: the measurements to make; None: all.

    Raises:
        UserError: something is wrong with the autoencoder, the images or the settings, or the folder holds
            measurements of another autoencoder or other images.
    """
    check_names(only)
    autoencoder, config, trained_on = _open(source, overrides)
    with locked(folder):
        accelerator = open_accelerator(config, folder)
        measured = {"autoencoder": source, "data": config.data.source, "image_size": config.image_size}
        _refuse_others(folder, measured)
        _check_size(autoencoder, config.image_size)
        if any(item.startswith("data.val=") for item in overrides):
            train, held_out = open_images(config.data, folder / "data")
        else:
            train = held_out = open_all_images(config.data, folder / "data")
        subject = Subject(
            autoencoder=autoencoder.to(accelerator.device),
            held_out=held_out,
            train=train,
            size=config.image_size,
            config=config.evaluation,
            folder=folder,
            trained_on=trained_on,
        )
        write_json(folder / "measured.json", measured)
        measure(subject, only)
        render_report(folder)


def _refuse_others(folder: Path, measured: dict[str, Any]) -> None:
    """Raises a UserError where something else was measured into a folder: figures of two must not mix."""
    path = folder / "measured.json"
    before = read_json(path) if path.is_file() else measured
    changed = [
        f"{key} is {before.get(key)} there, got {value}"
        for key, value in measured.items()
        if before.get(key) != value
    ]
    if changed:
        raise UserError(
            f"{folder} holds measurements of something else: {'; '.join(changed)}. Name another folder with "
            "--out, or remove that one"
        )


def _open(source: str, overrides: list[str]) -> tuple[Any, Config, str | None]:
    """Loads an autoencoder, the settings to use it with, and the perceptual distance it was trained on.

    The defaults are the run's where the source is one (but for its images), else the package's, at the image
    size that a VMAE was trained for.
    """
    settings: dict[str, Any] = {"autoencoder": {"source": source}}
    trained_on = None
    run = is_run_folder(source)
    if run:
        path = Path(source) / "config.yaml"
        own = load_config(str(path))
        trained_on = perceptual_teacher(own)
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings.pop("data", None)  # its images' classes and columns are not those of others
        settings["autoencoder"]["source"] = source = own.autoencoder.source or source
    config = load_config(settings, overrides)
    if not config.data.source:
        alone = (
            "; with settings a run folder is measured like any autoencoder, without them on its own images"
            if run
            else ""
        )
        raise UserError(
            f"data is not set; give data=PATH, a folder of images or any other source of them{alone}"
        )
    autoencoder = load_autoencoder(source).eval().requires_grad_(False)
    sized = "image_size" in settings or any(item.startswith("image_size=") for item in overrides)
    if not sized and isinstance(autoencoder, AutoencoderVMAE):
        config = load_config(settings | {"image_size": autoencoder.config["sample_size"]}, overrides)
    return autoencoder, config, trained_on


@torch.no_grad()
def _check_size(autoencoder: Any, size: int) -> None:
    """Raises a UserError where the autoencoder does not give back an image of the size it got."""
    reconstruct(autoencoder, torch.zeros(1, 3, size, size))
