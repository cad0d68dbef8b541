"""Tables: one frame of texts each, shown alike as HTML, Markdown and in the terminal; a comparison's metrics.

In a cell `**text**` is bold and `*text*` is set apart, in all three.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ldmae.perception.names import FEATURES
from ldmae.report import paper
from ldmae.report.data import TRAINED_ON, Comparison
from ldmae.report.formatting import format_spread, format_value

ARROWS = {"higher": "↑", "lower": "↓"}
DAGGER = "†"
"""Marks a metric on which the autoencoder was trained."""
_IN_THE_PAPER, _FLOOR = "*in the paper*", "*real half against real half*"
NOTHING = 0.02
"""A column of shares of images whose means are all below it says nothing: they are of a few images each."""
_FOOTNOTES = {
    "ST-LPIPS": "ST-LPIPS is the shift-tolerant perceptual metric with its own weights (ECCV 2022). "
    "It is not LPIPS: it is not comparable with LPIPS in papers.",
    "efficientnet": "Measured on features of EfficientNet, not of Inception. "
    "It is not comparable with FID or KID in papers, only with metrics on the same features.",
}
"""What a reader must be told of a metric, by a part of its name."""
_LEVELS = ("object", "part", "pattern")


# ---- any table


@dataclass(frozen=True)
class Table:
    """A table of texts, a row an entry of the frame's index."""

    frame: pd.DataFrame
    words: frozenset[str] = frozenset()
    """Columns of words, aligned left; the others are numbers, aligned right."""

    @property
    def named(self) -> bool:
        """Whether the rows have names."""
        return any(self.frame.index)

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        frame = self.frame
        lines = [[frame.index.name or "", *map(str, frame.columns)]]
        lines += [["---", *("---" if column in self.words else "---:" for column in frame.columns)]]
        lines += [[str(name), *map(str, row)] for name, row in zip(frame.index, frame.values, strict=True)]
        if not self.named:
            lines = [line[1:] for line in lines]
        return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)

    def terminal(self) -> str:
        """Returns the table's rows as aligned lines; the last column, of remarks, is as long as it likes."""
        rows = [[str(cell) for cell in row] for row in self.frame.values]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        padded = [[*map(str.ljust, row, widths), row[-1]] for row in rows]
        return "\n".join("  ".join(row).rstrip() for row in padded)


def escaped(text: str) -> str:
    """Returns a text that Markdown takes as it is."""
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    """Returns a cell as Markdown, its mark kept."""
    found = re.fullmatch(r"(\*{1,2})(.+)\1(†?)", text)
    return escaped(text) if found is None else f"{found[1]}{escaped(found[2])}{found[1]}{found[3]}"


def metrics_table(metrics: pd.DataFrame, format_number: Callable[[Any], str] = format_value) -> Table:
    """Returns metrics (see `data.metrics_of`) for readers: name, value, better, counts and remarks."""
    values = metrics["value"].map(format_number) + metrics["unit"].map(lambda unit: f" {unit}".rstrip())
    frame = pd.DataFrame(
        {
            "Metric": metrics["name"],
            "Value": values,
            "Better": [ARROWS.get(str(better), "") for better in metrics["better"]],
            "Measured on": metrics["counts"],
            "Note": metrics["remarks"],
        }
    )
    return Table(
        frame.set_index(pd.Index([""] * len(frame))), frozenset({"Metric", "Better", "Measured on", "Note"})
    )


def footnotes(names: Sequence[str]) -> list[str]:
    """Returns what a reader must be told of metrics of these names."""
    shown = " ".join(names).lower()
    return [text for part, text in _FOOTNOTES.items() if part.lower() in shown]


# ---- a comparison: a row an autoencoder, a column a metric, below each row the paper's


@dataclass(frozen=True)
class Wanted:
    """A metric to look for: names differ with the network that was used, so they are found by a pattern."""

    measurement: str
    pattern: str
    """Matches the whole name."""
    paper: str = ""
    """The paper's column that is the same metric, but for the network."""
    order_of: str = ""
    """The paper's column whose order ours is compared with, where it is not the same metric."""
    divisor: float = 1.0
    unit: str = ""
    counted: bool = False
    """Whether it is counted, not measured, so that equal values at all seeds need no spread."""
    share: bool = False
    """Whether it is a share of images, in [0, 1]."""


