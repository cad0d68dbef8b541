"""The comparison's report: tables, plots and pictures of whatever units a folder holds so far."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ldmae.core.files import atomic_path, write_json, write_text
from ldmae.report import mosaics, paper, plots, ranking, tables
from ldmae.report.data import (
    ABLATION,
    AUTOENCODERS,
    Comparison,
    cut,
    mapping,
    read_comparison,
    read_json,
    records,
)
from ldmae.report.facts import against_the_paper, commands, gather_facts, missing_units, seeds_line, summarise
from ldmae.report.formatting import join_words
from ldmae.report.grids import encode_picture
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
_MAX_PROBLEMS = 200
"""Sentences on what is left out that are shown at most."""
_CAPTIONS = {
    "reconstructions": "The held-out images with the strongest coarse edges, reconstructed by each "
    "autoencoder. Beside each image its box, magnified without smoothing: where the original has most edges.",
    "components": "The first three principal components of each autoencoder's own latents as red, green and "
    "blue. Equal colours mean similar latents within a row, not between rows.",
    "interpolation": "From one held-out image to another along the straight line between their latents: the "
    "originals at both ends, decoded images at each t.",
    "samples": "Generated images of the same classes, by the same diffusion model trained on each "
    "autoencoder's latents. Unselected: the first ones of each class. Below them held-out images of any "
    "class.",
}
_MEANS = "Means ± sample standard deviations over seeds; bold is the best mean."


@dataclass(frozen=True)
class _Plot:
    file: str
    title: str
    figure: Figure | None
    said: str
    """What it shows, or why it is not there."""


@dataclass(frozen=True)
class _Page:
    """What the page and the Markdown say, in words and tables."""

    title: str
    facts: list[tuple[str, str]]
    against: str
    tables: dict[str, ComparisonTable]
    orders: list[ranking.Agreement]
    ablation_order: str
    missing: list[str]


def render_comparison(folder: Path, title: str | None = None) -> Path:
    """Writes a comparison's report from `units/VARIANT/seed-N/`, each file atomically.

    `comparison.html` needs no other file and is under 5 MB; `tables.md` has the same tables, and each plot
    and picture is a PNG beside it. It shows what there is and says what is missing and what can't be read.
    The same units give the same bytes.

    Args:
        folder: the comparison's results.
        title: heading; named after the preset where it is None.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    problems: list[str] = []
    whole = read_comparison(folder, problems)
    plan = mapping(read_json(folder / "comparison.json", problems))
    compared, groups = whole.select(AUTOENCODERS), (AUTOENCODERS, ABLATION)
    problems += [
        f"{variant.title} is left out: its group is {cut(variant.group, 40)}, not {' or '.join(groups)}"
        for variant in whole.variants
        if variant.group not in groups
    ]
    drawn = _plots(compared)
    shown = mosaics.make_mosaics(compared.variants, problems)
    made = _tables(compared, whole.select(ABLATION), plan)
    ablation = ranking.agreements(made["ablation"], paper.ABLATION) if "ablation" in made else []
    page = _Page(
        title=title or _title(whole, plan),
        facts=gather_facts(whole, plan),
        against=against_the_paper(whole, [made["reconstruction"], made["generation"]]),
        tables=made,
        orders=[
            *ranking.agreements(made["reconstruction"], paper.RECONSTRUCTION),
            *ranking.agreements(made["generation"], paper.GENERATION),
        ],
        ablation_order=ranking.summary(ablation),
        missing=[*missing_units(whole.variants, plan), *_missing_figures(drawn, shown)],
    )
    context = vars(page) | {
        "missing_units": page.missing,
        "lead": _lead(compared, page),
        "problems": problems[:_MAX_PROBLEMS],
        "more_problems": max(0, len(problems) - _MAX_PROBLEMS),
        "beyond": any(name not in paper.ABLATION_TITLES for name in _titles(made.get("ablation"))),
        "cost": tables.Table(paper.COST),
        "cost_note": paper.COST_NOTE,
        "order_table": ranking.order_table(page.orders) if page.orders else None,
        "chance": ranking.chance_of_full_agreement(len(paper.TITLES)),
        "plots": {plot.file: _shown(plot) for plot in drawn},
        "captions": _CAPTIONS,
        "seed": shown.seed,
        "commands": commands(whole, plan),
    }
    write_text(folder / "tables.md", _markdown(page))
    write_json(folder / "summary.json", summarise(whole))
    for plot in drawn:
        _save_plot(plot, folder / f"{plot.file}.png")
    mosaics.save_mosaics(shown, folder)
    path = folder / "comparison.html"
    write_page(path, "comparison.html.j2", context, lambda budget: {"pictures": _encoded(shown, budget)})
    return path


