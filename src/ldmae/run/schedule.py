"""What a run does next: from the list of stages and the record of what was made of what."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list

from ldmae.config import Config, save_config
from ldmae.config.autoencoder import AutoencoderConfig
from ldmae.core.device import device_name, resolve_precision
from ldmae.core.errors import UserError, nearest
from ldmae.core.files import TEMPORARY_PREFIX
from ldmae.core.provenance import Record, Records
from ldmae.run.initial_diffusion import report_changed_sources, with_initial_weights
from ldmae.run.latents import adopted_latents
from ldmae.run.opening import describe_images, open_accelerator, open_run_images
from ldmae.run.preflight import check_models, check_training
from ldmae.run.run import Run, Stage
from ldmae.run.stages import stages
from ldmae.training.checkpoint import list_checkpoints


@dataclass(frozen=True)
class _Standing:
    """What the record says of a stage."""

    state: Literal["absent", "unfinished", "stale", "fresh"]
    inputs: dict[str, str | None]
    """Fingerprints of what it reads; None where that is still to be made."""
    changes: tuple[str, ...] = ()
    """Of one that is stale: settings and inputs that changed, old -> new."""


def open_run(config: Config, folder: Path, names: Collection[str] = (), restart: str | None = None) -> Run:
    """Opens a run folder: device, images, stages, and the record of what is done.

    What each of the stages to come (`names`, as in `select`) needs is looked for now. The stage `restart` is
    forgotten; what depends on it is made again where it comes out otherwise.

    Raises:
        UserError: a model can't be built, a stage lacks something, or a training was begun with other
            settings or inputs; nothing is changed then.
    """
    if restart is not None:
        find(stages(config), restart)  # its name is looked at before anything is opened
    config, initial = with_initial_weights(config, folder, restart=restart)
    objectives = check_models(config, initial)
    accelerator = open_accelerator(config, folder)
    records = Records(folder, accelerator.is_main_process, accelerator.num_processes)
    (records.stages,) = broadcast_object_list([records.stages])
    threads = records.threads() if config.threads == "auto" else int(config.threads)
    if threads and accelerator.device.type == "cpu":
        torch.set_num_threads(threads)
    records.device = device_name(accelerator.device)
    with accelerator.main_process_first():
        stream, train, held_out = open_run_images(config.data, folder / "data", accelerator.is_main_process)
    listed = stages(config, accelerator.mixed_precision)
    records.order = [stage.name for stage in listed]
    run = Run(config, folder, accelerator, records, listed, train, held_out, stream, initial, restart)
    standings = _check(run, restart)
    if run.main:
        report_changed_sources(run, restart, standings)
    for stage in (each for each in select(listed, names) if standings[each.name].state != "fresh"):
        if stage.costly and standings[stage.name].state == "absent" and stage.name != restart:
            _refuse_replacing(run, stage)
        if stage.name in objectives:
            check_training(stage.name, config, accelerator, objectives[stage.name])
        if stage.prepare is not None:
            stage.prepare(run)
    accelerator.wait_for_everyone()  # all have read the record before anybody writes it
    if restart is not None:
        _restart(run, restart)
    if run.main:
        save_config(config, folder / "config.yaml")
        describe_images(run)
    if config.tracker != "none":
        accelerator.init_trackers("ldmae")
    accelerator.wait_for_everyone()
    return run


def select(listed: tuple[Stage, ...], names: Collection[str]) -> list[Stage]:
    """Returns stages by name, in order; `autoencoder` are all of its trainings.

    Raises:
        UserError: there is no such stage.
    """
    for name in names:
        if name != "autoencoder":
            find(listed, name)
    return [stage for stage in listed if {stage.name, stage.name.split(".")[0]} & set(names)]


def find(listed: tuple[Stage, ...], name: str) -> Stage:
    """Returns a stage by its name.

    Raises:
        UserError: there is no such stage.
    """
    found = {stage.name: stage for stage in listed}
    if name not in found:
        raise UserError(f"no stage {name!r} in this run{nearest(name, found)}; stages: {', '.join(found)}")
    return found[name]


def execute_stages(run: Run, *names: str) -> None:
    """Makes what is not fresh of some stages, in order; what they read must be there."""
    for stage in select(run.stages, names):
        _run_stage(run, stage)
        run.accelerator.wait_for_everyone()  # what comes next reads what the main process wrote


def _run_stage(run: Run, stage: Stage) -> None:
    if stage.always:
        stage.execute(run)
        return
    if stage.adopt is not None and stage.adopt(run):
        return
    standing, record = _check(run)[stage.name], run.records.stages.get(stage.name)
    there = _is_there(run, stage)
    if standing.state == "fresh" and (there or _is_passed(run, stage)):
        if record is not None and record.replaceable:
            record.replaceable = False
            run.records.write()
        return
    if standing.state in ("fresh", "unfinished") and record is not None and record.status == "done":
        _refuse_beginning_again(run, stage)
    inputs = {name: value for name, value in standing.inputs.items() if value is not None}
    for name in standing.inputs:
        if name not in inputs:
            raise _lacking(run, name)
    if standing.state == "stale" and stage.costly:
        _forget(run, stage)
    ours = {other.name for other in run.stages}
    for name, other in [*run.records.stages.items()]:  # of another kind of autoencoder
        if name not in ours and set(other.outputs) & set(stage.outputs):
            del run.records.stages[name]
    defaults = _defaults(run.config.autoencoder.kind).get(stage.name)
    with run.records.running(stage.name, stage.settings, inputs, stage.steps, defaults, stage.code) as record:
        record.outputs = stage.execute(run) or {}


def _is_there(run: Run, stage: Stage) -> bool:
    """Says whether all that a stage made is there, as the main process sees it."""
    there = all((run.folder / path).exists() for path in stage.makes)
    if there and stage.complete is not None:
        there = stage.complete(run)
    return broadcast_object_list([there])[0]  # a network disk may show others an older state


def _is_passed(run: Run, stage: Stage) -> bool:
    """Says whether all that reads a training's results is one more training, which is done and there."""
    readers = [other for other in run.stages if set(other.reads) & set(stage.outputs)]
    passed = stage.costly and len(readers) == 1 and readers[0].costly
    return passed and _standings_of(run)[readers[0].name].state == "fresh" and _is_there(run, readers[0])


