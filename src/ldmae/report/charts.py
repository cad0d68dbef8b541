"""The comparison's plots: metrics with their spread, the radar, curves over noise, σ² against ρ."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ldmae.report.curves import COLOURS, INK, plain_label, style_axes
from ldmae.report.labels import NamedPoint, name_points
from ldmae.report.units import DAGGER, Spread, Variant, measured_names

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = COLOURS
LOOKS = {
    "ae": (BLUE, "o"),
    "dae": (SKY, "s"),
    "vae": (GREEN, "^"),
    "sd-vae": (PURPLE, "D"),
    "vmae": (VERMILION, "*"),
    "": (BLUE, "o"),
}
"""Colour and marker of each of the five, the same in every plot, and of one alone; of others see `looks`."""
OTHERS = ((ORANGE, "P"), (BLUE, "X"), (GREEN, "v"), (PURPLE, "<"), (SKY, ">"))
INNER = 0.18
"""Radius at which the worst lies on the radar, so that polygons don't collapse into its middle."""
AT_NOISE = re.compile(r"(.+)\(eps=([0-9.e+-]+)\)")


@dataclass(frozen=True)
class Axis:
    """One axis of the radar."""

    subject: str
    """What it is about."""
    title: str
    """The figure's name."""
    better: str
    values: dict[str, float]
    """By autoencoder's name."""
    taught: list[str] = field(default_factory=list)
    """Titles of the autoencoders that were trained on it."""

    @property
    def label(self) -> str:
        """Both names, the figure's with the dagger where an autoencoder was trained on it."""
        return f"{self.subject}\n{plain_label(self.title, 40)}{DAGGER if self.taught else ''}"


@dataclass(frozen=True)
class Dots:
    """A metric of each autoencoder, for the dot plot."""

    title: str
    better: str
    spreads: dict[str, Spread]
    """By autoencoder's name."""


def dots(panels: Sequence[Dots], variants: Sequence[Variant]) -> Figure:
    """Draws a panel a metric: a row an autoencoder, its mean with a standard deviation over seeds.

    Each panel has its own axis, the better end on the right.
    """
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    height = 0.75 + 0.27 * len(variants)
    figure = Figure(figsize=(1.1 + 2.6 * columns, rows * height + 0.2), layout="constrained")
    figure.set_facecolor("white")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    drawn = looks(variants)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, panel in zip(axes, panels, strict=False):
        style_axes(ax)
        ax.margins(x=0.12)
        for row, variant in enumerate(variants):
            spread = panel.spreads.get(variant.name)
            if spread is None:
                continue
            colour, marker = drawn[variant.name]
            error = None if math.isnan(spread.deviation) else spread.deviation
            size = 10 if marker == "*" else 6
            ax.errorbar(
                spread.mean, row, xerr=error, color=colour, marker=marker, markersize=size, elinewidth=1.4
            )
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.set_yticks(range(len(variants)), [plain_label(variant.title) for variant in variants], color=INK)
        if panel.better == "lower":
            ax.invert_xaxis()
        ax.xaxis.set_major_locator(MaxNLocator(3))
        arrow = {"higher": " ↑", "lower": " ↓"}.get(panel.better, "")
        ax.set_title(plain_label(panel.title, 36) + arrow, color=INK, fontsize=8.5, loc="left")
    return figure


def looks(variants: Sequence[Variant]) -> dict[str, tuple[str, str]]:
    """Returns colour and marker by autoencoder: fixed for the paper's five, in turn for others."""
    others = [variant.name for variant in variants if variant.name not in LOOKS]
    return LOOKS | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def rescaled(values: Sequence[float], better: str) -> list[float]:
    """Rescales figures so that the worst becomes 0 and the best 1; they must not all be equal."""
    low, high = min(values), max(values)
    assert high > low, "equal values have no worst and best"
    shares = [(value - low) / (high - low) for value in values]
    return shares if better == "higher" else [1 - share for share in shares]


