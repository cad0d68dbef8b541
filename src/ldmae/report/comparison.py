"""The comparison's report: tables, plots and pictures of whatever units a folder holds so far."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ldmae.core.files import atomic_path, write_json, write_text
from ldmae.report import charts, mosaics, paper, ranking, tables
from ldmae.report.facts import against_the_paper, commands, gather_facts, missing_units, seeds_line
from ldmae.report.formatting import join_words
from ldmae.report.markdown import comparison_markdown
from ldmae.report.pages import chart, write_page
from ldmae.report.pictures import encode_picture
from ldmae.report.reading import cut, mapping, read_json, records
from ldmae.report.summary import summarise
from ldmae.report.tables import Metric, Table, find_columns, make_table
from ldmae.report.units import ABLATION, AUTOENCODERS, DAGGER, Variant, read_variants

PROPERTIES = {
    "smoothness": (),  # hangs on the noise that was measured
    "compression": (Metric("compression", r"sigma2\(.*\)"), Metric("compression", r"rho\(.*\)")),
    "reconstruction": (tables.RECONSTRUCTION[1], *tables.RECONSTRUCTION[3:]),
    "generation": tables.GENERATION[:2],
}
"""The radar's axes; σ² and ρ are means over the levels."""
UNDER_NOISE = re.compile(r"r(FI?D|KID)(-.*)?")
"""Figures by which smoothness is measured: of images decoded from latents with noise."""
MAX_PROBLEMS = 200
"""Sentences on what is left out that are shown at most."""
CAPTIONS = {
    "reconstructions": "The held-out images with the strongest coarse edges, reconstructed by each "
    "autoencoder. Beside each image its box, magnified without smoothing: where the original has most edges.",
    "components": "The first three principal components of each autoencoder's own latents as red, green and "
    "blue. Equal colours mean similar latents within a row, not between rows.",
    "interpolation": "From one held-out image to another along the straight line between their latents: the "
    "originals at both ends, decoded images at each t.",
    "samples": "Generated images of the same classes, by the same diffusion model trained on each "
    "autoencoder's latents, and a row of real images. Unselected: the first ones of each grid.",
}


@dataclass(frozen=True)
class _Plot:
    file: str
    title: str
    figure: Figure | None
    said: str
    """What it shows, or why it is not there."""


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
    variants = read_variants(folder, problems)
    plan = mapping(read_json(folder / "comparison.json", problems))
    compared = [variant for variant in variants if variant.group == AUTOENCODERS]
    ablated = [variant for variant in variants if variant.group == ABLATION]
    groups = (AUTOENCODERS, ABLATION)
    problems += [
        f"{variant.title} is left out: its group is {cut(variant.group, 40)}, not {' or '.join(groups)}"
        for variant in variants
        if variant.group not in groups
    ]
    made = _tables(compared, ablated, plan)
    orders = _orders(made)
    ablation_order, beyond = _ablation(made)
    plots = _plots(compared)
    shown = mosaics.make_mosaics(compared, problems)
    heading = title or _title(variants, plan)
    facts = gather_facts(variants, plan)
    against = against_the_paper(variants, [made["reconstruction"], made["generation"]])
    missing = [*missing_units(variants, plan), *_missing_figures(plots, shown)]
    context = {
        "title": heading,
        "lead": _lead(compared, made, orders),
        "facts": facts,
        "against": against,
        "missing_parts": missing,
        "problems": problems[:MAX_PROBLEMS],
        "more_problems": max(0, len(problems) - MAX_PROBLEMS),
        "tables": made,
        "beyond": beyond,
        "cost": paper.COST,
        "cost_note": paper.COST_NOTE,
        "orders": orders,
        "ablation_order": ablation_order,
        "chance": ranking.chance_of_full_agreement(len(paper.TITLES)),
        "plots": {
            plot.file: chart(plot.figure, plot.title, plot.said) | {"said": plot.said}
            if plot.figure
            else {"said": plot.said, "light": "", "title": plot.title}
            for plot in plots
        },
        "captions": CAPTIONS,
        "seed": shown.seed,
        "commands": commands(variants, plan),
    }
    text = comparison_markdown(heading, facts, against, made, orders, ablation_order, missing)
    write_text(folder / "tables.md", text)
    write_json(folder / "summary.json", summarise(variants))
    for plot in plots:
        _save_plot(plot, folder / f"{plot.file}.png")
    mosaics.save_mosaics(shown, folder)
    path = folder / "comparison.html"
    write_page(path, "comparison.html.j2", context, lambda budget: {"pictures": _encoded(shown, budget)})
    return path