def _refuse_beginning_again(run: Run, stage: Stage) -> None:
    """Raises a UserError for a training that was done and would not resume, for its states are gone."""
    states = run.folder / "checkpoints" / stage.name
    if stage.costly and stage.steps and not broadcast_object_list([bool(list_checkpoints(states))])[0]:
        raise UserError(
            f"{stage.name} is done, but its training states in {states} are gone, and it would begin again; "
            f"put them back, or add --restart {stage.name}"
        )


def _lacking(run: Run, artefact: str) -> UserError:
    maker = next(stage for stage in run.stages if artefact in stage.outputs)
    names = {"diffusion": "diffusion model", "encoder": "autoencoder"}
    what = names.get(artefact, f"result of {artefact}" if "." in artefact else artefact)
    alone = run.config.autoencoder.kind == "decoder" and (run.folder / "autoencoder").exists()
    swap = f"; or decode another run's latents with autoencoder.source={run.folder}" * alone
    return UserError(
        f"{run.folder} has no {what} yet for these settings; make it with `{maker.command}`, or all with "
        f"`ldmae run`{swap}"
    )


# ---- what is fresh, and what may not be replaced


def _standings_of(run: Run, restart: str | None = None) -> dict[str, _Standing]:
    """Says of every stage whether it is absent, unfinished, stale or fresh, by what is recorded.

    Looked at before anything is made, a stage is stale too where one before it would come out otherwise, or
    is about to be forgotten (`restart`).
    """
    return _standings(
        run.stages, run.records.stages, run.config.autoencoder.kind, partial(_given, run), restart
    )


