"""Metrics of a run: its autoencoder in every way, and its generated images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldmae.config import Config, plain
from ldmae.core.progress import tell
from ldmae.evaluation.api import OF_GENERATED, Measurement
from ldmae.evaluation.measuring import check_measurable, measure
from ldmae.evaluation.reconstruction import RECONSTRUCTION
from ldmae.evaluation.results import merge_results, remove_results
from ldmae.evaluation.subject import Subject
from ldmae.run.fidelity import measure_generation
from ldmae.run.initial import teachers
from ldmae.run.judging import mark_taught, write_metrics
from ldmae.run.run import Run, run_autoencoder
from ldmae.run.sample_cache import KEPT, forget_generated


def check_evaluation(run: Run) -> None:
    """Checks before a run what would otherwise fail after hours, when it comes to measure.

    Raises:
        UserError: a network is unknown or can't be had, the images are too small for it, or too few.
    """
    labels = np.asarray(run.train.labels), np.asarray(run.held_out.labels)
    with run.accelerator.main_process_first():  # which fetches weights that do not lie here yet
        check_measurable(run.config.evaluation, run.config.image_size, *labels)


def evaluation_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that the metrics of `evaluate` follow from."""
    read = RECONSTRUCTION.reads | {"samples", "real_images", "guidance_scale", "recogniser"}
    elsewhere = ("per_class", "seed", "batch_size")  # of the grid; no metric hangs on the batch
    return {
        "evaluation": {k: v for k, v in plain(config.evaluation).items() if k in read},
        "sampling": {k: v for k, v in plain(config.sampling).items() if k not in elsewhere},
    }


def evaluate(run: Run) -> None:
    """Measures reconstructions of held-out images and the generated images; writes `results.json`."""
    if run.main:
        measure(subject_of(run, run_autoencoder(run)), run.folder, [RECONSTRUCTION])
    run.accelerator.wait_for_everyone()
    metrics, record = measure_generation(run, run.config.evaluation)
    if run.main:
        write_metrics(run.folder, "generation", mark_taught(metrics, run.config), record)
        forget_generated(run.folder / KEPT)


def subject_of(run: Run, autoencoder: Any) -> Subject:
    """Returns an autoencoder and a run's images, to measure."""
    return Subject(
        autoencoder=autoencoder.to(run.accelerator.device).requires_grad_(False),
        held_out=run.held_out,
        train=run.train,
        size=run.config.image_size,
        config=run.config.evaluation,
        trained_on=teachers(run.config),
    )


def measure_autoencoder(run: Run, only: Sequence[Measurement] | None = None) -> None:
    """Measures a run's autoencoder in all ways of the package, or the measurements named."""
    if run.main:
        if any(map(run.records.outdated, ("pipeline", "evaluation"))):
            for name in OF_GENERATED:
                remove_results(run.folder, name)
            merge_results(run.folder)
            tell("metrics of samples were of the model before it was trained again: removed")
        measure(subject_of(run, run_autoencoder(run)), run.folder, only)
    run.accelerator.wait_for_everyone()