def _tables(
    compared: Sequence[Variant], ablated: Sequence[Variant], plan: dict[str, Any]
) -> dict[str, Table]:
    whole = [variant for variant in compared if variant.name in paper.ABLATION_TITLES]  # + L_P: VMAE itself
    steps = [variant for variant in ablated if variant.name in paper.ABLATION_TITLES]
    beyond = [variant for variant in ablated if variant.name not in paper.ABLATION_TITLES]
    seeds = {seed for variant in ablated for seed in variant.seeds}
    if seeds:  # rows are compared at the seeds that they share
        whole = [replace(v, units=[u for u in v.units if u.seed in seeds]) for v in whole]
    made = {
        "reconstruction": make_table("Reconstruction", compared, tables.RECONSTRUCTION, paper.RECONSTRUCTION),
        "generation": make_table("Generation", compared, tables.GENERATION, paper.GENERATION),
        "cost": make_table("Cost", compared, tables.COST),
        "ablation": make_table(
            "Ablation", [*steps, *whole, *beyond], tables.ABLATION, paper.ABLATION, paper.ABLATION_TITLES
        ),
        "smoothness": make_table("Smoothness", compared, _smoothness_metrics(compared)),
        "compression": make_table("Perceptual compression", compared, tables.COMPRESSION),
    }
    planned = {str(entry.get("variant")) for entry in records(plan.get("units"))}
    if planned and not ablated and planned <= set(paper.TITLES):
        del made["ablation"]  # nobody asked for one
    return made


def _ablation(made: Mapping[str, Table]) -> tuple[str, bool]:
    """Says how far the ablation's order is the paper's, and whether it has rows that the paper has not."""
    table = made.get("ablation")
    if table is None:
        return "", False
    beyond = any(row.variant not in paper.ABLATION_TITLES for row in table.rows)
    return ranking.summary(ranking.agreements(table, paper.ABLATION)), beyond


def _smoothness_metrics(variants: Sequence[Variant]) -> list[Metric]:
    """Returns the area, and every figure at the largest noise that was measured."""
    sizes = {
        size for curve in charts.noise_curves(variants) for line in curve.lines.values() for size, _ in line
    }
    largest = f"{max(sizes):g}" if sizes else ""
    noisy = [Metric("smoothness", rf".*\(eps={largest}\)")] if sizes else []
    return [tables.AREA, *noisy, *tables.BETWEEN]


def _orders(made: dict[str, Table]) -> list[ranking.Agreement]:
    return [
        *ranking.agreements(made["reconstruction"], paper.RECONSTRUCTION),
        *ranking.agreements(made["generation"], paper.GENERATION),
    ]


def _plots(compared: Sequence[Variant]) -> list[_Plot]:
    names = join_words([variant.title for variant in compared])
    axes, left_out = radar_axes(compared)
    said = _radar_caption(names, axes, left_out)
    figure = None
    if len(compared) < 2:
        said = "a radar needs two autoencoders, because its axes run from the worst to the best"
    elif len(axes) < 3:
        said = "a radar needs three metrics that differ between autoencoders"
    else:
        figure = charts.radar(axes, compared)
    panels = dot_panels(compared)
    curves = charts.noise_curves(compared)
    levels = charts.compression_levels(compared)
    over = join_words([curve.title for curve in curves])
    return [
        _Plot(
            "metrics",
            "Metrics of each autoencoder",
            charts.dots(panels, compared) if panels else None,
            f"Means of {names}, with standard deviations over several seeds. Each panel has its own axis; "
            "better is to the right"
            if panels
            else "no autoencoder is measured yet",
        ),
        _Plot("radar", "The properties together", figure, said),
        _Plot(
            "smoothness",
            "Metrics over latent noise",
            charts.smoothness(curves, compared) if curves else None,
            f"{over} of images decoded from latents with noise, over the noise, of {names}"
            if curves
            else "no autoencoder's smoothness is measured yet",
        ),
        _Plot(
            "compression",
            "σ² against ρ",
            charts.compression(levels, compared) if levels else None,
            f"σ² against ρ of {names}, at level {join_words([level.name for level in levels])}"
            if levels
            else "no autoencoder's σ² and ρ are measured yet",
        ),
    ]