def _standings(
    listed: tuple[Stage, ...],
    records: Mapping[str, Record],
    kind: str,
    given: Callable[[str], str | None],
    restart: str | None,
) -> dict[str, _Standing]:
    found: dict[str, _Standing] = {}
    known: dict[str, str | None] = {}
    renewed: dict[str, tuple[str, ...]] = {}
    for stage in listed:
        inputs = {name: known[name] if name in known else given(name) for name in stage.reads}
        record = None if stage.name == restart else records.get(stage.name)
        before = tuple(dict.fromkeys(line for name in stage.reads for line in renewed.get(name, ())))
        found[stage.name] = _standing(stage, record, inputs, before, _defaults(kind).get(stage.name))
        for output in stage.outputs:
            expected = _expected(stage, record, found[stage.name], output, before, given)
            known[output], renewed[output] = expected
    return found


def _standing(
    stage: Stage,
    record: Record | None,
    inputs: dict[str, str | None],
    before: tuple[str, ...],
    defaults: dict[str, Any] | None,
) -> _Standing:
    if record is None:
        return _Standing("absent", inputs)
    done, settings = record.status == "done", stage.settings
    if stage.any_precision and done and stage.steps <= record.steps and "mixed_precision" in record.settings:
        settings = settings | {"mixed_precision": record.settings["mixed_precision"]}
    changes = record.changes(settings, inputs, defaults)
    if done and stage.steps < record.steps:
        changes.append(f"steps: {record.steps} -> {stage.steps}")
    if changes or before:
        return _Standing("stale", inputs, (*changes, *before))
    return _Standing("fresh" if done and stage.steps == record.steps else "unfinished", inputs)


def _expected(
    stage: Stage,
    record: Record | None,
    standing: _Standing,
    output: str,
    before: tuple[str, ...],
    given: Callable[[str], str | None],
) -> tuple[str | None, tuple[str, ...]]:
    """Returns the fingerprint that an output will have, where it is known, and why it will be another one."""
    if record is None:
        there = given(output)
        copied = f"none -> {stage.settings['init']}" if stage.name.endswith(".init") else ""
        return there, () if there else (f"{output}: {copied or f'still to be made by {stage.name}'}",)
    if standing.state == "stale":
        own = (line for line in standing.changes if line not in before)
        return None, (*before, *(f"{stage.name}: {line}" for line in own))
    if record.status != "done":
        return None, ()  # it resumes, and comes out as it would have
    if standing.state == "unfinished" and output not in stage.keeps:
        return None, (f"{stage.name}: steps: {record.steps} -> {stage.steps}",)
    return record.outputs.get(output), ()


def _given(run: Run, artefact: str) -> str | None:
    """Returns the fingerprint of what no stage of the run makes, or None."""
    if artefact == "images":
        return run.images
    if artefact == "latents":
        return adopted_latents(run)
    if artefact in ("autoencoder", "encoder") and run.takes_autoencoder:
        return run.taken_autoencoder[artefact]
    return None


@cache
def _defaults(kind: Any) -> dict[str, dict[str, Any]]:
    """Returns the stages' settings by default: what a record of an older version lacks counts as that."""
    own = ":" in kind  # package.module:Name, whose options may have no defaults
    listed = stages(Config(autoencoder=AutoencoderConfig() if own else AutoencoderConfig(kind=kind)))
    return {s.name: s.settings for s in listed if not own or not s.name.startswith("autoencoder.")}


def _check(run: Run, restart: str | None = None) -> dict[str, _Standing]:
    """Returns the standings, where no training would be replaced that may not be.

    Raises:
        UserError: a training was begun with other settings or inputs.
    """
    found, released = _standings_of(run, restart), _dependents(run.stages, restart)
    for stage in run.stages:
        record, standing = run.records.stages.get(stage.name), found[stage.name]
        if not stage.costly or standing.state != "stale" or stage.name in released:
            continue
        if record is not None and not record.replaceable and _has_trained(run, stage, record):
            raise UserError(
                f"{stage.name} was started with other settings or inputs: "
                f"{'; '.join(run.told(standing.changes))}. Go back to the old ones, name another "
                f"folder with --out, or add --restart {stage.name} to `ldmae run`"
                + " or `ldmae finetune decoder`"
                * (stage.name == "autoencoder.decoder")
            )
    return found


