"""Any autoencoder on any images: latents and measurements without a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmae.core.errors import UserError
from ldmae.core.files import read_json, write_json
from ldmae.core.locks import locked
from ldmae.evaluation.measuring import measure, named_measurements
from ldmae.evaluation.subject import Subject
from ldmae.images.index import open_all_images, open_images
from ldmae.loading import is_shipped
from ldmae.report.run import render_report
from ldmae.run.evaluate_images import evaluate_samples
from ldmae.run.external import check_size, names_data, open_autoencoder
from ldmae.run.opening import open_accelerator
from ldmae.run.run import images_fingerprint
from ldmae.run.threads import encoding, settle_alone


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
    whole = is_shipped(source) and not names_data(overrides)
    own = named_measurements(only, ("generation",) if whole else ())
    autoencoder, config, trained_on = open_autoencoder(source, overrides, allow_code)
    with locked(folder):
        accelerator = open_accelerator(config, folder)
        measured = {"autoencoder": source, "data": config.data.source, "image_size": config.image_size}
        _refuse_others(folder, measured)
        check_size(autoencoder, config.image_size)
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
