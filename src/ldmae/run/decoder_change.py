"""What a decoder that was trained alone gained and lost: metrics before and after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ldmae.core.errors import UserError
from ldmae.evaluation.api import load_measurement
from ldmae.evaluation.measuring import measure
from ldmae.evaluation.results import read_results
from ldmae.images.index import open_all_images
from ldmae.images.split import as_others
from ldmae.perception.features import load_features
from ldmae.perception.lpips import load_perceptual
from ldmae.report.before_after import Section, write_change
from ldmae.run.evaluate import subject_of
from ldmae.run.initial import load_copy, teachers
from ldmae.run.run import Run, run_autoencoder

CHANGE = "autoencoder.change"
"""The stage that measures it."""
_FOLDER = "before-after"
"""In the run folder: metrics of both decoders, by images and side."""
TABLE, _PICTURE = f"{_FOLDER}.md", f"{_FOLDER}.png"
_OWN, _AGAINST = "own", "against"
AFTER = f"{_FOLDER}/{_OWN}/after"
"""Where the results on the run's own held-out images are, with the new decoder."""
_TITLES = {_OWN: "Held-out images", _AGAINST: "Images of data.against"}


def check_change(run: Run) -> None:
    """Opens what `measure_change` reads, so that what is missing is reported before training.

    Raises:
        UserError: no image is held out, or images or a network can't be had.
    """
    if not len(run.held_out):
        raise UserError("there are no held-out images to measure the decoder on; hold some out with data.val")
    _images(run)
    with run.accelerator.main_process_first():
        load_perceptual(run.config.evaluation.perceptual)
        load_features(run.config.evaluation.features)


def measure_change(run: Run) -> None:
    """Measures reconstructions by the old and the new decoder; writes a table and a picture of them."""
    if run.main:
        models = {"before": load_copy(run), "after": run_autoencoder(run)}
        auto = run.config.autoencoder
        start = run.config.replace(autoencoder=auto.replace(source=auto.init, init=None))
        taught = {"before": teachers(start), "after": teachers(run.config)}
        sections = []
        for name, images in _images(run).items():
            folders = {side: run.folder / _FOLDER / name / side for side in models}
            for side, model in models.items():
                subject = replace(subject_of(run, model), **images, trained_on=taught[side])
                measure(subject, folders[side], [load_measurement("reconstruction")])
            metrics = {side: read_results(folder / "results.json") for side, folder in folders.items()}
            sections.append(Section(name, _TITLES[name], metrics, folders))
        write_change(sections, run.folder / TABLE, run.folder / _PICTURE)


def images_to_compare(run: Run) -> int:
    """Returns how many images each decoder is measured on."""
    most = run.config.evaluation.images
    counts = [len(images["held_out"]) for images in _images(run).values()]
    return sum(min(count, most or count) for count in counts)


def describe_change(folder: Path) -> str:
    """Returns the tables of a run's metrics before and after, as Markdown."""
    return (folder / TABLE).read_text(encoding="utf-8")


def _images(run: Run) -> dict[str, dict[str, Any]]:
    """Returns the images to measure on, by name: each those to measure, and those that were trained on."""
    found = {_OWN: {"held_out": run.held_out, "train": run.train}}
    if run.config.data.against is not None:
        data = as_others(run.config.data, run.config.data.against)
        others = open_all_images(data, run.folder / "data", progress=run.main)
        found[_AGAINST] = {"held_out": others, "train": others}
    return found