PERCEPTUAL = r".*LPIPS-\w+"
RECONSTRUCTION = (
    Wanted("reconstruction", "L1", "L1"),
    Wanted("reconstruction", "PSNR", "PSNR", unit="dB"),
    Wanted("reconstruction", "SSIM", "SSIM"),
    Wanted("reconstruction", PERCEPTUAL, "LPIPS"),
    Wanted("reconstruction", r"rFI?D(-.*)?", "rFID"),
    Wanted("reconstruction", r"rKID(-.*)?", order_of="rFID"),
)
GENERATION = (
    Wanted("samples", r"FI?D(-.*)?", "gFID"),
    Wanted("samples", r"KID(-.*)?", order_of="gFID"),
    Wanted("samples", r"MIND(-.*)?"),
    Wanted("samples", r"sFI?D(-.*)?", "sFID"),
    Wanted("samples", r"IS(-.*)?", "IS"),
    Wanted("samples", r"precision(-.*)?", "precision", share=True),
    Wanted("samples", r"recall(-.*)?", "recall", share=True),
)
BETWEEN = (Wanted("ifid", r"iFI?D(-.*)?"), Wanted("ifid", r"iKID(-.*)?"))
AREA = Wanted("smoothness", r".*-AUC")
ABLATION = (*RECONSTRUCTION[1:], *GENERATION[:3], *GENERATION[5:], AREA, *BETWEEN)
COST = (
    Wanted("efficiency", "parameters", unit="M", divisor=1e6, counted=True),
    Wanted("efficiency", "weights", unit="MiB", divisor=2**20, counted=True),
    Wanted("efficiency", "FLOPs", unit="G", divisor=1e9, counted=True),
    Wanted("efficiency", "encode rate", unit="images/s"),
    Wanted("efficiency", "decode rate", unit="images/s"),
    Wanted("efficiency", "encode memory", unit="MiB", divisor=2**20),
    Wanted("efficiency", "decode memory", unit="MiB", divisor=2**20),
    Wanted("time", "autoencoder training", unit="s"),
    Wanted("time", "diffusion training", unit="s"),
)
COMPRESSION = (
    *(Wanted("compression", rf"sigma2\({level}\)") for level in _LEVELS),
    *(Wanted("compression", rf"rho\({level}\)") for level in _LEVELS),
    Wanted("probe", "linear-probe-accuracy"),
    Wanted("probe", "linear-probe-balanced-accuracy"),
)
_SYMBOLS = {"sigma2": "σ²", "rho": "ρ", "linear-probe-": "probe "}


@dataclass(frozen=True)
class Column:
    """A metric that at least one autoencoder has."""

    wanted: Wanted
    name: str
    """As measured."""
    better: str
    on: str
    """On how much it was measured, and its remarks."""

    @property
    def title(self) -> str:
        """The name as shown."""
        title = re.sub(r"\(eps=(.+)\)", r" at ε = \1", self.name)
        for plain, symbol in _SYMBOLS.items():
            title = symbol + title.removeprefix(plain) if title.startswith(plain) else title
        return title

    @property
    def heading(self) -> str:
        """The title with its unit and the arrow that points to the better."""
        unit = f"({self.wanted.unit})" if self.wanted.unit else ""
        titled = " ".join(filter(None, [self.title, unit]))
        return "\u00a0".join(filter(None, [titled, ARROWS.get(self.better)]))


