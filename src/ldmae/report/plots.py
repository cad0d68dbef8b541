"""The comparison's plots: metrics with their spread, the radar, curves over noise, σ² against ρ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ldmae.report.data import Comparison, VariantResults
from ldmae.report.pages import COLOURS, INK, figure_label, new_figure, style_axes
from ldmae.report.tables import ARROWS, DAGGER, Column

_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY = COLOURS
_LOOKS = {
    "ae": (_BLUE, "o"),
    "dae": (_SKY, "s"),
    "vae": (_GREEN, "^"),
    "sd-vae": (_PURPLE, "D"),
    "vmae": (_VERMILION, "*"),
    "": (_BLUE, "o"),
}
"""Colour and marker of each of the five, the same in every plot, and of one alone; of others see `_looks`."""
_OTHERS = ((_ORANGE, "P"), (_BLUE, "X"), (_GREEN, "v"), (_PURPLE, "<"), (_SKY, ">"))
_INNER = 0.18
"""Radius of the worst on the radar, so that polygons don't collapse into its middle."""


@dataclass(frozen=True)
class Axis:
    """One axis of the radar."""

    subject: str
    """What it is about."""
    title: str
    """The metric's name."""
    better: str
    values: dict[str, float]
    """By autoencoder's name."""
    taught: list[str] = field(default_factory=list)
    """Titles of the autoencoders that were trained on it."""

    @property
    def label(self) -> str:
        """Both names, the metric's with the dagger where an autoencoder was trained on it."""
        return f"{self.subject}\n{figure_label(self.title, 40)}{DAGGER if self.taught else ''}"


def _looks(variants: Sequence[VariantResults]) -> dict[str, tuple[str, str]]:
    """Returns colour and marker by autoencoder: fixed for the paper's five, in turn for others."""
    others = [variant.name for variant in variants if variant.name not in _LOOKS]
    return _LOOKS | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)}


def _marker(look: tuple[str, str], size: float) -> dict[str, Any]:
    colour, marker = look
    return {"color": colour, "marker": marker, "markersize": 1.7 * size if marker == "*" else size}


def _title(ax: Axes, title: str, better: str = "", size: float = 10) -> None:
    arrow = f" {ARROWS[better]}" if better in ARROWS else ""
    ax.set_title(figure_label(title, 40) + arrow, color=INK, fontsize=size, loc="left")


def _legend(figure: Figure, variants: Sequence[VariantResults]) -> None:
    drawn = _looks(variants)
    handles = [Line2D([], [], label=figure_label(v.title), **_marker(drawn[v.name], 5)) for v in variants]
    where = "outside lower center" if figure.get_layout_engine() else "lower center"
    figure.legend(
        handles=handles, ncols=min(len(handles), 5), loc=where, frameon=False, fontsize=9,
        handlelength=1.6, columnspacing=1.2, labelcolor=INK,
    )  # fmt: skip


def dots(
    columns: Sequence[Column], mean: pd.DataFrame, std: pd.DataFrame, variants: Sequence[VariantResults]
) -> Figure:
    """Draws a panel a metric: a row an autoencoder, its mean with a standard deviation over seeds.

    Means and deviations are as `tables.pivot` gives them. Each panel has its own axis, the better end on the
    right.
    """
    across = math.ceil(math.sqrt(len(columns)))
    down = math.ceil(len(columns) / across)
    figure = new_figure(1.1 + 2.6 * across, down * (0.75 + 0.27 * len(variants)) + 0.2)
    axes = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    drawn = _looks(variants)
    for ax in axes[len(columns) :]:
        ax.set_visible(False)
    for k, (ax, column) in enumerate(zip(axes, columns, strict=False)):
        style_axes(ax)
        ax.margins(x=0.12)
        for row, variant in enumerate(variants):
            value, spread = mean[k][variant.name], std[k][variant.name]
            if math.isfinite(value):
                error = spread if math.isfinite(spread) else None
                ax.errorbar(value, row, xerr=error, elinewidth=1.4, **_marker(drawn[variant.name], 6))
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.set_yticks(range(len(variants)), [figure_label(variant.title) for variant in variants], color=INK)
        if column.better == "lower":
            ax.invert_xaxis()
        ax.xaxis.set_major_locator(MaxNLocator(3))
        _title(ax, column.title, column.better, 8.5)
    return figure


def _rescaled(values: Sequence[float], better: str) -> list[float]:
    """Rescales values so that the worst becomes 0 and the best 1; they must not all be equal."""
    low, high = min(values), max(values)
    assert high > low, "equal values have no worst and best"
    shares = [(value - low) / (high - low) for value in values]
    return shares if better == "higher" else [1 - share for share in shares]


