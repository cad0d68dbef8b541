"""What was made of what: one record for everything on disk, and whether that still holds."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldmae import __version__
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, read_json, write_json
from ldmae.core.progress import console, duration

_SCHEMA = 2
"""Of files that hold records; a run that 0.1.0 began, which wrote 1, can't be resumed."""


@dataclass
class Record:
    """How one thing on disk was made, as JSON holds it."""

    settings: dict[str, Any] = field(default_factory=dict)
    """All settings that decide what it is."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what it was made of, by name."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what was made, by name. What reads an output that came out as before stays fresh."""
    status: str = "running"
    """`running` or `done`."""
    seconds: float = 0.0
    """Over all starts."""
    steps: int = 0
    """Of a training that is done."""
    device: str = ""
    """What it was computed on."""
    processes: int = 1
    """How many worked on it."""
    threads: int = 0
    """CPU threads of each, the same at each start; 0 where none were chosen."""
    finished: str = ""
    version: str = __version__
    """Of this package."""
    code: str = ""
    """Fingerprint of the file with the user's own class that it was made by; empty for the package's."""
    replaceable: bool = False
    """Whether it may be made again where it is stale, however costly: what it hangs on was restarted."""

    @classmethod
    def from_json(cls, value: Any) -> Record:
        """Checks what a file holds.

        Raises:
            TypeError: it is no record.
        """
        record = cls(**value)
        for name, default in vars(cls()).items():
            kind = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(getattr(record, name), kind):
                raise TypeError(f"{name} is {getattr(record, name)!r:.100}")
        return record

    @property
    def made_of(self) -> str:
        """A fingerprint of settings and inputs."""
        return fingerprint([json.dumps([self.settings, self.inputs], sort_keys=True)])

    def changes(
        self,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str | None],
        defaults: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Returns a line for each setting or input that differs now: `rate: 0.001 -> 0.002`.

        An input that is None is not known yet, and not compared. A setting that the record lacks, as it was
        added later, had its default.
        """
        known = {name: value for name, value in inputs.items() if value is not None}
        recorded = {name: value for name, value in self.inputs.items() if inputs.get(name, "") is not None}
        return [*changed(self.settings, settings, defaults), *changed(recorded, known)]


def changed(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> list[str]:
    """Returns a line for each dotted key whose value differs: `optimizer.learning_rate: 0.001 -> 0.002`.

    A key that either lacks counts as its default; the keys begin with `prefix`.
    """
    lines, defaults = [], defaults or {}
    for key in sorted({*before, *now}):
        old, new = (values.get(key, defaults.get(key)) for values in (before, now))
        if isinstance(old, dict) and isinstance(new, dict):
            inner = defaults.get(key)
            lines += changed(old, new, inner if isinstance(inner, dict) else None, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines


def read_record(path: Path) -> Record | None:
    """Reads the record of one thing; None where there is no file.

    Raises:
        UserError: the file is damaged, or holds no record.
    """
    if not path.exists():
        return None
    try:
        return Record.from_json(read_json(path, dict))
    except TypeError as error:
        raise UserError(f"{path} was written by another version of ldmae ({error}); delete it") from error


def write_record(path: Path, record: Record) -> None:
    """Writes the record of one thing."""
    write_json(path, vars(record))


def refuse_others(folder: Path, what: str, changes: list[str]) -> None:
    """Raises a UserError where a folder holds things of other settings or inputs: those of two never mix."""
    if changes:
        raise UserError(
            f"{folder} holds {what} of something else: {'; '.join(changes)}. Name another folder with --out, "
            "or remove that one"
        )


class Records:
    """The records of a run folder's stages by name, kept in its `stages.json`, in the `order` of the stages.

    The main process `writes`; each record notes the `processes` that work on the run, and their device.

    Raises:
        UserError: the file is damaged, or of another version.
    """

    def __init__(self, folder: Path, writes: bool = True, processes: int = 1) -> None:
        self.folder, self.writes, self.processes, self.device = folder, writes, processes, ""
        self.path, self.order = folder / "stages.json", list[str]()
        stored = read_json(self.path) if self.path.exists() else {"schema": _SCHEMA, "stages": []}
        try:
            if stored["schema"] != _SCHEMA:
                raise KeyError(f"schema {stored['schema']}, expected {_SCHEMA}")
            entries = [dict(entry) for entry in stored["stages"]]
            self.stages = {str(entry.pop("name")): Record.from_json(entry) for entry in entries}
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"{self.path} was written by another version of ldmae ({error}): resume the run with that "
                f"version, or start another with --out. What it made can be used: name {folder / 'pipeline'} "
                f"or {folder / 'autoencoder'}"
            ) from error

    def output(self, name: str) -> str:
        """Returns the fingerprint of what finished stages made under a name, or an empty string."""
        found = [record.outputs.get(name) for record in self.stages.values() if record.status == "done"]
        return next(filter(None, found), "")

    def outdated(self, name: str) -> list[str]:
        """Returns what a finished stage was made of that has been made again since, otherwise."""
        record = self.stages.get(name)
        inputs = {} if record is None or record.status != "done" else record.inputs
        return [part for part, value in inputs.items() if self.output(part) not in ("", value)]

    def threads(self) -> int:
        """Returns the threads that the run's first training computes with; 0 where none is noted."""
        trained = [record.threads for record in self.stages.values() if "training" in record.settings]
        return next(filter(None, trained), 0)

    def note_threads(self, name: str, count: int, device: str) -> None:
        """Keeps the threads that a running stage, and what follows, computes with."""
        record = self.stages[name]
        record.threads, record.device, self.device = count, device, device
        self.write()

    @contextlib.contextmanager
    def running(
        self,
        name: str,
        settings: dict[str, Any],
        inputs: dict[str, str],
        steps: int = 0,
        defaults: Mapping[str, Any] | None = None,
        code: str = "",
    ) -> Iterator[Record]:
        """Records a stage as running, and as done when the block is left without an exception."""
        before = self.stages.get(name)
        record = Record(settings, inputs, processes=self.processes, device=self.device, code=code)
        if before is not None and not before.changes(settings, inputs, defaults):
            # as it was recorded: its training states bear the fingerprint of that
            record.settings, record.inputs, record.threads = before.settings, before.inputs, before.threads
            record.code = before.code or code
            record.seconds = before.seconds if before.status != "done" or steps else 0.0
        self.stages[name] = record
        self.write()
        spent, began = record.seconds, time.monotonic()
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
        self.stages[name].seconds = seconds
        self.write()

    def write(self) -> None:
        """Writes the file."""
        if self.writes:
            place = {name: number for number, name in enumerate(self.order)}
            names = sorted(self.stages, key=lambda name: place.get(name, -1))
            entries = [{"name": name, **vars(self.stages[name])} for name in names]
            write_json(self.path, {"schema": _SCHEMA, "stages": entries})
