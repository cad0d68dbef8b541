"""The comparison's tables: a row an autoencoder, a column a figure, beside them the paper's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ldmae.report import paper
from ldmae.report.formatting import format_spread, format_value
from ldmae.report.units import DAGGER, Spread, Variant, measured_names, spread_of

ARROWS = {"higher": "↑", "lower": "↓"}
FLOOR = "real half against real half"
NOTHING = 0.02
"""A column of shares of images whose means are all below it says nothing: they are of a few images each."""
FOOTNOTES = {
    "ST-LPIPS": "ST-LPIPS is the shift-tolerant perceptual metric with its own weights (ECCV 2022). "
    "It is not LPIPS: it is not comparable with LPIPS in papers.",
    "efficientnet": "Measured on features of EfficientNet, not of Inception. "
    "It is not comparable with FID or KID in papers, only with metrics on the same features.",
}
"""What a reader must be told of a metric, by a part of its name."""
LEVELS = ("object", "part", "pattern")


@dataclass(frozen=True)
class Metric:
    """A figure to look for: names differ with the network that was used, so they are found by a pattern."""

    measurement: str
    pattern: str
    """Matches the whole name."""
    paper: str = ""
    """The paper's column that is the same figure."""
    order_of: str = ""
    """The paper's column whose order ours is compared with, where it is not the same figure."""
    divisor: float = 1.0
    unit: str = ""
    counted: bool = False
    """Whether it is counted, not measured, so that equal values at all seeds need no spread."""
    share: bool = False
    """Whether it is a share of images, in [0, 1]."""


PERCEPTUAL = r".*LPIPS-\w+"
RECONSTRUCTION = (
    Metric("reconstruction", "L1", "L1"),
    Metric("reconstruction", "PSNR", "PSNR", unit="dB"),
    Metric("reconstruction", "SSIM", "SSIM"),
    Metric("reconstruction", PERCEPTUAL, "LPIPS"),
    Metric("reconstruction", r"rFI?D(-.*)?", "rFID"),
    Metric("reconstruction", r"rKID(-.*)?", order_of="rFID"),
)
GENERATION = (
    Metric("samples", r"FI?D(-.*)?", "gFID"),
    Metric("samples", r"KID(-.*)?", order_of="gFID"),
    Metric("samples", r"MIND(-.*)?"),
    Metric("samples", r"sFI?D(-.*)?", "sFID"),
    Metric("samples", r"IS(-.*)?", "IS"),
    Metric("samples", r"precision(-.*)?", "precision", share=True),
    Metric("samples", r"recall(-.*)?", "recall", share=True),
)
BETWEEN = (Metric("ifid", r"iFI?D(-.*)?"), Metric("ifid", r"iKID(-.*)?"))
AREA = Metric("smoothness", r".*-AUC")
ABLATION = (*RECONSTRUCTION[1:], *GENERATION[:3], AREA, *BETWEEN)
COST = (
    Metric("efficiency", "parameters", unit="M", divisor=1e6, counted=True),
    Metric("efficiency", "weights", unit="MiB", divisor=2**20, counted=True),
    Metric("efficiency", "FLOPs", unit="G", divisor=1e9, counted=True),
    Metric("efficiency", "encode rate", unit="images/s"),
    Metric("efficiency", "decode rate", unit="images/s"),
    Metric("efficiency", "encode memory", unit="MiB", divisor=2**20),
    Metric("efficiency", "decode memory", unit="MiB", divisor=2**20),
    Metric("time", "autoencoder training", unit="s"),
    Metric("time", "diffusion training", unit="s"),
)
COMPRESSION = (
    *(Metric("compression", rf"sigma2\({level}\)") for level in LEVELS),
    *(Metric("compression", rf"rho\({level}\)") for level in LEVELS),
    Metric("probe", "linear-probe-accuracy"),
    Metric("probe", "linear-probe-balanced-accuracy"),
)
SYMBOLS = {"sigma2": "σ²", "rho": "ρ", "linear-probe-": "probe "}


@dataclass(frozen=True)
class Column:
    """A figure that at least one autoencoder has."""

    metric: Metric
    name: str
    """As measured."""
    title: str
    """As shown."""
    better: str
    on: str
    """On how much it was measured, and its notes."""

    @property
    def heading(self) -> str:
        """The title with its unit and the arrow that points to the better."""
        unit = f"({self.metric.unit})" if self.metric.unit else ""
        return "\u00a0".join(
            filter(None, [" ".join(filter(None, [self.title, unit])), ARROWS.get(self.better)])
        )


@dataclass
class Cell:
    """One autoencoder's figure."""

    text: str = "—"
    spread: Spread | None = None
    best: bool = False
    mark: str = ""
    paper: str = ""


@dataclass
class Row:
    """One autoencoder."""

    variant: str
    title: str
    seeds: str
    cells: list[Cell] = field(default_factory=list)


