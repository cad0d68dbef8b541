"""A comparison's units, an autoencoder at a seed each: read from their folders, gathered by autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ldmae.report.reading import cut, mapping, number, read_json, records

SCHEMA = 1
"""The `unit.json` that this version reads (docs/reference/results-format.md)."""
AUTOENCODERS, ABLATION = "autoencoders", "ablation"
"""The groups of units."""
TIMES = {"autoencoder training": "autoencoder.", "diffusion training": "diffusion"}
"""Figures of the measurement `time`, summed over the stages whose names begin so."""
TRAINED_ON = "trained on this metric"
"""What the note of a figure says where the autoencoder was trained on the metric that judges it."""
DAGGER = "†"
"""Marks such a figure."""


class Spread(NamedTuple):
    """A figure over seeds."""

    mean: float
    deviation: float
    """Sample standard deviation; nan with one seed."""
    count: int
    """Seeds."""


class Figure(NamedTuple):
    """One measured figure of a unit, as its `Result` says."""

    value: float
    better: str
    counts: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Unit:
    """One autoencoder at one seed, with the diffusion model trained on its latents."""

    folder: Path
    variant: str
    seed: int
    record: dict[str, Any]
    figures: dict[tuple[str, str], Figure]
    """By measurement and name."""


@dataclass
class Variant:
    """One autoencoder, at all its seeds."""

    name: str
    title: str
    group: str
    order: float
    units: list[Unit] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """Its seeds, in order."""
        return [unit.seed for unit in self.units]

    def spread(self, measurement: str, name: str) -> Spread | None:
        """Returns a figure's mean and sample deviation over the seeds that have it, or None."""
        known = [unit.figures.get((measurement, name)) for unit in self.units]
        return spread_of([figure.value for figure in known if figure])

    def figures(self, measurement: str, name: str) -> list[Figure]:
        """Returns a figure at the seeds that have it."""
        known = [unit.figures.get((measurement, name)) for unit in self.units]
        return [figure for figure in known if figure]

    def trained_on(self, measurement: str, name: str) -> bool:
        """Returns whether it was trained on the metric of a figure."""
        return any(TRAINED_ON in figure.note for figure in self.figures(measurement, name))


def spread_of(values: list[float]) -> Spread | None:
    """Returns mean and sample standard deviation of what different seeds gave, or None of nothing."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, math.nan, 1)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(mean, math.sqrt(squares / (len(values) - 1)), len(values))


def read_variants(folder: Path, problems: list[str]) -> list[Variant]:
    """Reads every `units/VARIANT/seed-N/unit.json` of a comparison.

    Args:
        folder: the comparison's.
        problems: takes a sentence for each unit, or figure of one, that is left out.

    Returns:
        The autoencoders in their order.
    """
    found: dict[str, Variant] = {}
    paths = sorted((folder / "units").glob("*/seed-*/unit.json"), key=_by_seed)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        unit = _read(path, name, problems)
        if unit is None:
            continue
        record = unit.record
        variant = found.setdefault(
            unit.variant,
            Variant(
                name=unit.variant,
                title=cut(str(record.get("title") or unit.variant), 40),
                group=str(record.get("group") or AUTOENCODERS),
                order=number(record.get("order")) or 0,
            ),
        )
        variant.units.append(unit)
    return sorted(found.values(), key=lambda variant: (variant.order, variant.name))


def _by_seed(path: Path) -> tuple[str, int, str]:
    digits = path.parent.name.removeprefix("seed-")
    return path.parent.parent.name, int(digits) if digits.isdecimal() else -1, digits


def _read(path: Path, name: str, problems: list[str]) -> Unit | None:
    known = len(problems)
    record = mapping(read_json(path, problems, name))
    if not record:
        if len(problems) == known:  # it is JSON, and can be read
            problems.append(f"{name} is left out: it holds no unit")
        return None
    own = f"{record.get('variant')}/seed-{record.get('seed')}"
    place = f"{path.parent.parent.name}/{path.parent.name}"
    if record.get("schema") != SCHEMA:
        schema = cut(str(record.get("schema")), 20)
        problems.append(f"{name} is left out: its schema is {schema}, this version reads {SCHEMA}")
    elif own != place or type(record.get("seed")) is not int:
        problems.append(f"{name} is left out: it says that it is {cut(own, 80)}")
    elif not isinstance(record.get("results"), list):
        problems.append(f"{name} is left out: it holds no results")
    else:
        figures = read_figures(record, name, problems) | _times(record)
        return Unit(path.parent, path.parent.parent.name, record["seed"], record, figures)
    return None


def read_figures(record: dict[str, Any], unit: str, problems: list[str]) -> dict[tuple[str, str], Figure]:
    """Returns the figures of `results`, by measurement and name.

    Args:
        record: what holds `results`.
        unit: what problems call it.
        problems: takes a sentence for each figure that is no finite number.
    """
    figures = {}
    for entry in records(record.get("results")):
        measurement, name = str(entry.get("measurement")), str(entry.get("name"))
        value = number(entry.get("value"))
        if value is None:
            problems.append(f"{unit}: {cut(name, 80)} is not a finite number and is left out")
            continue
        counts = tuple(f"{count} {kind}" for kind, count in mapping(entry.get("counts")).items())
        note = cut(str(entry.get("note") or ""), 600)
        figures[measurement, name] = Figure(value, str(entry.get("better") or ""), counts, note)
    return figures


def _times(record: dict[str, Any]) -> dict[tuple[str, str], Figure]:
    figures = {}
    seconds = mapping(record.get("seconds"))
    device = cut(str(record.get("device") or "device not known"), 100)
    for name, beginning in TIMES.items():
        known = [number(spent) for stage, spent in seconds.items() if stage.startswith(beginning)]
        if known and None not in known:
            figures["time", name] = Figure(math.fsum(s for s in known if s), "lower", (), device)
    return figures


def measured_names(variants: Iterable[Variant], measurement: str) -> list[str]:
    """Returns the names of all figures of a measurement, in the order in which units bear them."""
    names: dict[str, None] = {}
    for variant in variants:
        for unit in variant.units:
            names |= {name: None for kind, name in unit.figures if kind == measurement}
    return list(names)
