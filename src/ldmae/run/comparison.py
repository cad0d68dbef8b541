"""The paper's comparison: autoencoders trained alike, the same diffusion model on each one's latents."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from ldmae.core.errors import UserError, shortened
from ldmae.core.files import write_json
from ldmae.core.progress import console, tell
from ldmae.core.provenance import read_record
from ldmae.loading import is_run_folder
from ldmae.report.comparison import render_comparison
from ldmae.run.comparison_plan import (
    Unit,
    chosen_units,
    cost_lines,
    plan_comparison,
    refuse_changes,
    refuse_other_images,
)
from ldmae.run.external_samples import MEASURED
from ldmae.run.opening import open_accelerator, open_run_images
from ldmae.run.run import images_fingerprint
from ldmae.run.schedule import find
from ldmae.run.stages import stages
from ldmae.run.unit import make_unit, restart_unit


def compare(
    preset: str,
    overrides: list[str],
    folder: Path,
    results: Path,
    only: list[str] | None = None,
    seeds: list[int] | None = None,
    command: list[str] | None = None,
    restart: str | None = None,
) -> None:
    """Trains and measures every unit that is not done, then writes the comparison's report.

    Each unit is a run folder of its own, `folder/NAME/seed-N`, resumable as any; when it is done, its metrics
    and images go to `results/units/NAME/seed-N`, and from those alone the report is made: they may come from
    several machines and days. `only` and `seeds` choose among the units that the settings name; `command` are
    the words that were typed, for the report. `restart` is a stage that units which are begun, and not done,
    make again: it is forgotten in all of them before the first one goes on.

    Raises:
        UserError: a setting is wrong, or a unit in `results` was made with other settings.
    """
    units, matching = plan_comparison(preset, overrides)
    chosen = chosen_units(units, only, seeds)
    _refuse_run(folder, results)
    done = [unit for unit in chosen if (results / "units" / unit.place / "unit.json").exists()]
    for unit in chosen:
        refuse_changes(unit, results)
        if restart is not None:
            find(stages(unit.config), restart)
        if unit not in done:
            read_record(folder / unit.place / MEASURED)  # what can't be read is refused now
    accelerator = open_accelerator(units[0].config, folder)
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        _refuse_other_images(units[0], folder, results, main)
    if restart is not None:
        for unit in chosen:
            if unit not in done and (folder / unit.place / "config.yaml").exists():
                restart_unit(unit, folder / unit.place, restart)
        if main and done:
            names = shortened([f"{unit.name} seed {unit.seed}" for unit in done])
            tell(f"--restart {restart}: finished units stay as they are: {names}")
    made_by = {"preset": Path(preset).stem, "command": shlex.join(command or [])}
    if main:
        tell("\n".join(cost_lines(matching, units[0].config.image_size)))
    named = [{"variant": unit.name, "seed": unit.seed} for unit in units]
    description = {"schema": 1, **made_by, "matching": asdict(matching), "units": named}
    for number, unit in enumerate(chosen, 1):
        made = results / "units" / unit.place
        if not (made / "unit.json").exists():
            if main:
                console.rule(f"{unit.variant.title}, seed {unit.seed} ({number} of {len(chosen)})")
            make_unit(unit, folder / unit.place, made, made_by, matching)
        elif number < len(chosen):
            continue
        if main:
            write_json(results / "comparison.json", description)
            render_comparison(results)
    accelerator.end_training()


def _refuse_run(folder: Path, results: Path) -> None:
    """Raises a UserError where a comparison would begin in the folder of a run, or beside its metrics."""
    if (results / "units").exists():
        return
    for place, name in ((folder, "--out"), (results.parent, "--results")):
        if is_run_folder(str(place)):
            raise UserError(f"{place} is the folder of a run; name another one with {name}")


def _refuse_other_images(unit: Unit, folder: Path, results: Path, say: bool) -> None:
    """Raises a UserError where finished units are of other images than the settings name now."""
    if not (results / "units").exists():
        return
    opened = open_run_images(unit.config.data, folder / unit.place / "data", say)
    silent = refuse_other_images(unit, images_fingerprint(*opened[1:]), results)
    if say and silent:
        tell(f"units that record no fingerprint of their images: {shortened(silent)}")