def radar(axes: Sequence[Axis], variants: Sequence[VariantResults]) -> Figure:
    """Draws each autoencoder as a polygon, every axis rescaled from the worst (inner ring) to the best (rim).

    There are three axes or more, none with all its values equal. One that an autoencoder lacks is a gap.
    """
    assert len(axes) > 2, f"a radar needs three axes, got {len(axes)}"
    figure = new_figure(6.8, 4.75, layout=None)
    ax = figure.add_axes((0.26, 0.18, 0.48, 0.48 * 6.8 / 4.75), projection="polar")
    assert isinstance(ax, PolarAxes)
    ax.set_facecolor("none")
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    angles = np.linspace(0, 2 * math.pi, len(axes), endpoint=False)
    ring = np.append(angles, 0)
    for radius, width in ((_INNER, 0.6), ((1 + _INNER) / 2, 0.6), (1, 1.0)):
        ax.plot(ring, np.full(len(ring), radius), color=INK, alpha=0.3, linewidth=width)
    for angle in angles:
        ax.plot([angle, angle], [_INNER, 1], color=INK, alpha=0.3, linewidth=0.6)
    places = {}
    for axis in axes:
        shares = _rescaled(list(axis.values.values()), axis.better)
        places[axis.title] = dict(zip(axis.values, shares, strict=True))
    drawn = _looks(variants)
    for variant in variants:
        shares = np.array([places[axis.title].get(variant.name, math.nan) for axis in axes])
        radii = _INNER + (1 - _INNER) * shares
        style = _marker(drawn[variant.name], 6)
        ours = 2.6 if variant.name == "vmae" else 1.5
        label = figure_label(variant.title)
        ax.plot(ring, np.append(radii, radii[0]), label=label, linewidth=ours, clip_on=False, **style)
        if np.isfinite(radii).all():
            ax.fill(angles, radii, color=drawn[variant.name][0], alpha=0.08, linewidth=0)
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
    _legend(figure, variants)
    return figure


def noise_curves(comparison: Comparison) -> pd.DataFrame:
    """Returns every metric that was measured at more than one size of the noise.

    Columns `metric`, `eps`, `variant`, `mean`, `std`, `better`; perceptual distances first, then PSNR.
    """
    stats = comparison.stats().reset_index()
    stats = stats[stats.measurement == "smoothness"]
    at = stats["name"].astype(str).str.extract(r"^(?P<metric>.+)\(eps=(?P<eps>[0-9.e+-]+)\)$")
    found = pd.concat([at, stats[["variant", "mean", "std", "better"]]], axis=1).dropna(subset=["eps"])
    found = found.astype({"eps": float})
    many = found.groupby(["metric", "variant"])["eps"].transform("nunique") > 1
    found = found[found.metric.isin(found.metric[many])]
    order = sorted(found.metric.unique(), key=lambda name: ("LPIPS" not in name, name != "PSNR", name))
    return found.sort_values(
        ["metric", "eps"], key=lambda of: of.map(order.index) if of.name == "metric" else of
    )


def smoothness(curves: pd.DataFrame, variants: Sequence[VariantResults]) -> Figure:
    """Draws metrics over the size of the noise, a panel each; bands are standard deviations over seeds."""
    metrics = list(curves.metric.unique())
    figure = new_figure(4.3 * len(metrics), 3.9)
    drawn = _looks(variants)
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        style_axes(ax)
        panel = curves[curves.metric == metric]
        for variant in variants:
            line = panel[panel.variant == variant.name]
            x, mean, std = (line[kind].to_numpy(float) for kind in ("eps", "mean", "std"))
            ax.plot(x, mean, linewidth=1.6, **_marker(drawn[variant.name], 4.5))
            if np.isfinite(std).any():
                colour = drawn[variant.name][0]
                ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
        _title(ax, metric, panel.better.iloc[0])
        ax.set_xlabel("latent noise ε (in standard deviations)", color=INK, fontsize=9)
    if len(variants) > 1:
        _legend(figure, variants)
    return figure


def compression_levels(comparison: Comparison) -> pd.DataFrame:
    """Returns σ² and ρ of the autoencoders that have both.

    Columns `level`, `variant`, `sigma2`, `sigma2_std`, `rho`, `rho_std`.
    """
    stats = comparison.stats().reset_index()
    stats = stats[stats.measurement == "compression"]
    at = stats["name"].astype(str).str.extract(r"^(?P<kind>sigma2|rho)\((?P<level>.+)\)$")
    found = pd.concat([at, stats[["variant", "mean", "std"]]], axis=1).dropna(subset=["level"])
    both = [found[found.kind == kind].drop(columns="kind") for kind in ("sigma2", "rho")]
    whole = both[0].merge(both[1], on=["level", "variant"], suffixes=("", "_rho"))
    return whole.set_axis(["level", "variant", "sigma2", "sigma2_std", "rho", "rho_std"], axis=1)


def compression(levels: pd.DataFrame, variants: Sequence[VariantResults]) -> Figure:
    """Draws σ² against ρ, a panel a level; the better corner is the upper left one."""
    names = list(levels.level.unique())
    figure = new_figure(4.3 * len(names), 3.9)
    there = [variant for variant in variants if variant.name in set(levels.variant)]
    drawn = _looks(variants)
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        style_axes(ax)
        ax.margins(x=0.25, y=0.18)
        for point in levels[levels.level == name].itertuples():
            error = {
                axis: None if math.isnan(std) else std
                for axis, std in (("xerr", point.sigma2_std), ("yerr", point.rho_std))
            }
            ax.errorbar(
                point.sigma2, point.rho, **error, elinewidth=1, **_marker(drawn[str(point.variant)], 7)
            )
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        _title(ax, name)
        ax.set_xlabel("within-group variance σ² ↓", color=INK, fontsize=9)
        ax.set_ylabel("separability ρ ↑", color=INK, fontsize=9)
    if len(variants) > 1:
        _legend(figure, there)
    return figure
