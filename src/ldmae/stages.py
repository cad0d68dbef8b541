"""Which stages of a run are done, with what settings, from what inputs; and the run folder's lock."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmae.core.errors import UserError, nearest
from ldmae.core.files import LOCK, TEMPORARY_PREFIX, disk_errors, read_json, remove_leftovers, write_json
from ldmae.core.progress import console, duration

STAGES = (
    "autoencoder.pretraining",
    "autoencoder.tuning",
    "autoencoder.baseline",
    "latents",
    "diffusion",
    "pipeline",
    "samples",
    "evaluation",
    "report",
)
TRAINED = ("autoencoder.pretraining", "autoencoder.tuning", "autoencoder.baseline", "diffusion")


ADDED = {
    "latent_noise": 0.0,
    "gpu_decoding": False,
    "ratio_range": None,
    "interpolation_noise": 0.0,
    "expansion_weight": 0.0,
    "expansion": "relative",
    "equivariance": 0.0,
    "alignment_weight": 0.0,
    "alignment": "efficientnet_lite0",
    "spectrum_weight": 0.0,
    "adversarial_weight": 0.0,  # VMAE's; the baselines had it from the first
    "adversarial_start_step": 0,
    "variance_kl": False,
    "head_features": None,
    "network": "conv",
}
"""Settings that came after run folders were made, each with the value that changes nothing. With it a setting
is not recorded, and a record without it has this value: older runs go on."""


def changed_settings(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns a line for each dotted key whose value differs: `optimizer.learning_rate: 0.001 -> 0.002`."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = (settings.get(key, ADDED.get(key)) for settings in (before, now))
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changed_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines


@dataclass
class Record:
    """What a stage did, as `stages.json` keeps it."""

    name: str
    status: str = "running"
    """`running` or `done`."""
    seconds: float = 0.0
    """Over all starts."""
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    output: str = ""
    """Fingerprint of what it made."""
    finished: str = ""
    steps: int = 0
    """Of a training."""
    processes: int = 1
    """How many worked on it."""
    device: str = ""
    """What they worked on."""
    threads: int = 0
    """CPU threads of each, the same at each start; 0 where none were chosen."""

    def check(self) -> None:
        """Raises a TypeError for a field of another type than its default has."""
        for name, default in vars(Record("")).items():
            kind = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is {getattr(self, name)!r:.100}")


def stages_from(restart: str | None, encoder_stays: bool = False) -> tuple[str, ...]:
    """Returns the stages that are begun anew: the one named, and all after it; none where None.

    Args:
        restart: a stage, or None.
        encoder_stays: whether decoder tuning leaves the encoder as it is; then what is made of its latents
            stays when tuning is begun anew.

    Raises:
        UserError: there is no such stage.
    """
    if restart is None:
        return ()
    if restart not in STAGES:
        raise UserError(f"no stage {restart!r}{nearest(restart, STAGES)}; stages: {', '.join(STAGES)}")
    stay = ("latents", "diffusion") if restart == "autoencoder.tuning" and encoder_stays else ()
    return tuple(stage for stage in STAGES[STAGES.index(restart) :] if stage not in stay)


class StageBook:
    """Reads and writes `stages.json` of a run folder.

    Args:
        folder: the run folder.
        writes: whether this process writes (the main process does).
        processes: how many work on the run.
        device: what they work on.
    """

    def __init__(self, folder: Path, writes: bool = True, processes: int = 1, device: str = "") -> None:
        self.folder, self.writes, self.processes, self.device = folder, writes, processes, device
        self.path = folder / "stages.json"
        stored = read_json(self.path) if self.path.exists() else {"stages": []}
        try:
            self.records = {entry["name"]: Record(**entry) for entry in stored["stages"]}
            for record in self.records.values():
                record.check()
        except (TypeError, KeyError) as error:
            raise UserError(
                f"{self.path} was written by another version of ldmae ({error}); continue with that one, or "
                "name another folder with --out"
            ) from error

    def output(self, name: str) -> str:
        """Returns the fingerprint of what a finished stage made, or an empty string."""
        record = self.records.get(name)
        return record.output if record is not None and record.status == "done" else ""

    def threads(self) -> int:
        """Returns the threads that the run's first training computes with; 0 where none is noted."""
        trained = [self.records[name].threads for name in TRAINED if name in self.records]
        return next(filter(None, trained), 0)

    def note_threads(self, name: str, count: int, device: str) -> None:
        """Keeps the threads that a running stage, and what follows, computes with."""
        record = self.records[name]
        record.threads, record.device, self.device = count, device, device
        self._write()

    def restart(self, names: Sequence[str], folders: dict[str, list[Path]]) -> None:
        """Forgets stages and deletes what they made; a kill on the way leaves nothing half deleted."""
        aside = []
        for name in names:
            self.records.pop(name, None)
            for path in folders.get(name, []) if self.writes else []:
                if path.exists():
                    aside.append(path.rename(path.with_name(f"{TEMPORARY_PREFIX}forgotten-{path.name}")))
        self._write()
        for path in aside:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def needed(
        self, name: str, settings: dict[str, Any], inputs: dict[str, str], made: Path, steps: int = 0
    ) -> bool:
        """Says whether a stage must run.

        It must where its settings or inputs changed, it was interrupted, or its output is gone.

        Raises:
            UserError: a training's settings or inputs changed since it began.
        """
        record = self.records.get(name)
        if record is None:
            return True
        if name in TRAINED:
            self.refuse_changes(name, settings, inputs, steps)
        changed = record.settings != settings or record.inputs != inputs
        return changed or record.status != "done" or not made.exists() or steps > record.steps

    def refuse_changes(
        self, name: str, settings: dict[str, Any], inputs: dict[str, str] | None, steps: int
    ) -> None:
        """Checks a training that was begun against what is asked for now.

        Args:
            name: its stage.
            settings: what determines its weights.
            inputs: fingerprints of its inputs; None where they are not known yet.
            steps: how many it shall have.

        Raises:
            UserError: its settings or inputs changed, or fewer steps are asked for than are done.
        """
        record = self.records.get(name)
        if record is None:
            return
        changed = changed_settings(record.settings, settings)
        if inputs is not None:
            changed += changed_settings(record.inputs, inputs)
        if changed:
            raise UserError(
                f"{name} was started with other settings or inputs: {'; '.join(changed)}. Run the command "
                f"with the old ones, name another folder with --out, or --restart {name} to train it again"
            )
        if record.status == "done" and steps < record.steps:
            raise UserError(
                f"{name} has done {record.steps} steps, {steps} are asked for; ask for {record.steps} or "
                f"more, or add --restart {name}"
            )

    @contextlib.contextmanager
    def running(
        self, name: str, settings: dict[str, Any], inputs: dict[str, str], steps: int = 0
    ) -> Iterator[Record]:
        """Marks a stage as running, and as done when the block is left without an exception."""
        before = self.records.get(name)
        same = before is not None and before.settings == settings and before.inputs == inputs
        spent = before.seconds if before is not None and same and (before.status != "done" or steps) else 0.0
        record = Record(
            name, "running", spent, settings, inputs, processes=self.processes, device=self.device
        )
        record.threads = before.threads if before is not None and same else 0
        self.records[name] = record
        self._write()
        began = time.monotonic()
        try:
            yield record
        except BaseException:
            with contextlib.suppress(UserError):  # a full disk, of which the first message tells more
                self.tick(name, spent + time.monotonic() - began)
            raise
        record.status, record.steps = "done", steps
        record.finished = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.tick(name, spent + time.monotonic() - began)
        if self.writes:
            console.print(f"[green]done[/green] {name} in {duration(record.seconds)}")

    def tick(self, name: str, seconds: float) -> None:
        """Keeps the seconds spent so far, so that a kill does not lose them."""
        self.records[name].seconds = seconds
        self._write()

    def _write(self) -> None:
        if self.writes:
            ordered = [self.records[name] for name in STAGES if name in self.records]
            write_json(self.path, {"schema": 1, "stages": [vars(record) for record in ordered]})


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run folder's lock, which the operating system frees when the process ends, however it ends.

    Raises:
        UserError: another program works on the folder.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") != "0":  # of several processes of one run, the main one holds it
        yield
        return
    with disk_errors(folder / LOCK):
        file = (folder / LOCK).open("w")
    with file:
        try:
            # not flock, which a killed program's loading processes would go on holding for some seconds
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"another program is working on {folder}; wait for it, or name another folder with --out"
                ) from error
            console.print(  # as on some network disks
                f"{folder} is on a disk that cannot lock files ({error.strerror}): let no second program "
                "work on it at the same time"
            )
        remove_leftovers(folder)
        yield