@dataclass
class Table:
    """What a table of the comparison says."""

    title: str
    columns: list[Column]
    rows: list[Row]
    missing: list[str]
    """Titles of the rows for which nothing is there."""
    floor: Row | None = None
    """One half of the real images against the other, where that was measured."""

    @property
    def has_paper(self) -> bool:
        """Whether the paper has figures for it."""
        return any(cell.paper for row in self.rows for cell in row.cells)

    @property
    def footnotes(self) -> list[str]:
        """What a reader must be told of its figures."""
        names = " ".join(column.name.lower() for column in self.columns)
        return [text for part, text in FOOTNOTES.items() if part.lower() in names]

    @property
    def marked(self) -> bool:
        """Whether a figure bears the dagger."""
        return any(cell.mark for row in self.rows for cell in row.cells)

    def says_nothing(self, column: int) -> bool:
        """Returns whether a column holds shares of images of which every mean is next to 0."""
        spreads = [row.cells[column].spread for row in self.rows]
        means = [spread.mean for spread in spreads if spread]
        return self.columns[column].metric.share and max(means, default=0) < NOTHING


def find_columns(variants: Sequence[Variant], metrics: Sequence[Metric]) -> list[Column]:
    """Returns a column for every name that a metric's pattern matches; figures of two networks never mix."""
    columns = []
    for metric in metrics:
        for name in measured_names(variants, metric.measurement):
            if re.fullmatch(metric.pattern, name):
                columns.append(_column(variants, metric, name))
    return columns


def _column(variants: Sequence[Variant], metric: Metric, name: str) -> Column:
    known = [figure for variant in variants for figure in variant.figures(metric.measurement, name)]
    better = next((figure.better for figure in known if figure.better), "")
    notes = list(dict.fromkeys(figure.note for figure in known if figure.note))
    counts = list(dict.fromkeys(", ".join(figure.counts) for figure in known if figure.counts))
    if len(notes) > 3:  # such as a deviation that each has of its own
        notes = [f"{notes[0]} (each one's own note differs)"]
    title = re.sub(r"\(eps=(.+)\)", r" at ε = \1", name)
    for plain, symbol in SYMBOLS.items():
        title = symbol + title.removeprefix(plain) if title.startswith(plain) else title
    return Column(metric, name, title, better, "; ".join([" or ".join(counts), *notes]).strip("; "))


def make_table(
    title: str,
    variants: Sequence[Variant],
    metrics: Sequence[Metric],
    figures: Mapping[str, Mapping[str, str]] | None = None,
    expected: Mapping[str, str] = paper.TITLES,
) -> Table:
    """Makes a table of what the autoencoders have.

    Args:
        title: the table's.
        variants: the rows.
        metrics: the columns, left out where nobody has them.
        figures: the paper's, by autoencoder and column.
        expected: titles of the rows that the paper has; those that are not there are named.
    """
    columns = find_columns(variants, metrics)
    rows = []
    for variant in variants:
        own = (figures or {}).get(variant.name, {})
        cells = [_cell(variant, column, _printed(own, column.metric, columns)) for column in columns]
        if any(cell.spread for cell in cells):
            shown = variant.title if expected is paper.TITLES else expected.get(variant.name, variant.title)
            rows.append(Row(variant.name, shown, seeds_text(len(variant.units)), cells))
    for k, column in enumerate(columns):
        _mark_best([row.cells[k] for row in rows], column.better)
    there = {row.variant for row in rows}
    missing = [name for key, name in expected.items() if key not in there]
    return Table(title, columns, rows, missing, _floor(variants, columns))


def _floor(variants: Sequence[Variant], columns: Sequence[Column]) -> Row | None:
    """Returns the row of real images against real ones; None where no column has such a figure."""
    cells = []
    for column in columns:
        names = [column.name] if column.metric.measurement == "samples" else []
        known = [f.value for v in variants for name in names for f in v.figures("floor", f"floor {name}")]
        spread = spread_of(known)
        cells.append(Cell(format_value(spread.mean), spread) if spread else Cell(""))
    return Row("floor", FLOOR, "", cells) if any(cell.spread for cell in cells) else None


def _printed(own: Mapping[str, str], metric: Metric, columns: Sequence[Column]) -> str:
    """Returns the paper's figure: the same one, or by its name the one whose order ours is compared with."""
    if metric.paper:
        return own.get(metric.paper, "")
    if metric.order_of in own and metric.order_of not in {column.metric.paper for column in columns}:
        return f"{metric.order_of} {own[metric.order_of]}"
    return ""


def _cell(variant: Variant, column: Column, printed: str) -> Cell:
    metric = column.metric
    spread = variant.spread(metric.measurement, column.name)
    if spread is None:
        return Cell(paper=printed)
    spread = Spread(spread.mean / metric.divisor, spread.deviation / metric.divisor, spread.count)
    counted = metric.counted and not spread.deviation
    text = format_value(spread.mean) if counted else format_spread(spread.mean, spread.deviation)
    if spread.count < len(variant.units):
        text += f" (n = {spread.count})"
    mark = DAGGER if variant.trained_on(metric.measurement, column.name) else ""
    return Cell(text, spread, False, mark, printed)


def _mark_best(cells: list[Cell], better: str) -> None:
    """Marks the best mean; those that are shown alike are equal, and where all are, none is best."""
    means = {cell.text: cell.spread.mean for cell in cells if cell.spread}
    if better not in ARROWS or len(means) < 2:
        return
    best = (max if better == "higher" else min)(means, key=means.__getitem__)
    for cell in cells:
        cell.best = cell.text == best


def seeds_text(count: int) -> str:
    """Returns on how many seeds a row stands."""
    return "one seed, no spread" if count == 1 else f"{count} seeds"
