"""Loss curves: a panel a stage, every term, from a metrics file of any length."""

# n logged points of a curve

from __future__ import annotations

import io
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

MAX_POINTS = 400
"""Points a drawn line has at most."""
MAX_LINES = 10
"""Lines a panel has at most."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, told apart with any colour vision; a line beyond it is dashed."""
STAGE_TITLES = {
    "autoencoder.pretraining": "Autoencoder: masked pre-training",
    "autoencoder.tuning": "Autoencoder: decoder tuning",
    "latents": "Latents",
    "diffusion": "Diffusion model",
    "pipeline": "Pipeline",
    "samples": "Samples",
    "evaluation": "Evaluation",
    "report": "Report",
}


@dataclass
class Curve:
    """The logged points of one loss or term."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps and finite values, by step; a step logged twice (a resumed run) counts as logged last."""
        steps, values = np.array(self.steps), np.array(self.values)
        steps, last = np.unique(steps[::-1], return_index=True)
        values = values[::-1][last]
        finite = np.isfinite(values)
        return steps[finite], values[finite]


@dataclass
class StageCurves:
    """All curves of a stage, by name, `loss` among them."""

    training: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, Curve] = field(default_factory=dict)


def read_metrics(path: Path | str) -> Iterator[dict[str, Any]]:
    """Yields the lines of a metrics file that are whole; the last may be half-written while a run goes on."""
    with Path(path).open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def collect_curves(metrics: Iterable[Mapping[str, Any]]) -> dict[str, StageCurves]:
    """Sorts logged records into curves, by stage in the order of a run.

    Args:
        metrics: records as the training loop logs them: `stage`, `step`, and `loss` and `terms`, or `validation` with these.
    """
    stages: dict[str, StageCurves] = {}
    for record in metrics:
        stage, step = record.get("stage"), _number(record.get("step"))
        if not isinstance(stage, str) or not math.isfinite(step):
            continue
        curves = stages.setdefault(stage, StageCurves())
        _add(curves.training, step, record)
        _add(curves.validation, step, record.get("validation"))
    order = list(STAGE_TITLES)
    known = {name: curves for name, curves in stages.items() if curves.training or curves.validation}
    return dict(sorted(known.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _add(curves: dict[str, Curve], step: float, record: Any) -> None:
    if not isinstance(record, Mapping):
        return
    terms = record.get("terms")
    named = {"loss": record["loss"]} if "loss" in record else {}
    for name, value in (named | (dict(terms) if isinstance(terms, Mapping) else {})).items():
        curve = curves.setdefault(str(name), Curve())
        curve.steps.append(step)
        curve.values.append(_number(value))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def loss_curves(
    metrics: Iterable[Mapping[str, Any]] | Mapping[str, StageCurves], dark: bool = False, titles: bool = True
) -> Figure:
    """Plots the loss and its unweighted terms over the steps, a panel a stage.

    A panel has two axes where terms are of very different size. Raw values are faint below their moving mean (over 5 % of
    the points); points are validation. Lines are thinned to 400 points, raw ones so that peaks survive.

    Args:
        metrics: logged records (see `collect_curves`), or their curves.
        dark: light ink, for a dark page.
        titles: whether panels bear their stage's name.

    Returns:
        A figure; `figure_svg` or its own `savefig` makes a file of it.
    """
    stages = dict(metrics) if isinstance(metrics, Mapping) else collect_curves(metrics)
    stages = {name: curves for name, curves in stages.items() if isinstance(curves, StageCurves)}
    groups = {name: _groups(curves) for name, curves in stages.items()}
    height = 4.6 if any(len(group) > 1 for group in groups.values()) else 3.3
    ink = "#d8dce2" if dark else "#222222"
    figure = Figure(figsize=(5.6 * max(1, len(stages)), height), layout="constrained")
    figure.set_facecolor("none" if dark else "white")
    if not stages:
        figure.text(0.5, 0.5, "no losses logged yet", ha="center", va="center", color=ink, fontsize=10)
        return figure
    panels = np.atleast_1d(figure.subfigures(1, len(stages)))
    for panel, (name, curves) in zip(panels, stages.items(), strict=True):
        panel.set_facecolor("none" if dark else "white")
        if titles:
            title = STAGE_TITLES.get(name, name)
            panel.suptitle(_plain(title), fontsize=10, color=ink, x=0.02, ha="left")
        _draw_stage(panel, curves, groups[name], ink)
    return figure


def figure_svg(figure: Figure) -> bytes:
    """Returns a figure as SVG: text as outlines, so that it looks the same without its font; the same bytes each time."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ldmae", "svg.fonttype": "path", "text.usetex": False}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _groups(curves: StageCurves) -> list[list[str]]:
    """Splits a stage's curves in two where a gap of more than 30 times lies between their sizes; loss's group is first."""
    names = list(dict.fromkeys([*curves.training, *curves.validation]))
    if len(names) == 2 and "loss" in names:  # the loss is its only term: one line says it
        (other,) = set(names) - {"loss"}
        a, b = (curves.training.get(name, Curve()).points()[1] for name in ("loss", other))
        if a.shape == b.shape and np.allclose(a, b):
            names = ["loss"]
    names = sorted(names, key=lambda name: name != "loss")[:MAX_LINES]
    sizes = {}
    for name in names:
        values = np.abs(curves.training.get(name, curves.validation.get(name, Curve())).points()[1])
        sizes[name] = float(np.median(values)) if values.any() else math.nan
    ranked = sorted((name for name in names if sizes[name] > 0), key=lambda name: sizes[name])
    if len(ranked) < 2:
        return [names]
    jumps = [sizes[b] / sizes[a] for a, b in zip(ranked, ranked[1:], strict=False)]
    cut = int(np.argmax(jumps))
    if jumps[cut] < 30:
        return [names]
    lower = set(ranked[: cut + 1])
    halves = [[name for name in names if name in lower], [name for name in names if name not in lower]]
    return sorted(halves, key=lambda half: "loss" not in half)


def _draw_stage(panel: Any, curves: StageCurves, groups: list[list[str]], ink: str) -> None:
    names = [name for group in groups for name in group]
    ratios = [2 if len(group) > 1 else 1 for group in groups]
    axes = panel.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    left_out = len(set(curves.training) | set(curves.validation)) - len(names)
    for ax, group in zip(axes, groups, strict=True):
        _style(ax, ink)
        values = [np.empty(0)]
        for name in group:
            number = names.index(name) - ("loss" in names)
            colour = ink if name == "loss" else COLOURS[number % len(COLOURS)]
            dashes = "--" if number >= len(COLOURS) and name != "loss" else "-"
            values.append(_draw_line(ax, curves.training.get(name, Curve()), colour, dashes))
            values.append(_draw_dots(ax, curves.validation.get(name, Curve()), colour))
        logarithmic = _scale(ax, np.concatenate(values))
        subject = "loss and terms" if len(group) > 1 else _plain(group[0])
        ax.set_ylabel(subject + (" (log)" if logarithmic else ""), color=ink, fontsize=8)
        _legend(ax, ink, any(name in curves.validation for name in group))
    note = f"  ({left_out} more terms not shown)" if left_out > 0 and len(names) == MAX_LINES else ""
    axes[-1].set_xlabel("step" + note, color=ink, fontsize=8)


def _draw_line(ax: Axes, curve: Curve, colour: str, dashes: str) -> np.ndarray:
    """Draws a training curve and returns its smoothed values."""
    steps, values = curve.points()
    label = ax.get_label  # replaced below by the caller's legend through gid
    del label
    smooth = _moving_mean(values)
    marker = "." if len(values) < 3 else ""
    raw = _thin_keeping_peaks(values)
    if len(values) > 2:
        ax.plot(steps[raw], values[raw], color=colour, alpha=0.28, linewidth=0.7, label="_raw")
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).round().astype(int))
    ax.plot(steps[kept], smooth[kept], color=colour, linewidth=1.5, linestyle=dashes, marker=marker)
    return values