@dataclass(frozen=True)
class ComparisonTable:
    """What a table of a comparison says."""

    title: str
    columns: list[Column]
    mean: pd.DataFrame
    """By autoencoder's name and column's number; nan where it was not measured."""
    std: pd.DataFrame
    """Sample standard deviations over seeds, likewise."""
    best: pd.DataFrame
    """Whether a mean is the best of its column, likewise."""
    titles: dict[str, str]
    """Of the rows, by autoencoder's name."""
    table: Table
    missing: list[str]
    """Titles of the rows for which nothing is there."""
    notes: list[str] = field(default_factory=list)
    """What a reader must be told of its metrics."""

    def says_nothing(self, k: int) -> bool:
        """Returns whether a column holds shares of images of which every mean is next to 0."""
        return self.columns[k].wanted.share and bool(self.mean[k].max() < NOTHING)

    def markdown(self) -> str:
        """Returns heading, table and notes as Markdown."""
        if not self.columns:
            return f"## {self.title}\n\nNot measured yet."
        missing = [f"Not done yet: {', '.join(self.missing)}."] if self.missing else []
        return "\n\n".join([f"## {self.title}", self.table.markdown(), *missing, *self.notes])


def find_columns(comparison: Comparison, wanted: Sequence[Wanted]) -> list[Column]:
    """Returns a column for every name that a pattern matches; metrics of two networks never mix."""
    columns = []
    for metric in wanted:
        for name in comparison.names(metric.measurement):
            if re.fullmatch(metric.pattern, name):
                columns.append(_column(comparison.metrics, metric, name))
    return columns


def _column(metrics: pd.DataFrame, wanted: Wanted, name: str) -> Column:
    known = metrics[(metrics.measurement == wanted.measurement) & (metrics["name"] == name)]
    better = next((better for better in known.better if better), "")
    of_each = [text.split("; ") for text in dict.fromkeys(filter(None, known.remarks))]
    remarks = list(dict.fromkeys(itertools.chain(*of_each)))
    counts = list(dict.fromkeys(filter(None, known.counts)))
    if len(remarks) > len(of_each[0] if of_each else []) + 1:  # such as a deviation that each has of its own
        shared = [remark for remark in remarks if all(remark in each for each in of_each)]
        remarks = [*shared, "other remarks differ from unit to unit"]
    return Column(wanted, name, better, "; ".join(filter(None, [" or ".join(counts), *remarks])))


def make_table(
    title: str,
    comparison: Comparison,
    wanted: Sequence[Wanted],
    printed: Mapping[str, Mapping[str, str]] | None = None,
    expected: Mapping[str, str] = paper.TITLES,
    planned: Collection[str] = (),
) -> ComparisonTable:
    """Makes a table of what the autoencoders have; columns that nobody has are left out.

    Below each row is the paper's (`printed`, by autoencoder and column). Rows of `expected` titles that are
    not there are named, those that are `planned` alone where that is known.
    """
    columns = find_columns(comparison, wanted)
    values = pivot(comparison, columns)
    seeds = {variant.name: len(variant.units) for variant in comparison.variants}
    texts = pd.DataFrame(
        {k: _texts(column, values, k, seeds) for k, column in enumerate(columns)}, index=list(seeds)
    )
    texts = texts[values["mean"].notna().any(axis=1)]
    mean, std, marks = (values[kind].loc[texts.index] for kind in ("mean", "std", "trained_on_metric"))
    best = pd.DataFrame({k: _best(texts[k], mean[k], c.better) for k, c in enumerate(columns)}, texts.index)
    shown = texts.where(~best, "**" + texts + "**") + marks.map(lambda mark: DAGGER if mark else "")
    own = {} if expected is paper.TITLES else expected
    titles = {v.name: own.get(v.name, v.title) for v in comparison.variants if v.name in texts.index}
    rows: list[tuple[str, list[str]]] = []
    for name, shown_title in titles.items():
        rows.append((shown_title, [str(seeds[name]), *shown.loc[name]]))
        theirs = [_printed((printed or {}).get(name, {}), column, columns) for column in columns]
        rows.append((_IN_THE_PAPER, ["", *(f"*{text}*" if text else "" for text in theirs)]))
    rows.append((_FLOOR, ["", *_floor(comparison, columns)]))
    rows = [(name, cells) for name, cells in rows if any(cells)]
    notes = [f"{DAGGER} {TRAINED_ON}."] if marks.to_numpy().any() else []
    notes += footnotes([column.name for column in columns])
    notes += _floor_notes(comparison, columns)
    if 1 in [seeds[name] for name in titles]:
        notes.insert(0, "Rows of 1 seed: one seed, no spread.")
    frame = pd.DataFrame(
        [cells for _, cells in rows],
        index=[name for name, _ in rows],
        columns=["seeds", *(column.heading for column in columns)],
    )
    awaited = {name: text for name, text in expected.items() if not planned or name in planned}
    missing = [text for name, text in awaited.items() if name not in titles]
    shown_table = Table(frame, frozenset({"seeds"}))
    return ComparisonTable(title, columns, mean, std, best, titles, shown_table, missing, notes)


