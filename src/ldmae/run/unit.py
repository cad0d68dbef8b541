"""One unit of a comparison: an autoencoder and its diffusion model, trained and measured at one seed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ldmae.config.variants import VARIANTS
from ldmae.contracts import RESULTS_SCHEMA
from ldmae.core.files import atomic_folder, read_json, write_json
from ldmae.core.locks import locked
from ldmae.evaluation.results import read_results
from ldmae.report.data import read_arrays, samples_of
from ldmae.run.comparison_plan import Matching, Unit, refuse_other_images
from ldmae.run.estimate import RunEstimate
from ldmae.run.evaluate import check_evaluation, measure_autoencoder
from ldmae.run.external_samples import evaluate_samples
from ldmae.run.flatness import describe_flatness, train_diffusion_with_curve
from ldmae.run.run import Run
from ldmae.run.schedule import execute_stages, open_run
from ldmae.run.trainings import training_steps


def make_unit(unit: Unit, folder: Path, made: Path, plan: dict[str, Any], matching: Matching) -> None:
    """Trains, samples and measures in a run folder, and keeps what the report needs.

    `plan` is what `comparison.json` holds, which is written once settings and images are known to be sound.
    """
    with locked(folder):
        run = open_run(unit.config, folder)
        refuse_other_images(unit, run.images, made.parents[2])
        if run.main:
            write_json(made.parents[2] / "comparison.json", plan)
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
    evaluate_samples(str(folder), [], folder, references=folder.parents[1] / "references", allow_code=True)
    if run.main:
        seconds = time.monotonic() - began
        with atomic_folder(made) as temporary:
            np.savez_compressed(temporary / "images.npz", **_images(folder))
            made_by = {name: plan[name] for name in ("preset", "command")}
            write_json(temporary / "unit.json", made_by | _document(unit, run, seconds, matching))
    run.accelerator.wait_for_everyone()


def restart_unit(unit: Unit, folder: Path, stage: str) -> None:
    """Forgets a stage of a unit that was begun, so that it is made again whenever the unit goes on."""
    with locked(folder):
        run = open_run(unit.config.replace(tracker="none"), folder, restart=stage)
        record = run.records.stages.get("diffusion")
        if run.main and (record is None or record.replaceable):
            (folder / "kid_curve.json").unlink(missing_ok=True)  # of the pipeline that there was


def _document(unit: Unit, run: Run, measuring: float, matching: Matching) -> dict[str, Any]:
    """Returns what `unit.json` holds (docs/reference/results-format.md); `measuring` are seconds."""
    spent = {name: record.seconds for name, record in run.records.stages.items() if record.seconds}
    parameters = read_json(run.folder / "parameters.json", dict)
    steps, small = training_steps(unit.config), unit.name == "sd-vae" and (matching.width or 1) < 1
    return {
        "schema": RESULTS_SCHEMA,
        "variant": unit.name,
        "title": unit.variant.title + ("-style (small)" if small else ""),
        "group": unit.variant.group,
        "order": [*VARIANTS, unit.name].index(unit.name),
        "seed": unit.seed,
        "image_size": unit.config.image_size,
        "steps": {
            "autoencoder": sum(steps.values()) - steps["diffusion"],
            "diffusion": steps["diffusion"],
        },
        "width": matching.width if unit.variant.is_conv else None,
        "parameters": {name: entry["total"] for name, entry in parameters.items()},
        "seconds": {
            name: round(seconds, 3) for name, seconds in {**spent, "measurements": measuring}.items()
        },
        "curves": describe_flatness(run.folder, steps),
        "device": run.records.device,
        "data": read_json(run.folder / "data.json"),
        "finished": run.records.stages["samples"].finished,
        "settings": unit.settings,
        "results": read_results(run.folder / "results.json"),
    }


def _images(folder: Path) -> dict[str, Any]:
    """Returns the images of a run that a comparison shows, by name (docs/reference/results-format.md)."""
    of = {
        name: read_arrays(folder / "results" / f"{name}.npz", [])
        for name in ("reconstruction", "components", "interpolation")
    }
    interpolation, samples = of["interpolation"], samples_of(folder / "samples", [])
    found = {
        **{name: of["reconstruction"].get(name) for name in ("originals", "reconstructions")},
        "components": of["components"].get("components"),
        "interpolation": interpolation.get("rows"),
        "fractions": interpolation.get("fractions"),
        "samples": samples.get("images"),
        "labels": samples.get("labels"),
    }
    return {name: array for name, array in found.items() if array is not None}