def _refuse_replacing(run: Run, stage: Stage) -> None:
    """Raises a UserError where what a training would make is there, made by another kind's or by hand."""
    ours = {other.name for other in run.stages}
    others = [record for name, record in run.records.stages.items() if name not in ours]
    made = any(record.status == "done" and set(record.outputs) & set(stage.outputs) for record in others)
    there = any((run.folder / path).exists() for path in stage.makes)
    if broadcast_object_list([made or there])[0]:
        raise UserError(
            f"{run.folder} holds {stage.makes[0]} already, which {stage.name} would replace and did not "
            f"make; name another folder with --out, or add --restart {stage.name}"
        )


def _has_trained(run: Run, stage: Stage, record: Record) -> bool:
    """Says whether a training has made anything yet that could be lost."""
    states = list_checkpoints(run.folder / "checkpoints" / stage.name)
    return broadcast_object_list([record.status == "done" or bool(states)])[0]


def _dependents(listed: tuple[Stage, ...], name: str | None) -> list[str]:
    """Returns the stages that hang on a stage, however indirectly."""
    reached: set[str] = set()
    names = []
    for stage in listed:
        if reached & set(stage.reads):
            names.append(stage.name)
        if stage.name == name or stage.name in names:
            reached |= set(stage.outputs)
    return names


# ---- begun again


def _restart(run: Run, name: str) -> None:
    """Forgets a stage, and lets those that hang on it be made again where they become stale."""
    for dependent in _dependents(run.stages, name):
        if (record := run.records.stages.get(dependent)) is not None:
            record.replaceable = True
    _forget(run, find(run.stages, name))


def _forget(run: Run, stage: Stage) -> None:
    """Forgets a stage and deletes what it made; a kill on the way leaves nothing half deleted."""
    aside = []
    run.records.stages.pop(stage.name, None)
    states = [f"checkpoints/{stage.name}"] if stage.costly else []
    for path in [run.folder / name for name in (*states, *stage.makes)] if run.main else []:
        if path.exists():
            place = path.resolve()  # of a link to another disk, which stays
            aside.append(place.rename(place.with_name(f"{TEMPORARY_PREFIX}forgotten-{place.name}")))
            if path.is_symlink() and aside[-1].is_dir():
                place.mkdir()
    run.records.write()
    for path in aside:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()


# ---- what is told


def describe_standings(
    config: Config, folder: Path, restart: str | None = None, refused: bool = False
) -> list[str]:
    """Returns a line for each stage that `ldmae run` would skip, resume, make again or refuse in a folder.

    With `refused` they are of those alone that it would refuse. Images are not opened: whether they changed
    is not told.

    Raises:
        UserError: there is no stage `restart`, or the folder's record is damaged or of another version.
    """
    listed = stages(config, resolve_precision(config.mixed_precision, config.device))
    if restart is not None:
        find(listed, restart)
    records = Records(folder, writes=False).stages
    found = _standings(listed, records, config.autoencoder.kind, lambda _: None, restart)
    released, lines = {*_dependents(listed, restart)}, []
    for stage in listed if records else ():
        standing, changes = found[stage.name], "; ".join(found[stage.name].changes)
        if stage.name in records and records[stage.name].replaceable:
            released.add(stage.name)
        states = list_checkpoints(folder / "checkpoints" / stage.name)
        step = f" at step {states[-1][0]:,} of {stage.steps:,}" if states else ""
        text = {"absent": "to be made", "fresh": "done", "unfinished": f"resumed{step}"}.get(standing.state)
        stops = text is None and stage.costly and stage.name not in released
        text = f"refused without --restart {stage.name} ({changes})" if stops else text
        if not stage.always and (stops or not refused):
            lines.append(f"{stage.name}: {text or f'made again ({changes})'}")
    unseen = ["images are not looked at here: the run itself notices whether they have changed"]
    return lines if refused or not lines else lines + unseen
