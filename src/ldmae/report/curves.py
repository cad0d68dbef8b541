"""Loss curves: every term of each stage, from a metrics file of any length."""

# n logged points of a curve

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ldmae.report.data import cut, evenly, number, read_text
from ldmae.report.formatting import format_value
from ldmae.report.pages import COLOURS, INK, chart, figure_label, new_figure, style_axes

_MAX_PANELS = 4
"""Stages whose curves are plotted at most."""
_MAX_POINTS = 400
"""Points a drawn line has at most."""
_MAX_LINES = 10
"""Lines a panel has at most."""
_LEGEND_WIDTH = 72
"""Characters that a row of a legend takes at most."""
_LARGEST = 1e30
"""Values from here on count as infinite: they would break the plot's arithmetic."""
STAGE_TITLES = {
    "autoencoder.pretraining": "Autoencoder: masked pre-training",
    "autoencoder.tuning": "Autoencoder: decoder tuning",
    "autoencoder.baseline": "Autoencoder: baseline",
    "latents": "Latents",
    "diffusion": "Diffusion model",
    "pipeline": "Pipeline",
    "samples": "Samples",
    "evaluation": "Evaluation",
    "report": "Report",
}


def loss_panels(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Returns the plots of a metrics file's stages, as the report's template shows them."""
    stages = _collect_curves(_read_metrics(read_text(path, problems) or ""))
    if len(stages) > _MAX_PANELS:
        problems.append(f"{path.name} holds {len(stages):,} stages; {_MAX_PANELS} are plotted")
    panels = []
    for name, stage in list(stages.items())[:_MAX_PANELS]:
        steps, values = _points(stage, "training", "loss")
        title, ends = STAGE_TITLES.get(name, name), ""
        if len(values):
            first, last = (format_value(float(values[i])) for i in (0, -1))
            ends = f": from {first} to {last} at step {int(steps[-1]):,}"
        drawn = chart(_loss_curves(stage), f"Loss curves of {title}{ends}")
        panels.append(drawn | {"title": cut(title), "unusable": int(stage.value.isna().sum())})
    return panels


def _read_metrics(text: str) -> Iterator[dict[str, Any]]:
    """Yields the lines of a metrics file that are whole; the last may be half-written during a run."""
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _collect_curves(metrics: Iterable[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """Sorts logged records into curves, by stage in the order of a run.

    Args:
        metrics: records as the training loop logs them: `stage`, `step`, and `loss` and `terms`, or
            `validation` with these.

    Returns:
        `kind` (`training` or `validation`), `name` (`loss` or a term), `step` and `value`, nan where it is no
        number below 1e30; of a step logged twice (a resumed run) the last counts.
    """
    rows = [
        (record.get("stage"), kind, str(name), _number(record.get("step")), _number(value))
        for record in metrics
        for kind, part in (("training", record), ("validation", record.get("validation")))
        for name, value in _named(part).items()
    ]
    frame = pd.DataFrame(rows, columns=["stage", "kind", "name", "step", "value"])
    frame = frame[frame.stage.map(lambda stage: isinstance(stage, str)).astype(bool)].dropna(subset="step")
    frame = frame.drop_duplicates(["stage", "kind", "name", "step"], keep="last")
    stages = dict(list(frame.sort_values("step", kind="stable").groupby("stage")))
    order = sorted(
        dict.fromkeys([*STAGE_TITLES, *frame.stage]), key=lambda name: not name.startswith("autoencoder.")
    )
    return {name: stages[name] for name in order if name in stages}


def _named(record: Any) -> dict[str, Any]:
    """Returns a record's loss and terms by name."""
    if not isinstance(record, Mapping):
        return {}
    terms = record.get("terms")
    loss = {"loss": record["loss"]} if "loss" in record else {}
    return loss | (dict(terms) if isinstance(terms, Mapping) else {})


def _number(value: Any) -> float:
    known = number(value)
    return math.nan if known is None or abs(known) >= _LARGEST else known


def _points(curves: pd.DataFrame, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and values of one curve that can be drawn; see `_collect_curves`."""
    found = curves[(curves.kind == kind) & (curves.name == name)].dropna()
    return found.step.to_numpy(), found.value.to_numpy()


def _loss_curves(curves: pd.DataFrame) -> Figure:
    """Plots a stage's loss and its unweighted terms over the steps.

    There are two axes where terms are of very different size. Raw values are faint below their moving mean
    (over 5 % of the points), circles are validation. Lines are thinned to 400 points; peaks survive it.
    """
    groups = _groups(curves)
    names = [name for group in groups for name in group]
    terms = [name for name in names if name != "loss"]
    figure = new_figure(4.6, 4.2 if any(len(group) > 1 for group in groups) else 3.0)
    ratios = [2 if len(group) > 1 else 1 for group in groups]
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for ax, group in zip(axes, groups, strict=True):
        style_axes(ax)
        handles, values = [], [np.empty(0)]
        for name in group:
            place = terms.index(name) if name in terms else 0
            colour = INK if name == "loss" else COLOURS[place % len(COLOURS)]
            dashes = "-" if place < len(COLOURS) else "--"
            values.append(_draw_line(ax, *_points(curves, "training", name), colour, dashes))
            values.append(_draw_dots(ax, *_points(curves, "validation", name), colour))
            handles.append(Line2D([], [], color=colour, linestyle=dashes, label=figure_label(name)))
        if ax is axes[0] and "validation" in curves.kind.values:
            dot = {"marker": "o", "markersize": 4, "markeredgecolor": INK, "markerfacecolor": "none"}
            handles.append(Line2D([], [], linestyle="", label="validation", **dot))
        logarithmic = _set_scale(ax, np.concatenate(values))
        subject = "loss and terms" if len(group) > 1 else figure_label(group[0])
        ax.set_ylabel(subject + (" (log)" if logarithmic else ""), color=INK, fontsize=9)
        _add_legend(ax, handles)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    left_out = curves.name.nunique() - len(names)
    note = f" ({left_out} more terms are not shown)" if left_out and len(names) == _MAX_LINES else ""
    axes[-1].set_xlabel("step" + note, color=INK, fontsize=9)
    return figure


def _groups(curves: pd.DataFrame) -> list[list[str]]:
    """Splits a stage's curves where their sizes have a gap of 30 times; the loss is in the first group."""
    names = list(curves.sort_values("kind", kind="stable").name.unique())  # training's first
    if len(names) == 2 and "loss" in names:  # the loss is its only term: one line says it
        a, b = (_points(curves, "training", name)[1] for name in names)
        if a.shape == b.shape and np.allclose(a, b):
            names = ["loss"]
    names = sorted(names, key=lambda name: name != "loss")[:_MAX_LINES]
    sizes = {}
    for name in names:
        values = _points(curves, "training", name)[1]
        values = np.abs(values if len(values) else _points(curves, "validation", name)[1])
        sizes[name] = float(np.median(values)) if values.any() else math.nan
    ranked = sorted((name for name in names if sizes[name] > 0), key=lambda name: sizes[name])
    if len(ranked) < 2:
        return [names]
    jumps = [sizes[b] / sizes[a] for a, b in itertools.pairwise(ranked)]
    gap = int(np.argmax(jumps))
    if jumps[gap] < 30:
        return [names]
    lower = set(ranked[: gap + 1])
    halves = [[name for name in names if name in lower], [name for name in names if name not in lower]]
    return sorted(halves, key=lambda half: "loss" not in half)


def _draw_line(ax: Axes, steps: np.ndarray, values: np.ndarray, colour: str, dashes: str) -> np.ndarray:
    """Draws a training curve, faint as logged and strong as smoothed, and returns its values."""
    if len(values) < 3:
        ax.plot(steps, values, color=colour, linewidth=1.5, linestyle=dashes, marker=".")
        return values
    raw = _thin_keeping_peaks(values)
    ax.plot(steps[raw], values[raw], color=colour, alpha=0.3, linewidth=0.7)
    kept = evenly(len(values), _MAX_POINTS)
    ax.plot(steps[kept], _moving_mean(values, kept), color=colour, linewidth=1.5, linestyle=dashes)
    return values


def _draw_dots(ax: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> np.ndarray:
    """Draws a validation curve and returns its values."""
    kept = evenly(len(values), 100)
    style = {"marker": "o", "markersize": 4, "markeredgewidth": 1.2, "markeredgecolor": colour}
    ax.plot(steps[kept], values[kept], linestyle="", markerfacecolor="none", zorder=3, **style)
    return values


def _moving_mean(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Averages over windows of 5 % of the points around `at`.

    Near the start, where losses fall steeply, windows narrow to stay centred; at the end they are cut off.
    """
    half = max(1, round(0.05 * len(values) / 2))
    return np.array([values[i - min(i, half) : i + min(i, half) + 1].mean() for i in at])


def _thin_keeping_peaks(values: np.ndarray) -> np.ndarray:
    """Returns the indices of at most MAX_POINTS values: the lowest and the highest of each bin."""
    if len(values) <= _MAX_POINTS:
        return np.arange(len(values))
    bins = np.array_split(np.arange(len(values)), _MAX_POINTS // 2)
    return np.unique([[part[values[part].argmin()], part[values[part].argmax()]] for part in bins])


def _set_scale(ax: Axes, values: np.ndarray) -> bool:
    """Takes a logarithmic axis for positive values that spread more than fourfold; returns whether it did."""
    logarithmic = bool(len(values)) and values.min() > 0 and values.max() > 4 * values.min()
    if logarithmic:
        decades = math.log10(values.max() / values.min())
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=8))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return logarithmic


def _add_legend(ax: Axes, handles: Sequence[Line2D]) -> None:
    if not handles:
        return
    widths = [len(str(handle.get_label())) + 6 for handle in handles]  # characters, with the line beside it
    columns = len(handles) if sum(widths) <= _LEGEND_WIDTH else max(1, _LEGEND_WIDTH // max(widths))
    ax.legend(
        handles=handles, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize=8,
        handlelength=1.2, columnspacing=1.0, borderaxespad=0.2, labelcolor=INK,
    )  # fmt: skip
