"""One unit of a comparison: an autoencoder and its diffusion model, trained and measured at one seed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ldmae.core.files import atomic_folder, write_json
from ldmae.core.locks import locked
from ldmae.run.comparison_plan import Matching, Unit
from ldmae.run.estimate import RunEstimate
from ldmae.run.evaluate import check_evaluation, measure_autoencoder
from ldmae.run.evaluate_images import evaluate_samples
from ldmae.run.flatness import train_diffusion_with_curve
from ldmae.run.schedule import execute_stages, open_run
from ldmae.run.unit_files import unit_document, unit_images


def make_unit(unit: Unit, folder: Path, made: Path, preset: str, command: str, matching: Matching) -> None:
    """Trains, samples and measures in a run folder, and keeps what the report needs."""
    with locked(folder):
        run = open_run(unit.config, folder)
        check_evaluation(run)
        RunEstimate.watch(run, uncounted="the measurements of a comparison alone")
        execute_stages(run, "autoencoder", "latents")
        train_diffusion_with_curve(run)
        execute_stages(run, "pipeline", "samples")
        began = time.monotonic()
        measure_autoencoder(run)
        execute_stages(run, "report")
        for tracker in run.accelerator.trackers:  # the processes go on together: this was no end of training
            tracker.finish()
    references = folder.parents[1] / "references"
    evaluate_samples(str(folder), [], folder, references=references, allow_code=True)  # which was typed
    if run.main:
        seconds = time.monotonic() - began
        made_by = {"preset": preset, "command": command}
        with atomic_folder(made) as temporary:
            np.savez_compressed(temporary / "images.npz", **unit_images(folder))
            write_json(temporary / "unit.json", made_by | unit_document(unit, run, seconds, matching))
    run.accelerator.wait_for_everyone()
