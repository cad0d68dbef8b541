"""The paper's comparison: autoencoders trained alike, the same diffusion model on each one's latents."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

import torch

from ldmae.core.errors import UserError, shortened
from ldmae.core.files import write_json
from ldmae.core.locks import locked
from ldmae.core.progress import console, tell
from ldmae.core.provenance import Records, read_record
from ldmae.report.comparison import render_comparison
from ldmae.run.comparison_plan import (
    Unit,
    check_restart,
    chosen_units,
    cost_lines,
    finished_images,
    plan_comparison,
    refuse_changes,
    refuse_other_images,
    refuse_run,
)
from ldmae.run.external_samples import MEASURED
from ldmae.run.opening import open_accelerator, open_run_images
from ldmae.run.run import images_fingerprint
from ldmae.run.schedule import describe_standings
from ldmae.run.trainings import autoencoder_trainings, check_networks
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
    refuse_run(results)
    done = [unit for unit in chosen if unit.is_finished(results)]
    for unit in chosen:
        refuse_changes(unit, results)
        if unit not in done:
            read_record(folder / unit.place / MEASURED)  # what can't be read is refused now
    if restart is not None:
        check_restart(chosen, results, restart)
    accelerator = open_accelerator(units[0].config, folder)
    main = accelerator.is_main_process
    with accelerator.main_process_first():
        _check_networks([unit for unit in chosen if unit not in done], folder)
        _refuse_other_images(units[0], folder, results, main)
    if restart is not None:
        begun = [u for u in chosen if u not in done and (folder / u.place / "config.yaml").exists()]
        for unit in begun:  # all are looked at before the first is changed
            _refuse_restart(unit, folder / unit.place, restart)
        for unit in begun:
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
            make_unit(unit, folder / unit.place, made, description, matching)
        elif number < len(chosen):
            continue
        if main:
            write_json(results / "comparison.json", description)
            render_comparison(results)
    accelerator.end_training()


def _check_networks(units: list[Unit], folder: Path) -> None:
    """Raises a UserError where a network that an autoencoder is still to be trained with can't be had."""
    there: set[tuple[str, str]] = set()
    for unit in units:
        records = Records(folder / unit.place, writes=False).stages
        for name, training in autoencoder_trainings(unit.config).items():
            if (unit.name, name) in there or (name in records and records[name].status == "done"):
                continue
            there.add((unit.name, name))
            try:
                check_networks(training, torch.device("cpu"))
            except UserError as error:
                raise UserError(f"{unit.name}: {error}. Other units are compared with --only") from error


def _refuse_restart(unit: Unit, folder: Path, stage: str) -> None:
    """Raises a UserError where a unit would not go on with the stage begun again."""
    with locked(folder):
        refused = describe_standings(unit.config, folder, stage, refused=True)
    if refused:
        raise UserError(f"{folder}: {'; '.join(refused)}; nothing was restarted")


def _refuse_other_images(unit: Unit, folder: Path, results: Path, say: bool) -> None:
    """Raises a UserError where finished units are of other images than the settings name now."""
    known = finished_images(results)
    if any(known.values()):
        opened = open_run_images(unit.config.data, folder / unit.place / "data", say)
        refuse_other_images(unit, images_fingerprint(*opened[1:]), results)
    if say and (silent := [place for place, fingerprint in known.items() if fingerprint is None]):
        tell(f"units that record no fingerprint of their images: {shortened(silent)}")