def _tables(compared: Comparison, ablated: Comparison, plan: dict[str, Any]) -> dict[str, ComparisonTable]:
    made = {
        "reconstruction": make_table("Reconstruction", compared, tables.RECONSTRUCTION, paper.RECONSTRUCTION),
        "generation": make_table("Generation", compared, tables.GENERATION, paper.GENERATION),
        "cost": make_table("Cost", compared, tables.COST),
        "ablation": make_table(
            "Ablation", _ablation(compared, ablated), tables.ABLATION, paper.ABLATION, paper.ABLATION_TITLES
        ),
        "smoothness": make_table("Smoothness", compared, _smoothness_metrics(compared)),
        "compression": make_table("Perceptual compression", compared, tables.COMPRESSION),
    }
    planned = {str(entry.get("variant")) for entry in records(plan.get("units"))}
    if planned and not ablated.variants and planned <= set(paper.TITLES):
        del made["ablation"]  # nobody asked for one
    return made


def _ablation(compared: Comparison, ablated: Comparison) -> Comparison:
    """Returns the ablation's rows: the paper's steps, VMAE itself (+ L_P) at their seeds, and others."""
    whole = compared.only(list(paper.ABLATION_TITLES), {s for v in ablated.variants for s in v.seeds})
    return ablated.joined(whole, [*paper.ABLATION_TITLES, *(v.name for v in ablated.variants)])


def _smoothness_metrics(comparison: Comparison) -> list[Wanted]:
    """Returns the area, and every metric at the largest noise that was measured."""
    sizes = plots.noise_curves(comparison).eps
    noisy = [Wanted("smoothness", rf".*\(eps={max(sizes):g}\)")] if len(sizes) else []
    return [tables.AREA, *noisy, *tables.BETWEEN]


def _plots(compared: Comparison) -> list[_Plot]:
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
    return [
        _Plot(
            "metrics",
            "Metrics of each autoencoder",
            plots.dots(columns, values["mean"], values["std"], variants) if columns else None,
            means if columns else "no autoencoder is measured yet",
        ),
        _Plot("radar", "The properties together", figure, said),
        _Plot(
            "smoothness",
            "Metrics over latent noise",
            plots.smoothness(curves, variants) if len(curves) else None,
            over if len(curves) else "no autoencoder's smoothness is measured yet",
        ),
        _Plot(
            "compression",
            "σ² against ρ",
            plots.compression(levels, variants) if len(levels) else None,
            at if len(levels) else "no autoencoder's σ² and ρ are measured yet",
        ),
    ]


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


def _missing_figures(drawn: Sequence[_Plot], shown: mosaics.Mosaics) -> list[str]:
    missing = [f"{plot.file}.png: {plot.said}" for plot in drawn if plot.figure is None]
    return missing + [
        f"{name}.png: no unit has such images"
        for name, picture in shown.pictures().items()
        if picture is None
    ]


def _title(comparison: Comparison, plan: dict[str, Any]) -> str:
    presets = [unit.record.get("preset") for variant in comparison.variants for unit in variant.units]
    preset = plan.get("preset") or (presets[0] if presets else None)
    return f"Autoencoders compared: {preset}" if isinstance(preset, str) else "Autoencoders compared"


def _titles(table: ComparisonTable | None) -> Mapping[str, str]:
    return {} if table is None else table.titles


def _lead(compared: Comparison, page: _Page) -> str:
    variants = compared.variants
    if not variants:
        return "No autoencoder of this comparison is done yet."
    sentences = [
        f"{join_words([variant.title for variant in variants])}, each with a diffusion model of its own on "
        f"its latents ({seeds_line(variants)})."
    ]
    columns = [
        table.best[k]
        for table in (page.tables["reconstruction"], page.tables["generation"])
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
    agreed = ranking.summary(page.orders)
    return " ".join([*sentences, *([f"{agreed}."] if agreed else [])])


def _markdown(page: _Page) -> str:
    """Returns all that a comparison says in words and tables as Markdown."""
    text = tables.escaped
    parts = [f"# {text(page.title)}", "\n".join(f"- {name}: {text(said)}" for name, said in page.facts)]
    parts.append(text(f"{_MEANS} {page.against}"))
    for name, table in page.tables.items():
        parts.append(table.markdown())
        if name == "ablation" and page.ablation_order:
            parts.append(f"{page.ablation_order}, within the ablation.")
        if name == "cost":
            parts += ["### At the paper's size", tables.Table(paper.COST).markdown(), paper.COST_NOTE]
    parts.append("## Does the paper's ranking hold?")
    if page.orders:
        parts += [f"{text(ranking.summary(page.orders))}.", ranking.order_table(page.orders).markdown()]
    else:
        parts.append("A ranking needs three autoencoders.")
    if page.missing:
        parts += ["## Not done yet", "\n".join(f"- {text(each)}" for each in page.missing)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _shown(plot: _Plot) -> dict[str, Any]:
    if plot.figure is None:
        return {"said": plot.said, "light": "", "title": plot.title}
    return chart(plot.figure, plot.title, plot.said) | {"said": plot.said}


def _save_plot(plot: _Plot, path: Path) -> None:
    if plot.figure is None:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        plot.figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def _encoded(shown: mosaics.Mosaics, budget: int) -> dict[str, Any]:
    return {
        name: encode_picture(picture, budget) if picture else None
        for name, picture in shown.pictures().items()
    }
