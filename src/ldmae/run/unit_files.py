"""What is kept of a finished unit of a comparison: all that the report needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmae.contracts import RESULTS_SCHEMA
from ldmae.core.files import read_json
from ldmae.evaluation.results import read_results
from ldmae.report.data import read_arrays, read_samples
from ldmae.run.comparison_plan import Matching, Unit
from ldmae.run.flatness import describe_flatness
from ldmae.run.recorded import training_steps
from ldmae.run.run import Run
from ldmae.run.variants import VARIANTS


def unit_document(unit: Unit, run: Run, measuring: float, matching: Matching) -> dict[str, Any]:
    """Returns what a finished unit's `unit.json` holds (docs/reference/results-format.md).

    Args:
        unit: what it is.
        run: its run, with all measured.
        measuring: seconds that it took to measure.
        matching: how the baselines' cost was fitted.
    """
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


def unit_images(folder: Path) -> dict[str, Any]:
    """Returns the images of a run that a comparison shows, by name (docs/reference/results-format.md)."""
    of = {
        name: read_arrays(folder / "results" / f"{name}.npz", [])
        for name in ("reconstruction", "components", "interpolation")
    }
    interpolation, samples = of["interpolation"], read_samples(folder / "samples", [])
    found = {
        **{name: of["reconstruction"].get(name) for name in ("originals", "reconstructions")},
        "components": of["components"].get("components"),
        "interpolation": interpolation.get("rows"),
        "fractions": interpolation.get("fractions"),
        "samples": samples.get("images"),
        "labels": samples.get("labels"),
    }
    return {name: array for name, array in found.items() if array is not None}
