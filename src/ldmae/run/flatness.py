"""Whether a unit's trainings were long enough: held-out curves, and KID while the diffusion model trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldmae.config import Config
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, read_json, write_json
from ldmae.core.progress import tell
from ldmae.run.evaluate import evaluation_settings, measure_generation
from ldmae.run.run import Run
from ldmae.run.sample_cache import KEPT, forget_generated
from ldmae.run.schedule import execute_stages
from ldmae.run.stages import stages

_FLAT = 0.02
"""Gain over the last quarter of a training below which it counts as done."""

_PIXELS = ("pixel", "visible")
"""Terms of held-out losses that compare pixels, by objective; the others change their weight on the way."""


def train_diffusion_with_curve(run: Run) -> None:
    """Trains the diffusion model, and stops at `comparison.checkpoints` to measure KID of a few samples.

    Each point is of the averaged weights, as the final model's are. The points go to `kid_curve.json`; they
    change no weight, for a training that is extended goes on as if it had not stopped. Points that were
    measured with other settings or images are dropped.
    """
    training, wanted = run.config.diffusion.training, run.config.comparison
    few = run.config.evaluation.replace(
        samples=wanted.checkpoint_samples, real_images=wanted.checkpoint_samples, recogniser=False
    )
    read = evaluation_settings(run.config.replace(evaluation=few))
    made_of = fingerprint([json.dumps(read, sort_keys=True), run.images])
    path = run.folder / "kid_curve.json"
    before = read_json(path, list) if path.exists() and run.records.stages.get("diffusion") else []
    points = [point for point in before if point.get("made_of", made_of) == made_of]
    if run.main and points != before:
        tell(f"{path.name}: points of other settings or images are dropped; those passed are not made again")
        write_json(path, points)
    for share in sorted(wanted.checkpoints):
        steps = max(1, round(share * training.steps))
        record = run.records.stages.get("diffusion")
        passed = record is not None and record.status == "done" and record.steps > steps
        if passed or any(point["step"] == steps for point in points):
            continue
        part = training.replace(steps=steps)
        config = run.config.replace(diffusion=run.config.diffusion.replace(training=part))
        here = replace(run, config=config, stages=stages(config, run.accelerator.mixed_precision))
        execute_stages(here, "diffusion", "pipeline")
        kid = measure_generation(here, few)[0][0]
        if run.main:
            forget_generated(run.folder / KEPT)
            points.append({"step": steps, "name": kid.name, "value": kid.value, "made_of": made_of})
            write_json(path, points)
            tell(f"after {steps:,} steps {kid.name} is {kid.value:.4f}")
        run.accelerator.wait_for_everyone()
    execute_stages(run, "diffusion")


def check_checkpoints(config: Config) -> None:
    """Raises a UserError where the rate hangs on the steps: an earlier stop would be another training."""
    training = config.diffusion.training
    cosine = training.optimizer.schedule == "cosine" and training.optimizer.schedule_steps is None
    if config.comparison.checkpoints and cosine:
        raise UserError(
            "comparison.checkpoints needs a learning rate that does not depend on the number of steps: set "
            f"diffusion.training.optimizer.schedule_steps={training.steps}, or schedule=constant"
        )


def describe_flatness(folder: Path, steps: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Returns each training's curve and the gain over its last quarter, and prints the gains."""
    found: dict[str, dict[str, Any]] = {}
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        terms = line.get("validation", {}).get("terms", {})
        name = next((name for name in _PIXELS if name in terms), None)
        if name is not None and line["stage"] in steps:
            curve = found.setdefault(line["stage"], {"name": f"held-out {name}", "points": []})
            curve["points"].append([line["step"], terms[name]])
    path = folder / "kid_curve.json"
    if path.exists() and (points := read_json(path, list)):
        kid = [[point["step"], point["value"]] for point in points]
        found["diffusion"] = {"name": points[0]["name"], "points": kid}
    for stage, curve in found.items():
        curve["gain"] = _last_quarter_gain(curve["points"], steps[stage])
        if curve["gain"] is not None:
            flat = "flat" if curve["gain"] <= _FLAT else "not flat yet"
            tell(f"{stage}: {curve['name']} gained {curve['gain']:.1%} over the last quarter, {flat}")
    return found


def _last_quarter_gain(points: list[list[float]], steps: int) -> float | None:
    """Returns by what share a curve of (step, value) fell over the last quarter of the training's steps.

    None where it has no two points there.
    """
    late = [value for step, value in points if step >= 0.75 * steps]
    if len(late) < 2 or late[0] <= 0:
        return None
    return (late[0] - late[-1]) / late[0]