def radar(axes: Sequence[Axis], variants: Sequence[Variant]) -> Figure:
    """Draws each autoencoder as a polygon, every axis rescaled from the worst (inner ring) to the best (rim).

    Args:
        axes: three or more, none with all its values equal.
        variants: those to draw. One that lacks an axis has a gap there.
    """
    assert len(axes) > 2, f"a radar needs three axes, got {len(axes)}"
    figure = Figure(figsize=(6.8, 4.75))
    figure.set_facecolor("white")
    ax = figure.add_axes((0.26, 0.18, 0.48, 0.48 * 6.8 / 4.75), projection="polar")
    assert isinstance(ax, PolarAxes)
    ax.set_facecolor("none")
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    angles = np.linspace(0, 2 * math.pi, len(axes), endpoint=False)
    ring = np.append(angles, 0)
    for radius, width in ((INNER, 0.6), ((1 + INNER) / 2, 0.6), (1, 1.0)):
        ax.plot(ring, np.full(len(ring), radius), color=INK, alpha=0.3, linewidth=width)
    for angle in angles:
        ax.plot([angle, angle], [INNER, 1], color=INK, alpha=0.3, linewidth=0.6)
    places = {}
    for axis in axes:
        shares = rescaled(list(axis.values.values()), axis.better)
        places[axis.title] = dict(zip(axis.values, shares, strict=True))
    drawn = looks(variants)
    for variant in variants:
        shares = np.array([places[axis.title].get(variant.name, math.nan) for axis in axes])
        radii = INNER + (1 - INNER) * shares
        colour, marker = drawn[variant.name]
        size = 10 if marker == "*" else 6
        ours = 2.6 if variant.name == "vmae" else 1.5
        style = {"color": colour, "marker": marker, "markersize": size, "linewidth": ours, "clip_on": False}
        ax.plot(ring, np.append(radii, radii[0]), label=plain_label(variant.title), **style)
        if np.isfinite(radii).all():
            ax.fill(angles, radii, color=colour, alpha=0.08, linewidth=0)
    ax.set_ylim(0, 1.02)
    ax.set_yticks([])
    ax.set_xticks(angles, [axis.label for axis in axes])
    for label, angle in zip(ax.get_xticklabels(), angles, strict=True):
        label.set_color(INK)
        label.set_fontsize(9)
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    ax.grid(False)
    ax.spines["polar"].set_visible(False)
    _legend(figure, [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")])
    return figure


@dataclass(frozen=True)
class NoiseCurve:
    """One figure over the size of the noise."""

    title: str
    better: str
    lines: dict[str, list[tuple[float, Spread]]]
    """By autoencoder's name: size of the noise and figure."""


def noise_curves(variants: Sequence[Variant]) -> list[NoiseCurve]:
    """Returns every figure that was measured at more than one size of the noise, over the noise."""
    found: dict[str, dict[str, dict[float, Spread]]] = {}
    better: dict[str, str] = {}
    for name in measured_names(variants, "smoothness"):
        match = AT_NOISE.fullmatch(name)
        for variant in variants if match else ():
            spread = variant.spread("smoothness", name)
            if match and spread:
                lines = found.setdefault(match[1], {})
                lines.setdefault(variant.name, {})[float(match[2])] = spread
                better[match[1]] = variant.figures("smoothness", name)[0].better
    curves = [
        NoiseCurve(
            title, better[title], {variant: sorted(points.items()) for variant, points in lines.items()}
        )
        for title, lines in found.items()
        if any(len(points) > 1 for points in lines.values())
    ]
    return sorted(curves, key=lambda curve: ("LPIPS" not in curve.title, curve.title != "PSNR", curve.title))


def smoothness(curves: Sequence[NoiseCurve], variants: Sequence[Variant]) -> Figure:
    """Draws metrics over the size of the noise, a panel each; bands are standard deviations over seeds."""
    figure = Figure(figsize=(4.3 * len(curves), 3.9), layout="constrained")
    figure.set_facecolor("white")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    drawn = looks(variants)
    for ax, curve in zip(panels, curves, strict=True):
        style_axes(ax)
        for variant in variants:
            points = curve.lines.get(variant.name, [])
            x = np.array([noise for noise, _ in points])
            mean = np.array([spread.mean for _, spread in points])
            spread = np.array([spread.deviation for _, spread in points])
            colour, marker = drawn[variant.name]
            size = 8 if marker == "*" else 4.5
            ax.plot(x, mean, color=colour, marker=marker, markersize=size, linewidth=1.6)
            if np.isfinite(spread).any():
                ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
        arrow = {"higher": " ↑", "lower": " ↓"}.get(curve.better, "")
        ax.set_title(plain_label(curve.title, 40) + arrow, color=INK, fontsize=10, loc="left")
        ax.set_xlabel("latent noise ε (in standard deviations)", color=INK, fontsize=9)
    if len(variants) > 1:
        _legend(figure, _handles(variants, drawn))
    return figure


@dataclass(frozen=True)
class Level:
    """σ² and ρ at a level, of each autoencoder."""

    name: str
    points: dict[str, tuple[Spread, Spread]]


def compression_levels(variants: Iterable[Variant]) -> list[Level]:
    """Returns σ² and ρ of the autoencoders that have both, by level."""
    variants = list(variants)
    levels = []
    for name in measured_names(variants, "compression"):
        match = re.fullmatch(r"sigma2\((.+)\)", name)
        points = {}
        for variant in variants if match else ():
            variance = variant.spread("compression", name)
            separability = variant.spread("compression", f"rho({match[1]})" if match else "")
            if variance and separability:
                points[variant.name] = (variance, separability)
        if match and points:
            levels.append(Level(match[1], points))
    return levels


def compression(levels: Sequence[Level], variants: Sequence[Variant]) -> Figure:
    """Draws σ² against ρ, a panel a level; the better corner is the upper left one."""
    figure = Figure(figsize=(4.3 * len(levels), 3.9), layout="constrained")
    figure.set_facecolor("white")
    drawn = looks(variants)
    for ax, level in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels, strict=True):
        style_axes(ax)
        ax.margins(x=0.25, y=0.18)
        for variant in variants:
            if variant.name not in level.points:
                continue
            variance, separability = level.points[variant.name]
            colour, marker = drawn[variant.name]
            ax.errorbar(
                variance.mean,
                separability.mean,
                xerr=None if math.isnan(variance.deviation) else variance.deviation,
                yerr=None if math.isnan(separability.deviation) else separability.deviation,
                color=colour,
                marker=marker,
                markersize=11 if marker == "*" else 7,
                elinewidth=1,
            )
        there = [v for v in variants if v.name in level.points]
        named = [(plain_label(v.title), *level.points[v.name], drawn[v.name][0]) for v in there]
        name_points(ax, [NamedPoint(*each) for each in named])
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set_title(plain_label(level.name), color=INK, fontsize=10, loc="left")
        ax.set_xlabel("within-group variance σ² ↓", color=INK, fontsize=9)
        ax.set_ylabel("separability ρ ↑", color=INK, fontsize=9)
    if len(variants) > 1:
        there = [v for v in variants if any(v.name in level.points for level in levels)]
        _legend(figure, _handles(there, drawn))
    return figure


def _handles(variants: Sequence[Variant], drawn: dict[str, tuple[str, str]]) -> list[Line2D]:
    handles = []
    for variant in variants:
        colour, marker = drawn[variant.name]
        size = 8 if marker == "*" else 5
        handles.append(
            Line2D([], [], color=colour, marker=marker, markersize=size, label=plain_label(variant.title))
        )
    return handles


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    where = "outside lower center" if figure.get_layout_engine() else "lower center"
    legend = figure.legend(
        handles=handles, ncols=min(len(handles), 5), loc=where, frameon=False, fontsize=9,
        handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_color(INK)
