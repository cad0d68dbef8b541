"""Any autoencoder on any images: latents and measurements without a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import Config, as_dict, load_config
from ldmae.config.data import DataConfig
from ldmae.core.autoencoding import reconstruct
from ldmae.core.errors import UserError
from ldmae.core.files import read_json, write_json
from ldmae.core.locks import locked
from ldmae.evaluation.subject import Subject
from ldmae.images.dataset import ImageDataset
from ldmae.images.index import open_all_images, open_images
from ldmae.loading import is_run_folder, is_shipped, load_autoencoder, refuse_code, settings_of
from ldmae.report.run import render_report
from ldmae.run.evaluate import measure, named_measurements, perceptual_teachers
from ldmae.run.evaluate_images import evaluate_samples
from ldmae.run.latents import encode_into, refuse_other_latents
from ldmae.run.opening import open_accelerator
from ldmae.run.run import images_fingerprint, latents_fingerprint
from ldmae.run.threads import encoding, settle_alone


def encode_with(source: str, overrides: list[str], folder: Path, allow_code: bool = False) -> int:
    """Encodes all images of `data` with any autoencoder into shards in LightningDiT's layout.

    Args:
        source: the autoencoder: whatever `load_autoencoder` takes.
        overrides: settings as key=value; `data=PATH` is needed.
        folder: where shards and `latents_stats.pt` go.
        allow_code: whether the source, a folder, may name code to run.

    Returns:
        How many images were encoded.
    """
    autoencoder, config, _ = _open(source, overrides, allow_code)
    with locked(folder):
        accelerator = open_accelerator(config, folder)
        with accelerator.main_process_first():
            images = open_all_images(config.data, folder / "data", progress=accelerator.is_main_process)
        _check_size(autoencoder, config.image_size)
        inputs = {
            "images": images.fingerprint(),
            "encoder": latents_fingerprint(autoencoder, config.image_size),
        }
        refuse_other_latents(folder, config, inputs)
        dataset = ImageDataset(images, config.image_size, config.seed, None)
        autoencoder = autoencoder.to(accelerator.device)
        if accelerator.num_processes == 1:
            work, amount = encoding(autoencoder, config.image_size, config.latents.batch_size)
            settle_alone(work, amount, accelerator.device, config.threads, source)
        encode_into(folder, autoencoder, dataset, config, accelerator, inputs)
        if accelerator.is_main_process:
            made = {"autoencoder": source, "image_size": config.image_size, "classes": images.classes}
            write_json(folder / "latents.json", made)
    return len(images)


def evaluate_with(
    source: str,
    overrides: list[str],
    folder: Path,
    only: list[str] | None = None,
    allow_code: bool = False,
) -> None:
    """Measures any autoencoder on all images of `data`; writes `results.json` and `report.html`.

    Of what ships in the package the generated images are measured too, where no other data is named.

    The latents' deviation is taken over the same images, and the linear probe learns from one half of them
    and is measured on the other. Where `data.val` is given, or a shipped autoencoder is measured on the data
    it was trained on, the images held out are measured on, and both are fitted on the rest.

    Args:
        source: the autoencoder, as in `encode_with`.
        overrides: settings as key=value; `data=PATH` is needed, but for what ships in the package.
        folder: where the results go.
        only: the measurements to make; None: all.
        allow_code: whether the source, a folder, may name code to run.

    Raises:
        UserError: something is wrong with the autoencoder, the images or the settings, or the folder holds
            measurements of another autoencoder or other images.
    """
    whole = is_shipped(source) and not _names_data(overrides)
    own = named_measurements(only, ("generation",) if whole else ())
    autoencoder, config, trained_on = _open(source, overrides, allow_code)
    with locked(folder):
        accelerator = open_accelerator(config, folder)
        measured = {"autoencoder": source, "data": config.data.source, "image_size": config.image_size}
        _refuse_others(folder, measured)
        _check_size(autoencoder, config.image_size)
        if accelerator.is_main_process:  # measuring is not shared among processes
            if whole or any(item.startswith("data.val=") for item in overrides):
                train, held_out = open_images(config.data, folder / "data")
            else:
                train = held_out = open_all_images(config.data, folder / "data")
            measured["images"] = images_fingerprint(train, held_out)
            _refuse_others(folder, measured)
            subject = Subject(
                autoencoder=autoencoder.to(accelerator.device),
                held_out=held_out,
                train=train,
                size=config.image_size,
                config=config.evaluation,
                trained_on=trained_on,
            )
            work, amount = encoding(subject.autoencoder, subject.size, config.evaluation.batch_size)
            settle_alone(work, amount, accelerator.device, config.threads, source)
            path = folder / "measured.json"
            write_json(path, (read_json(path, dict) if path.is_file() else {}) | measured)
            measure(subject, folder, own)
            render_report(folder)
        accelerator.wait_for_everyone()
    if whole and (only is None or "generation" in only):
        evaluate_samples(source, overrides, folder)


def _refuse_others(folder: Path, measured: dict[str, Any]) -> None:
    """Raises a UserError where something else was measured into a folder: figures of two must not mix."""
    path = folder / "measured.json"
    before = read_json(path, dict) if path.is_file() else measured
    changed = [
        f"{key} is {before.get(key)} there, got {value}"
        for key, value in measured.items()
        if before.get(key) != value and not (key == "images" and key not in before)  # as 0.1.0 wrote it
    ]
    if changed:
        raise UserError(
            f"{folder} holds measurements of something else: {'; '.join(changed)}. Name another folder with "
            "--out, or remove that one"
        )


def _open(source: str, overrides: list[str], allow_code: bool) -> tuple[Any, Config, set[str]]:
    """Loads an autoencoder, the settings to use it with, and the perceptual distances it was trained on.

    The defaults are those it was trained with where they are known (but for a run's images), else the
    package's, at the image size that a VMAE was trained for.
    """
    settings: dict[str, Any] = {"autoencoder": {"source": source}}
    trained_on: set[str] = set()
    run, made_with = is_run_folder(source), settings_of(source)
    if made_with is not None:
        own = load_config(made_with)
        trained_on = perceptual_teachers(own)
        refuse_code(made_with, [own.autoencoder.source or ""], allow_code)
        source = own.autoencoder.source or source
        settings = {"base": made_with, "autoencoder": {"source": source}}
        if run or _names_data(overrides):  # its images' classes and columns are not those of others
            settings["data"] = as_dict(DataConfig())
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
    autoencoder = load_autoencoder(source, allow_code).eval().requires_grad_(False)
    sized = made_with is not None or any(item.startswith("image_size=") for item in overrides)
    if not sized and isinstance(autoencoder, AutoencoderVMAE):
        config = load_config(settings | {"image_size": autoencoder.config["sample_size"]}, overrides)
    return autoencoder, config, trained_on


def _names_data(overrides: list[str]) -> bool:
    """Says whether other images are named than those an autoencoder was trained on."""
    return any(item.startswith(("data=", "data.source=")) for item in overrides)


@torch.no_grad()
def _check_size(autoencoder: Any, size: int) -> None:
    """Raises a UserError where the autoencoder does not give back an image of the size it got."""
    reconstruct(autoencoder, torch.zeros(1, 3, size, size), "a grey image".format)
