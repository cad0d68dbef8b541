"""The comparison's report: tables, plots and pictures of whatever units a folder holds so far."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from ldmae.config import schema
from ldmae.core.files import atomic_path, write_json, write_text
from ldmae.report import paper, plots, ranking, tables
from ldmae.report.data import (
    ABLATION,
    AUTOENCODERS,
    Comparison,
    cut,
    json_of,
    read_comparison,
    records,
)
from ldmae.report.facts import against_the_paper, commands, gather_facts, missing_units, seeds_line, summarise
from ldmae.report.formatting import join_words
from ldmae.report.grids import save_png
from ldmae.report.mosaics import make_mosaics
from ldmae.report.pages import chart, write_page
from ldmae.report.tables import DAGGER, ComparisonTable, Wanted, find_columns, make_table, pivot

_PROPERTIES = {
    "smoothness": (),  # depends on the noise that was measured
    "compression": (Wanted("compression", r"sigma2\(.*\)"), Wanted("compression", r"rho\(.*\)")),
    "reconstruction": (tables.RECONSTRUCTION[1], *tables.RECONSTRUCTION[3:]),
    "generation": tables.GENERATION[:2],
}
"""The radar's axes; σ² and ρ are means over the levels."""
_UNDER_NOISE = re.compile(r"r(FI?D|KID)(-.*)?")
"""Metrics by which smoothness is judged: of images decoded from latents with noise."""
_MEANS = "Means ± sample standard deviations over seeds; bold is the best mean."


@dataclass(frozen=True)
class _Plot:
    figure: Figure | None
    said: str
    """What it shows, or why it is not there."""


def render_comparison(folder: Path) -> Path:
    """Writes a comparison's report from `units/VARIANT/seed-N/`, each file atomically.

    `comparison.html`, whose path is returned, needs no other file and is under 5 MB; `tables.md` has the same
    tables, and each plot and picture is a PNG beside it. It shows what there is and says what is missing and
    what can't be read. The same units give the same bytes. It is named after the preset.
    """
    folder = Path(folder)
    problems: list[str] = []
    whole = read_comparison(folder, problems)
    plan = json_of(folder / "comparison.json", problems)
    compared, groups = whole.select(AUTOENCODERS), (AUTOENCODERS, ABLATION)
    problems += [
        f"{variant.title} is left out: its group is {cut(variant.group, 40)}, not {' or '.join(groups)}"
        for variant in whole.variants
        if variant.group not in groups
    ]
    drawn = _plots(compared)
    pictures, seed = make_mosaics(compared.variants, problems)
    missing = [f"{name}.png: {plot.said}" for name, plot in drawn.items() if plot.figure is None]
    missing += [f"{name}.png: no unit has such images" for name, picture in pictures.items() if not picture]
    context = _context(whole, plan) | {
        "missing_units": [*missing_units(whole.variants, plan), *missing],
        "plots": {name: _shown(plot) for name, plot in drawn.items()},
        "problems": problems,
        "seed": seed,
        "title": _title(whole, plan),
    }
    write_text(folder / "tables.md", _markdown(context))
    write_json(folder / "summary.json", summarise(whole))
    for name, content in ({name: plot.figure for name, plot in drawn.items()} | pictures).items():
        _save(content, folder / f"{name}.png")
    path = folder / "comparison.html"
    write_page(path, "comparison.html.j2", context, pictures)
    return path


def _context(whole: Comparison, plan: dict[str, Any]) -> dict[str, Any]:
    """Returns what the page and the Markdown say in words and tables."""
    compared = whole.select(AUTOENCODERS)
    made = _tables(compared, whole.select(ABLATION), plan)
    judged = [made["reconstruction"], made["generation"]]
    orders = ranking.agreements(judged[0], paper.RECONSTRUCTION)
    orders += ranking.agreements(judged[1], paper.GENERATION)
    ablation = ranking.agreements(made["ablation"], paper.ABLATION) if "ablation" in made else []
    return {
        "lead": _lead(compared, judged, ranking.summary(orders)),
        "facts": gather_facts(whole, plan),
        "against": against_the_paper(whole, judged),
        "tables": made,
        "beyond": "ablation" in made and made["ablation"].titles.keys() - paper.ABLATION_TITLES.keys(),
        "steps": "ablation" in made and made["ablation"].titles.get("vmae") != paper.TITLES["vmae"],
        "ablation_order": ranking.summary(ablation),
        "cost": tables.Table(paper.COST),
        "cost_note": paper.COST_NOTE,
        "order": ranking.summary(orders),
        "order_table": ranking.order_table(orders) if orders else None,
        "chance": f"1 in {math.factorial(len(paper.TITLES)):,}",
        "commands": commands(whole, plan),
    }


def _save(content: Figure | Image.Image | None, path: Path) -> None:
    """Writes a plot or a picture as PNG; where there is none, an old file is removed."""
    if content is None:
        path.unlink(missing_ok=True)
    elif isinstance(content, Figure):
        with atomic_path(path) as temporary:
            content.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    else:
        save_png(content, path)


