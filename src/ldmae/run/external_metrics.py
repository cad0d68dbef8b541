"""Any autoencoder on any images: latents and measurements without a run of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ldmae.core.provenance import Record, read_record, refuse_others, write_record
from ldmae.evaluation.measuring import measure, named_measurements
from ldmae.evaluation.subject import Subject
from ldmae.images.index import open_all_images, open_images
from ldmae.loading import is_shipped
from ldmae.report.run import render_report
from ldmae.run.external import names_data, open_autoencoder
from ldmae.run.external_samples import MEASURED, evaluate_samples
from ldmae.run.folders import writing
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
    with writing(folder):
        accelerator = open_accelerator(config, folder)
        of = {"autoencoder": source, "data": config.data.source, "image_size": config.image_size}
        _recorded(folder, of, {})
        if accelerator.is_main_process:  # measuring is not shared among processes
            if whole or any(item.startswith("data.val=") for item in overrides):
                train, held_out = open_images(config.data, folder / "data")
            else:
                train = held_out = open_all_images(config.data, folder / "data")
            record = _recorded(folder, of, {"images": images_fingerprint(train, held_out)})
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
            write_record(folder / MEASURED, record)
            measure(subject, folder, own)
            render_report(folder)
        accelerator.wait_for_everyone()
    if whole and (only is None or "generation" in only):
        evaluate_samples(source, overrides, folder)


def _recorded(folder: Path, settings: dict[str, Any], inputs: dict[str, str]) -> Record:
    """Returns the record of what is measured into a folder, which may hold measurements of the same alone."""
    before = read_record(folder / MEASURED)
    if before is None:
        return Record(settings, inputs, status="done")
    now = replace(before, settings=before.settings | settings, inputs=before.inputs | inputs)
    refuse_others(folder, "measurements", before.changes(now.settings, now.inputs))
    return now