def pivot(comparison: Comparison, columns: Sequence[Column]) -> dict[str, pd.DataFrame]:
    """Returns `mean`, `std`, `count` and `trained_on_metric` by autoencoder's name and column's number."""
    stats, names = comparison.stats().sort_index(), [variant.name for variant in comparison.variants]

    def of(kind: str) -> pd.DataFrame:
        found = {
            k: stats.loc[(column.wanted.measurement, column.name), kind] for k, column in enumerate(columns)
        }
        return pd.DataFrame(found, index=names)

    divisors = [column.wanted.divisor for column in columns]
    return {
        "mean": of("mean").astype(float) / divisors,
        "std": of("std").astype(float) / divisors,
        "count": of("count"),
        "trained_on_metric": of("trained_on_metric").eq(True),
    }


def _texts(column: Column, values: Mapping[str, pd.DataFrame], k: int, seeds: Mapping[str, int]) -> list[str]:
    """Returns the cells of a column."""
    texts = []
    for name, mean, std, count in zip(
        seeds, *(values[kind][k] for kind in ("mean", "std", "count")), strict=True
    ):
        if pd.isna(mean):
            texts.append("—")
            continue
        exact = column.wanted.counted and not std > 0
        text = format_value(mean) if exact else format_spread(mean, std)
        texts.append(text + (f" (n = {count:.0f})" if count < seeds[name] else ""))
    return texts


def _best(texts: pd.Series, means: pd.Series, better: str) -> pd.Series:
    """Marks the best mean; those that are shown alike are equal, and where all are, none is best.

    Means with deviations, which say where each one's digits end, are compared at the fewest digits of any.
    """
    leading = texts.str.split(r" ±| \(n", regex=True).str[0]
    spread = leading[texts.str.contains("±") & ~texts.str.contains(r"×|± 0(?: |$)")]
    digits = pd.Series([len(text.partition(".")[2]) for text in spread], dtype=float).min()
    values = leading if pd.isna(digits) else means.round(int(digits))
    shown = {value: mean for value, mean in zip(values, means, strict=True) if pd.notna(mean)}
    if better not in ARROWS or len(shown) < 2:
        return pd.Series(False, texts.index)
    return values == (max if better == "higher" else min)(shown, key=lambda value: shown[value])


def _printed(own: Mapping[str, str], column: Column, columns: Sequence[Column]) -> str:
    """Returns the paper's metric; by its name, where ours is another, or of another network's features."""
    wanted = column.wanted
    if wanted.paper in own:
        kind, _, network = column.name.partition("-")
        same = kind == wanted.paper.removeprefix("g") and network not in FEATURES
        return own[wanted.paper] if same else f"{wanted.paper} {own[wanted.paper]}"
    if wanted.order_of in own and wanted.order_of not in {column.wanted.paper for column in columns}:
        return f"{wanted.order_of} {own[wanted.order_of]}"
    return ""


def _floor(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    """Returns one half of the real images against the other, where that was measured."""
    floor = comparison.metrics[comparison.metrics.measurement == "floor"]
    means = floor.astype({"value": float}).groupby("name")["value"].mean()
    names = [f"floor {c.name}" if c.wanted.measurement == "samples" else "" for c in columns]
    return [format_value(float(means[name])) if name in means.index else "" for name in names]


def _floor_notes(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    """Says what precision's and recall's floor was measured on: they depend on the numbers of images."""
    shares = [f"floor {column.name}" for column in columns if column.wanted.share]
    metrics = comparison.metrics[comparison.metrics.measurement == "floor"]
    of = metrics[metrics["name"].isin(shares)]
    return [
        f"Precision and recall depend on the numbers of images; between real halves: {counts}."
        for counts in dict.fromkeys(of.counts)
    ]