def dot_panels(variants: Sequence[Variant]) -> list[charts.Dots]:
    """Returns the metrics of the dot plot, by property; those that are about 0 for all are left out."""
    panels = []
    for metrics in (
        PROPERTIES[name] for name in ("reconstruction", "smoothness", "compression", "generation")
    ):
        for column in find_columns(variants, metrics or smoothness_axes(variants)):
            known = {v.name: v.spread(column.metric.measurement, column.name) for v in variants}
            spreads = {name: spread for name, spread in known.items() if spread}
            if spreads:
                panels.append(charts.Dots(column.title, column.better, spreads))
    return panels


def _radar_caption(names: str, axes: Sequence[charts.Axis], left_out: Sequence[str]) -> str:
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


def smoothness_axes(variants: Sequence[Variant]) -> list[Metric]:
    """Returns the distances of features at the largest noise that all have; without any, the area.

    The area is of a perceptual distance, on which some autoencoders were trained.
    """
    found = []
    for curve in charts.noise_curves(variants):
        sizes = set.intersection(*({size for size, _ in line} for line in curve.lines.values()))
        if UNDER_NOISE.fullmatch(curve.title) and max(sizes, default=0) > 0:
            found.append(Metric("smoothness", re.escape(f"{curve.title}(eps={max(sizes):g})")))
    return found or [tables.AREA]


def radar_axes(variants: Sequence[Variant]) -> tuple[list[charts.Axis], list[str]]:
    """Returns the radar's axes, and in words those that are left out.

    σ² and ρ become one axis each, the mean over the levels that all autoencoders have.
    """
    axes: list[charts.Axis] = []
    for subject, metrics in PROPERTIES.items():
        levels: dict[str, list[charts.Axis]] = {}
        for column in find_columns(variants, metrics or smoothness_axes(variants)):
            known = [(v.name, v.spread(column.metric.measurement, column.name)) for v in variants]
            values = {name: spread.mean for name, spread in known if spread}
            taught = [v.title for v in variants if v.trained_on(column.metric.measurement, column.name)]
            axis = charts.Axis(subject, column.title, column.better, values, taught)
            if subject != "compression":
                axes.append(axis)
            elif len(values) == len(variants):
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


def _mean_axis(symbol: str, levels: Sequence[charts.Axis]) -> charts.Axis:
    if len(levels) == 1:
        return levels[0]
    means = {name: sum(axis.values[name] for axis in levels) / len(levels) for name in levels[0].values}
    return charts.Axis(levels[0].subject, f"{symbol}, mean of {len(levels)} levels", levels[0].better, means)


def _missing_figures(plots: Sequence[_Plot], shown: mosaics.Mosaics) -> list[str]:
    missing = [f"{plot.file}.png: {plot.said}" for plot in plots if plot.figure is None]
    names = ("reconstructions", "components", "interpolation", "samples")
    return missing + [f"{name}.png: no unit has such images" for name in names if not getattr(shown, name)]


def _title(variants: Sequence[Variant], plan: dict[str, Any]) -> str:
    presets = [unit.record.get("preset") for variant in variants for unit in variant.units]
    preset = plan.get("preset") or (presets[0] if presets else None)
    return f"Autoencoders compared: {preset}" if isinstance(preset, str) else "Autoencoders compared"


def _lead(compared: Sequence[Variant], made: dict[str, Table], orders: Sequence[ranking.Agreement]) -> str:
    if not compared:
        return "No autoencoder of this comparison is done yet."
    sentences = [
        f"{join_words([variant.title for variant in compared])}, each with a diffusion model of its own on "
        f"its latents ({seeds_line(compared)})."
    ]
    columns = [
        (table, k)
        for table in (made["reconstruction"], made["generation"])
        for k, column in enumerate(table.columns)
        if len(table.rows) > 1 and column.better and not table.says_nothing(k)
    ]
    leads = sum(row.cells[k].best for table, k in columns for row in table.rows if row.variant == "vmae")
    if columns and any(variant.name == "vmae" for variant in compared):
        led, total = paper.columns_led_by("vmae")
        sentences.append(
            f"VMAE has the best mean in {leads} of the {len(columns)} metrics of reconstruction and "
            f"generation; in the paper in {led} of {total}."
        )
    agreed = ranking.summary(orders)
    return " ".join([*sentences, *([f"{agreed}."] if agreed else [])])


def _save_plot(plot: _Plot, path: Path) -> None:
    if plot.figure is None:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        plot.figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def _encoded(shown: mosaics.Mosaics, budget: int) -> dict[str, Any]:
    return {
        name: encode_picture(picture, budget) if picture else None
        for name, picture in vars(shown).items()
        if name != "seed"
    }
