"""Measures an autoencoder into a folder; what was measured there before is kept where it still holds."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ldmae.config import plain
from ldmae.config.evaluation import EvaluationConfig
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, fingerprint_model, fingerprint_tensors
from ldmae.core.progress import console
from ldmae.core.provenance import Record
from ldmae.evaluation.api import (
    MEASUREMENTS,
    OF_GENERATED,
    Measured,
    Measurement,
    checked,
    load_measurement,
)
from ldmae.evaluation.distances import FEWEST_IMAGES
from ldmae.evaluation.recognition import check_recognisable
from ldmae.evaluation.reconstruction import PairMetrics
from ldmae.evaluation.results import merge_results, remove_results, results_record, write_results
from ldmae.evaluation.subject import Subject
from ldmae.images.transforms import preprocessing_fingerprint
from ldmae.perception.features import load_features
from ldmae.perception.lpips import load_perceptual


def measure(subject: Subject, folder: Path, only: Sequence[Measurement] | None = None) -> None:
    """Measures an autoencoder; what was measured before with the same weights and settings is not redone.

    Writes `results/NAME.json` for each measurement, all of the package where `only` is None, and merges them
    into `results.json`. Metrics of other weights, images or sizes that are there are removed.

    Guaranteed: with the same weights, images, settings, device and number of threads the metrics are the same
    to the bit, but for the times and memory of `efficiency`; whatever the images' files are called and in
    whatever order they come. At another `evaluation.batch_size` they are the same up to the rounding of the
    networks' float32 arithmetic, and to the subsets that are drawn of more than 1,000 images so rounded.

    Raises:
        UserError: a network or the masks that were asked for are not there, before anything is measured; or
            one of `only` can't be measured. With None it is said, and the others are measured.
    """
    common = _common_record(subject)
    chosen = [load_measurement(name) for name in MEASUREMENTS] if only is None else only
    records = {each.name: _record(each, subject, common) for each in chosen}
    wanted = []
    for each in chosen:
        kept, now = results_record(folder / "results" / f"{each.name}.json"), records[each.name]
        if kept is None or kept.changes(now.settings, now.inputs):
            wanted.append(each)
    for needed in dict.fromkeys(name for each in wanted for name in each.needs):
        getattr(subject, needed)  # what is missing is said before hours of work
    _remove_others(folder, common, fingerprint_tensors(subject.autoencoder.state_dict()))
    for each in wanted:
        remove_results(folder, each.name)
        try:
            measured = each.measure(subject)
            if each.name not in MEASUREMENTS:
                measured = checked(measured, each.name)
                _refuse_changed(subject, common, each.name)
        except UserError as error:
            merge_results(folder)
            if only is not None:
                raise
            measured = Measured([], left_out=[f"{each.name}: {error}"])
        for sentence in measured.left_out:
            console.print(f"not measured: {sentence}", markup=False, soft_wrap=True)
        if measured.metrics:
            write_results(folder, each.name, each.title, measured, records[each.name])
    merge_results(folder)  # also of what a killed one left


def named_measurements(only: Sequence[str] | None, others: Sequence[str] = ()) -> list[Measurement] | None:
    """Returns the measurements of these names, but for `others`; None where none are named.

    Raises:
        UserError: one does not exist.
    """
    if only is None:
        return None
    found = [load_measurement(name, others) for name in dict.fromkeys(only) if name not in others]
    names = Counter(each.name.casefold() for each in found)
    if twice := [each.name for each in found if names[each.name.casefold()] > 1]:
        raise UserError(f"several measurements are called {twice[0]!r}; give each a name of its own")
    return found


def _common_record(subject: Subject) -> Record:
    """Returns what all metrics of an autoencoder depend on."""
    inputs = {
        "autoencoder": fingerprint_model(subject.autoencoder),
        "held_out": subject.held_out.fingerprint(),
        "train": subject.train.fingerprint(),
    }
    return Record({"image_size": subject.size}, inputs, status="done")


def _refuse_changed(subject: Subject, common: Record, name: str) -> None:
    """Raises a UserError where a measurement of one's own changed the autoencoder, for those after it."""
    model = subject.autoencoder
    if model.training or fingerprint_model(model) != common.inputs["autoencoder"]:
        raise UserError(f"the measurement {name} changed the autoencoder; let it work on a copy.deepcopy")


def _record(measurement: Measurement, subject: Subject, common: Record) -> Record:
    settings = {key: value for key, value in plain(subject.config).items() if key in measurement.reads}
    code = "" if measurement.name in MEASUREMENTS else _source(measurement)
    prepared = preprocessing_fingerprint(subject.size)
    own = {"measurement": fingerprint([measurement.inputs(subject), code, prepared])}
    return replace(common, settings=common.settings | settings, inputs=common.inputs | own)


def _source(measurement: Measurement) -> str:
    """Returns the text of the file that a measurement of one's own is written in: it may be edited."""
    try:
        return Path(inspect.getfile(measurement.measure)).read_text(encoding="utf-8")
    except (OSError, TypeError):
        return ""


def _remove_others(folder: Path, common: Record, weights: str) -> None:
    """Removes metrics that are not of this autoencoder and these images, or can't be read, and says so."""
    removed = []
    for path in sorted((folder / "results").glob("*.json")):
        kept = results_record(path)
        if kept is None:
            own = False
        elif path.stem in OF_GENERATED:  # images that were given name no weights
            own = kept.inputs.get("weights", weights) == weights
        else:
            same = all(kept.inputs.get(name) == value for name, value in common.inputs.items())
            own = same and kept.settings.get("image_size") == common.settings["image_size"]
        if not own:
            remove_results(folder, path.stem)
            removed.append(path.stem)
    if removed:
        console.print(
            "removed, because they are damaged or of other weights, images, sizes or versions: "
            + ", ".join(removed),
            soft_wrap=True,
        )


def check_measurable(
    config: EvaluationConfig, size: int, train_labels: np.ndarray, held_out_labels: np.ndarray
) -> None:
    """Checks before a run what would otherwise fail after hours, when it comes to measure.

    Labels are -1 for images without a class; `size` is that of an image's side in pixels.

    Raises:
        UserError: a network is unknown or can't be had, the images are too small for it, or too few.
    """
    for name in config.judges:
        load_features(name)
    perceptual = load_perceptual(config.perceptual)
    image = torch.zeros(1, 3, size, size)
    PairMetrics(perceptual=perceptual).update(image, image)
    bearing = int((train_labels >= 0).sum())
    fewest = min(config.samples, bearing, config.real_images or bearing)
    if fewest < FEWEST_IMAGES:
        raise UserError(
            f"the kernel distance needs at least {FEWEST_IMAGES} images of each kind: evaluation.samples is "
            f"{config.samples}, training images that have a class are {bearing}, of which "
            f"evaluation.real_images={config.real_images} are taken; give more"
        )
    if config.recogniser:
        known = train_labels[train_labels >= 0]
        check_recognisable(known, size, int((held_out_labels >= 0).sum()))
