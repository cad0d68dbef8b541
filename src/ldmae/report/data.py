"""What reports are made of, read once: a run's files, a comparison's units.

They may be missing, half-written or foreign, and never stop a page: a missing file is None without a word,
one that can't be read is None and named among the problems.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ldmae.contracts import RESULTS_SCHEMA
from ldmae.core.errors import counted
from ldmae.report.formatting import format_value

_MAX_TEXT = 400
"""Characters of a name or note that are shown."""
AUTOENCODERS, ABLATION = "autoencoders", "ablation"
"""The groups of units."""
_TIMES = {"autoencoder training": "autoencoder.", "diffusion training": "diffusion"}
"""Metrics of the measurement `time`, summed over the stages whose names begin so."""
TRAINED_ON = "the autoencoder was trained on this metric"
_METRICS = ["measurement", "name", "value", "unit", "better", "counts", "remarks", "trained_on_metric"]
"""Columns of a table of metrics; `counts` and `remarks` are text."""


def read_text(path: Path, problems: list[str], name: str = "") -> str | None:
    """Returns a file's text; `name` is what problems call it, its own name by default."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    except OSError as error:
        problems.append(f"{name or path.name} could not be read: {error.strerror}")
    return None


def json_of(path: Path, problems: list[str], name: str = "") -> dict[str, Any]:
    """Returns the object in a JSON file, as `read_text`; empty where there is none."""
    text = read_text(path, problems, name)
    try:
        return {} if text is None else mapping(json.loads(text))
    except (ValueError, RecursionError):
        problems.append(f"{name or path.name} is not whole JSON")
    return {}