def _tables(compared: Comparison, ablated: Comparison, plan: dict[str, Any]) -> dict[str, ComparisonTable]:
    planned = {str(entry.get("variant")) for entry in records(plan.get("units"))}
    table = partial(make_table, planned=planned)
    steps = paper.ABLATION_TITLES  # without the others, VMAE is no step but what is changed
    if steps.keys() & (planned | {variant.name for variant in ablated.variants}) <= {"vmae"}:
        steps = {"vmae": paper.TITLES["vmae"]}
    made = {
        "reconstruction": table("Reconstruction", compared, tables.RECONSTRUCTION, paper.RECONSTRUCTION),
        "generation": table("Generation", compared, tables.GENERATION, paper.GENERATION),
        "cost": table("Cost", compared, tables.COST),
        "ablation": table("Ablation", _ablation(compared, ablated), tables.ABLATION, paper.ABLATION, steps),
        "smoothness": table("Smoothness", compared, _smoothness_metrics(compared)),
        "compression": table("Perceptual compression", compared, tables.COMPRESSION),
    }
    if planned and not ablated.variants and planned.isdisjoint(schema.ABLATION):
        del made["ablation"]  # nobody asked for one
    return made


def _ablation(compared: Comparison, ablated: Comparison) -> Comparison:
    """Returns the ablation's rows: the paper's steps, VMAE itself (+ L_P) at their seeds, and others."""
    whole = compared.only(list(paper.ABLATION_TITLES), {s for v in ablated.variants for s in v.seeds})
    order = [*paper.ABLATION_TITLES, *(variant.name for variant in ablated.variants)]
    variants = sorted([*ablated.variants, *whole.variants], key=lambda variant: order.index(variant.name))
    return Comparison(variants, pd.concat([ablated.metrics, whole.metrics], ignore_index=True))


def _smoothness_metrics(comparison: Comparison) -> list[Wanted]:
    """Returns the area, and every metric at the largest noise that was measured."""
    sizes = plots.noise_curves(comparison).eps
    noisy = [Wanted("smoothness", rf".*\(eps={max(sizes):g}\)")] if len(sizes) else []
    return [tables.AREA, *noisy, *tables.BETWEEN]


def _plots(compared: Comparison) -> dict[str, _Plot]:
    """Returns the plots by their files' names."""
    variants = compared.variants
    names = join_words([variant.title for variant in variants])
    axes, left_out = _radar_axes(compared)
    said, figure = _radar_caption(names, axes, left_out), None
    if len(variants) < 2:
        said = "a radar needs two autoencoders, because its axes run from the worst to the best"
    elif len(axes) < 3:
        said = "a radar needs three metrics that differ between autoencoders"
    else:
        figure = plots.radar(axes, variants)
    order = ("reconstruction", "smoothness", "compression", "generation")
    wanted = [metric for name in order for metric in _PROPERTIES[name] or _smoothness_axes(compared)]
    columns = find_columns(compared, wanted)
    values = pivot(compared, columns)
    curves, levels = plots.noise_curves(compared), plots.compression_levels(compared)
    means = (
        f"Means of {names}, with standard deviations over several seeds. Each panel has its own axis; better "
        "is to the right"
    )
    over = f"{join_words(list(curves.metric.unique()))} of images decoded from latents with noise, of {names}"
    at = f"σ² against ρ of {names}, at level {join_words(list(levels.level.unique()))}"
    return {
        "metrics": _Plot(plots.dots(columns, values["mean"], values["std"], variants), means)
        if columns
        else _Plot(None, "no autoencoder is measured yet"),
        "radar": _Plot(figure, said),
        "smoothness": _Plot(plots.smoothness(curves, variants), over)
        if len(curves)
        else _Plot(None, "no autoencoder's smoothness is measured yet"),
        "compression": _Plot(plots.compression(levels, variants), at)
        if len(levels)
        else _Plot(None, "no autoencoder's σ² and ρ are measured yet"),
    }


def _radar_caption(names: str, axes: Sequence[plots.Axis], left_out: Sequence[str]) -> str:
    sentences = [f"Each axis from the worst (inner ring) to the best (rim) of {names}"]
    smooth = [axis.title for axis in axes if axis.subject == "smoothness"]
    if smooth:
        noun = "contains" if len(smooth) == 1 else "contain"
        sentences.append(f"{join_words(smooth)} {noun} what reconstruction without noise costs, too")
    taught: dict[str, list[str]] = {}
    for axis in axes:
        if axis.taught:
            taught.setdefault(join_words(axis.taught), []).append(axis.title)
    for who, titles in taught.items():
        sentences.append(f"{DAGGER} trained on {join_words(titles)}: {who}")
    if left_out:
        sentences.append(f"Left out: {'; '.join(left_out)}")
    return ". ".join(sentences)


