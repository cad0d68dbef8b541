"""The paper's comparison: autoencoders trained alike, the same diffusion model on each one's latents."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from ldmae.core.errors import UserError, shortened
from ldmae.core.files import read_json, write_json
from ldmae.core.progress import console, tell
from ldmae.core.provenance import read_record
from ldmae.report.comparison import render_comparison
from ldmae.report.data import mapping
from ldmae.run.comparison_plan import Unit, chosen_units, cost_lines, plan_comparison, refuse_changes
from ldmae.run.external_samples import MEASURED
from ldmae.run.opening import open_accelerator, open_run_images
from ldmae.run.run import images_fingerprint
from ldmae.run.schedule import find
from ldmae.run.stages import stages
from ldmae.run.unit import make_unit


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
    the words that were typed, for the report. `restart` is a stage that the units to be made begin again.

    Raises:
        UserError: a setting is wrong, or a unit in `results` was made with other settings.
    """
    units, matching = plan_comparison(preset, overrides)
    chosen = chosen_units(units, only, seeds)
    for unit in chosen:
        refuse_changes(unit, results)
        if not (results / "units" / unit.place / "unit.json").exists():
            read_record(folder / unit.place / MEASURED)  # what can't be read, or is not there, is refused now
            if restart is not None:
                find(stages(unit.config), restart)
    accelerator = open_accelerator(units[0].config, folder)
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        _refuse_other_images(units[0], folder, results, main)
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
            make_unit(unit, folder / unit.place, made, made_by, matching, restart)
        elif number < len(chosen):
            continue
        if main:
            write_json(results / "comparison.json", description)
            render_comparison(results)
    accelerator.end_training()


def _refuse_other_images(unit: Unit, folder: Path, results: Path, say: bool) -> None:
    """Raises a UserError where finished units are of other images than the settings name now."""
    paths = sorted((results / "units").glob("*/*/unit.json"))
    known = {str(p.parent): mapping(read_json(p, dict).get("data")).get("fingerprint") for p in paths}
    opened = any(known.values()) and open_run_images(unit.config.data, folder / unit.place / "data", say)
    images = images_fingerprint(*opened[1:]) if opened else None
    others = [place for place, fingerprint in known.items() if fingerprint not in (None, images)]
    if others:
        raise UserError(
            f"{shortened(others)}: made of other images than {unit.config.data.source} holds now. Put those "
            "back, name another folder with --results (and --out), or delete these to make them again"
        )
    if say and (silent := [place for place, fingerprint in known.items() if fingerprint is None]):
        tell(f"units that record no fingerprint of their images: {shortened(silent)}")