def read_arrays(path: Path, problems: list[str], name: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz, by name; none where it is missing or can't be read."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except Exception:  # zip, zlib and numpy raise whatever they like
        problems.append(f"{name or path.name} could not be read")
    return {}


def samples_of(folder: Path, problems: list[str]) -> dict[str, np.ndarray]:
    """Returns the `images` (n, H, W, 3) in uint8 of a folder of samples and their `labels` (n,).

    Nothing where there are none, or where they can't be read.
    """
    record = json_of(folder / "samples.json", problems, f"{folder.name}/samples.json")
    paths = sorted((folder / "images").glob("*.png"))
    labels = record.get("labels")
    if not paths or not isinstance(labels, list):
        return {}
    try:
        images = [np.asarray(Image.open(path).convert("RGB")) for path in paths[: len(labels)]]
        return {"images": np.stack(images), "labels": np.array(labels[: len(images)], np.int64)}
    except Exception:  # decoders raise whatever they like
        problems.append(f"{folder.name}/images could not be read")
    return {}


def mapping(value: Any) -> dict[str, Any]:
    """Returns a JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """Returns the objects of a JSON list; what is no list has none."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """Returns a finite number, or None in place of anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and abs(value) <= 1e300 and math.isfinite(value) else None


def evenly(count: int, most: int) -> np.ndarray:
    """Returns at most `most` of `count` places, evenly spread and in order."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def cut(text: str, length: int = _MAX_TEXT) -> str:
    """Shortens a text that is longer than `length` and says by how much."""
    if len(text) <= length:
        return text
    return text[:length] + f"… ({len(text) - length:,} more characters)"


# ---- metrics


def metrics_of(record: dict[str, Any]) -> pd.DataFrame:
    """Returns the metrics of a results file or a unit (docs/reference/results-format.md), as `_METRICS`."""
    rows = [
        {
            "measurement": cut(str(entry.get("measurement") or "other")),
            "name": cut(str(entry.get("name", "unnamed"))),
            "value": entry.get("value"),
            "unit": cut(str(entry.get("unit") or "")),
            "better": str(entry.get("better") or ""),
            "counts": ", ".join(_counts(mapping(entry.get("counts")))),
            "remarks": cut(remarks(entry)),
            "trained_on_metric": entry.get("trained_on_metric") is True,
        }
        for entry in records(record.get("results"))
    ]
    return pd.DataFrame(rows, columns=_METRICS, dtype=object)


def finite(metrics: pd.DataFrame) -> pd.Series:
    """Returns which metrics' values are finite numbers."""
    return metrics["value"].map(number).notna()


def _counts(counts: dict[str, Any]) -> list[str]:
    return [f"{format_value(n)} {cut(str(kind), 60)}" for kind, n in list(counts.items())[:10]]


def remarks(entry: dict[str, Any]) -> str:
    """Returns what a reader must know to judge a metric, in words."""
    parts = [TRAINED_ON if entry.get("trained_on_metric") is True else "", str(entry.get("note") or "")]
    parts += [f"{kind} {format_value(value)}" for kind, value in mapping(entry.get("spread")).items()]
    parts += [f"{kind}: {format_value(value)}" for kind, value in mapping(entry.get("reference")).items()]
    return "; ".join(filter(None, parts))


def other_schema(record: dict[str, Any], name: str) -> str:
    """Returns what to say of a file of metrics of another version; empty for one of this version."""
    if record.get("schema") == RESULTS_SCHEMA:
        return ""
    found = cut(str(record.get("schema")), 20)
    return f"{name} is left out: its schema is {found}, this version reads {RESULTS_SCHEMA}"


# ---- a comparison's units: an autoencoder at a seed each


@dataclass(frozen=True)
class UnitResults:
    """One autoencoder at one seed, with the diffusion model trained on its latents."""

    folder: Path
    variant: str
    seed: int
    record: dict[str, Any]

    def at(self, *keys: str) -> Any:
        """Returns a value within the record, None where there is none."""
        value: Any = self.record
        for key in keys:
            value = mapping(value).get(key)
        return value

    @property
    def image_size(self) -> int:
        """Pixels along a side, 0 where that is not known."""
        return int(number(self.at("image_size")) or 0)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """Its images' classes."""
        return records(self.at("data", "classes"))


def in_classes(data: dict[str, Any]) -> str:
    """Returns what to say after the number of training images: in how many classes they are, and how many."""
    classes = records(data.get("classes"))
    labelled = sum(number(entry.get("train")) or 0 for entry in classes)
    of_them = f", {labelled:,.0f} of them" if labelled < (number(data.get("train")) or 0) else ""
    return f"{of_them} in {len(classes):,} classes" if len(classes) > 1 else ""


@dataclass
class VariantResults:
    """One autoencoder, at all its seeds."""

    name: str
    title: str
    group: str
    order: float
    units: list[UnitResults] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """Its seeds, in order."""
        return [unit.seed for unit in self.units]


@dataclass(frozen=True)
class Comparison:
    """The autoencoders of a comparison, in their order, and all their metrics."""

    variants: list[VariantResults]
    metrics: pd.DataFrame
    """`_METRICS` with `variant` and `seed`; every value is a finite number."""

    @property
    def units(self) -> list[UnitResults]:
        """The units of all."""
        return [unit for variant in self.variants for unit in variant.units]

    def select(self, group: str) -> Comparison:
        """Returns the autoencoders of a group."""
        variants = [variant for variant in self.variants if variant.group == group]
        return Comparison(variants, self.metrics[self.metrics.variant.isin([v.name for v in variants])])

    def only(self, names: Sequence[str], seeds: Collection[int]) -> Comparison:
        """Returns some autoencoders, at some seeds; without any seeds at all of theirs."""
        known = [variant for variant in self.variants if variant.name in names]
        if seeds:
            known = [replace(v, units=[unit for unit in v.units if unit.seed in seeds]) for v in known]
        rows = self.metrics.variant.isin(names) & (self.metrics.seed.isin(seeds) | (not seeds))
        return Comparison([variant for variant in known if variant.units], self.metrics[rows])

    def stats(self) -> pd.DataFrame:
        """Returns `mean`, sample `std`, `count` over seeds, `better` and `trained_on_metric`.

        By measurement, name and variant. The standard deviation of one seed is nan.
        """
        values = self.metrics.astype({"value": float, "trained_on_metric": bool})
        grouped = values.groupby(["measurement", "name", "variant"], sort=False)
        return grouped.agg(
            mean=("value", "mean"),
            std=("value", "std"),
            count=("value", "count"),
            better=("better", "first"),
            trained_on_metric=("trained_on_metric", "any"),
        )

    def names(self, measurement: str) -> list[str]:
        """Returns the names of a measurement's metrics, in the order in which units have them."""
        of = self.metrics[self.metrics.measurement == measurement]
        return list(dict.fromkeys(of["name"]))


def read_comparison(folder: Path, problems: list[str]) -> Comparison:
    """Reads every `units/VARIANT/seed-N/unit.json` of a comparison; `problems` takes what is left out."""
    found: dict[str, VariantResults] = {}
    frames = [pd.DataFrame(columns=[*_METRICS, "variant", "seed"], dtype=object)]
    for path in sorted((folder / "units").glob("*/seed-*/unit.json"), key=_by_seed):
        name = path.relative_to(folder).as_posix()
        unit = _read_unit(path, name, problems)
        if unit is None:
            continue
        record = unit.record
        title, group = str(record.get("title") or unit.variant), str(record.get("group") or AUTOENCODERS)
        order = number(record.get("order")) or 0
        variant = found.setdefault(unit.variant, VariantResults(unit.variant, cut(title, 40), group, order))
        variant.units.append(unit)
        frames.append(_unit_metrics(unit, name, problems))
    variants = sorted(found.values(), key=lambda variant: (variant.order, variant.name))
    metrics = _on_one_device(pd.concat(frames, ignore_index=True), variants, problems)
    rank = {variant.name: place for place, variant in enumerate(variants)}
    return Comparison(variants, metrics.sort_values("variant", key=lambda of: of.map(rank), kind="stable"))


def _on_one_device(
    metrics: pd.DataFrame, variants: Sequence[VariantResults], problems: list[str]
) -> pd.DataFrame:
    """Leaves out rates, memory and times of units made elsewhere than most: they are not to be averaged."""
    devices = {(of.name, unit.seed): str(unit.at("device")) for of in variants for unit in of.units}
    counts = Counter(devices.values()).most_common()
    if len(counts) < 2:
        return metrics
    problems += [
        f"rates, memory and times of {counted(count, 'unit')} on {cut(device, 100)}: most are on "
        f"{cut(counts[0][0], 100)}"
        for device, count in counts[1:]
    ]
    of_unit = [devices[unit] for unit in zip(metrics.variant, metrics.seed, strict=True)]
    spent = metrics["name"].str.endswith((" rate", " memory")) | (metrics.measurement == "time")
    return metrics[~(spent & (pd.Series(of_unit, metrics.index) != counts[0][0]))]


def _by_seed(path: Path) -> tuple[str, int, str]:
    digits = path.parent.name.removeprefix("seed-")
    return path.parent.parent.name, int(digits) if digits.isdecimal() else -1, digits


def _read_unit(path: Path, name: str, problems: list[str]) -> UnitResults | None:
    known = len(problems)
    record = json_of(path, problems, name)
    if not record:
        if len(problems) == known:  # it is JSON, and can be read
            problems.append(f"{name} is left out: it holds no unit")
        return None
    variant = str(record.get("variant"))
    own = f"{variant.replace(':', '.')}/seed-{record.get('seed')}"  # of one's own: package.module:Name
    place = f"{path.parent.parent.name}/{path.parent.name}"
    if other := other_schema(record, name):
        problems.append(other)
    elif own != place or type(record.get("seed")) is not int:
        problems.append(f"{name} is left out: it says that it is {cut(own, 80)}")
    elif not isinstance(record.get("results"), list):
        problems.append(f"{name} is left out: it holds no results")
    else:
        return UnitResults(path.parent, variant, record["seed"], record)
    return None


def _unit_metrics(unit: UnitResults, name: str, problems: list[str]) -> pd.DataFrame:
    metrics = metrics_of({"results": [*records(unit.record["results"]), *_times(unit.record)]})
    known = finite(metrics)
    problems += [
        f"{name}: {cut(metric, 80)} is not a finite number and is left out"
        for metric in metrics["name"][~known]
    ]
    whole = metrics[known].drop_duplicates(["measurement", "name"], keep="last")
    return whole.assign(variant=unit.variant, seed=unit.seed)


def _times(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the entries of the measurement `time`: seconds of training."""
    seconds, found = mapping(record.get("seconds")), []
    of = {"measurement": "time", "unit": "s", "better": "lower"}
    of["note"] = cut(str(record.get("device") or "device not known"), 100)
    for name, beginning in _TIMES.items():
        known = [number(spent) for stage, spent in seconds.items() if stage.startswith(beginning)]
        if known and None not in known:
            found.append(of | {"name": name, "value": math.fsum(s for s in known if s)})
    return found