def _smoothness_axes(comparison: Comparison) -> list[Wanted]:
    """Returns the distances of features at the largest noise that all have; without any, the area.

    The area is of a perceptual distance, on which some autoencoders were trained.
    """
    found = []
    for metric, curve in plots.noise_curves(comparison).groupby("metric", sort=False):
        shared = set.intersection(*(set(line) for _, line in curve.groupby("variant").eps))
        if _UNDER_NOISE.fullmatch(str(metric)) and max(shared, default=0) > 0:
            found.append(Wanted("smoothness", re.escape(f"{metric}(eps={max(shared):g})")))
    return found or [tables.AREA]


def _radar_axes(comparison: Comparison) -> tuple[list[plots.Axis], list[str]]:
    """Returns the radar's axes, and in words those that are left out.

    σ² and ρ become one axis each, the mean over the levels that all autoencoders have.
    """
    axes: list[plots.Axis] = []
    for subject, wanted in _PROPERTIES.items():
        levels: dict[str, list[plots.Axis]] = {}
        columns = find_columns(comparison, wanted or _smoothness_axes(comparison))
        values = pivot(comparison, columns)
        for k, column in enumerate(columns):
            marks = values["trained_on_metric"][k]
            taught = [variant.title for variant in comparison.variants if marks[variant.name]]
            means = {str(name): float(mean) for name, mean in values["mean"][k].dropna().items()}
            axis = plots.Axis(subject, column.title, column.better, means, taught)
            if subject != "compression":
                axes.append(axis)
            elif len(means) == len(comparison.variants):
                levels.setdefault(column.title.split("(")[0], []).append(axis)
        axes += [_mean_axis(symbol, same) for symbol, same in levels.items()]
    good, left_out = [], []
    for axis in axes:
        if len(axis.values) < 2:
            left_out.append(f"{axis.title} (one autoencoder has it)")
        elif len(set(axis.values.values())) < 2:
            left_out.append(f"{axis.title} (equal for all)")
        else:
            good.append(axis)
    return good, left_out


def _mean_axis(symbol: str, levels: Sequence[plots.Axis]) -> plots.Axis:
    if len(levels) == 1:
        return levels[0]
    means = {name: math.fsum(axis.values[name] for axis in levels) / len(levels) for name in levels[0].values}
    return plots.Axis(levels[0].subject, f"{symbol}, mean of {len(levels)} levels", levels[0].better, means)


def _title(comparison: Comparison, plan: dict[str, Any]) -> str:
    preset = plan.get("preset") or next((unit.at("preset") for unit in comparison.units), None)
    return f"Autoencoders compared: {preset}" if isinstance(preset, str) else "Autoencoders compared"


def _lead(compared: Comparison, judged: Sequence[ComparisonTable], order: str) -> str:
    variants = compared.variants
    if not variants:
        return "No autoencoder of this comparison is done yet."
    sentences = [
        f"{join_words([variant.title for variant in variants])}, each with a diffusion model of its own on "
        f"its latents ({seeds_line(variants)})."
    ]
    columns = [
        table.best[k]
        for table in judged
        for k, column in enumerate(table.columns)
        if len(table.titles) > 1 and column.better and not table.says_nothing(k)
    ]
    if columns and any(variant.name == "vmae" for variant in variants):
        led, total = paper.columns_led_by("vmae")
        leads = sum(bool(best.get("vmae")) for best in columns)
        sentences.append(
            f"VMAE has the best mean in {leads} of the {len(columns)} metrics of reconstruction and "
            f"generation; in the paper in {led} of {total}."
        )
    return " ".join([*sentences, *([f"{order}."] if order else [])])


def _markdown(page: dict[str, Any]) -> str:
    """Returns all that a comparison says in words and tables as Markdown."""
    text = tables.escaped
    parts = [f"# {text(page['title'])}", "\n".join(f"- {name}: {text(said)}" for name, said in page["facts"])]
    parts.append(text(f"{_MEANS} {page['against']}"))
    for name, table in page["tables"].items():
        parts.append(table.markdown())
        if name == "ablation" and page["ablation_order"]:
            parts.append(f"{page['ablation_order']}, within the ablation.")
        if name == "cost":
            parts += ["### At the paper's size", page["cost"].markdown(), page["cost_note"]]
    parts.append("## Does the paper's ranking hold?")
    if page["order_table"]:
        parts += [f"{text(page['order'])}.", page["order_table"].markdown()]
    else:
        parts.append("A ranking needs three autoencoders.")
    if page["missing_units"]:
        parts += ["## Not done yet", "\n".join(f"- {text(each)}" for each in page["missing_units"])]
    return "\n\n".join(filter(None, parts)) + "\n"


def _shown(plot: _Plot) -> dict[str, Any]:
    drawn = {"light": ""} if plot.figure is None else chart(plot.figure, plot.said)
    return drawn | {"said": plot.said}
