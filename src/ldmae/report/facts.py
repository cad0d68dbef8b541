"""What a comparison compared, in words: images, sizes, seeds, costs, what is missing; and its summary."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ldmae.core.errors import counted
from ldmae.report import paper
from ldmae.report.data import (
    ABLATION,
    AUTOENCODERS,
    Comparison,
    UnitResults,
    VariantResults,
    cut,
    in_classes,
    mapping,
    number,
    records,
)
from ldmae.report.formatting import format_count, format_seconds, format_value, join_words
from ldmae.report.tables import PERCEPTUAL, ComparisonTable

_ON_FEATURES = re.compile(r"r?(?:FI?D|KID|sFI?D|IS|precision|recall)(?:-(.+))?")
"""The names of metrics on features, and the network's, which Inception's don't have."""


def gather_facts(comparison: Comparison, plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what was compared, as names and texts; where units differ in it, who has what.

    The plan is what `comparison.json` says, empty where there is none.
    """
    several = len({str(unit.at("data", "fingerprint") or "") for unit in comparison.units} - {""}) > 1
    by = partial(_by_value, comparison.variants)
    facts = [
        ("Images", by(lambda unit: _images(unit, several))),
        ("Licence", by(lambda unit: str(unit.at("data", "licence") or ""))),
        ("Size", by(lambda unit: f"{format_value(unit.at('image_size'))} px")),
        ("Seeds", seeds_line(comparison.variants)),
        ("Autoencoder steps", by(lambda unit: format_value(unit.at("steps", "autoencoder")))),
        ("Diffusion model", by(_diffusion)),
        ("Cost", _matching(comparison, mapping(plan.get("matching")))),
        ("Device", by(lambda unit: str(unit.at("device") or "not known"))),
        ("Time", _time(comparison.units)),
    ]
    return [(name, cut(text, 1000)) for name, text in facts if text]


def _by_value(variants: Sequence[VariantResults], text_of: Callable[[UnitResults], str]) -> str:
    """Returns what all units say; where they differ, each answer with those that give it."""
    answers: dict[str, dict[str, None]] = {}  # of each the titles, each once
    for variant in variants:
        for unit in variant.units:
            answers.setdefault(text_of(unit), {})[variant.title] = None
    if len(answers) < 2:
        return next(iter(answers), "")
    return "; ".join(f"{text or 'not known'} ({join_words([*titles])})" for text, titles in answers.items())


def _images(unit: UnitResults, several: bool) -> str:
    data = mapping(unit.at("data"))
    if not data:
        return "not known"
    return (
        f"{cut(str(data.get('name') or 'without a name'), 100)}: {format_value(data.get('train'))} for "
        f"training{in_classes(data)}; {format_value(data.get('held_out'))} held out"
        + (f", fingerprint {cut(str(data.get('fingerprint') or 'not known'), 8)}" if several else "")
    )


def _diffusion(unit: UnitResults) -> str:
    parameters = number(unit.at("parameters", "diffusion"))
    size = f" of {format_count(parameters)} parameters" if parameters else ""
    sampling = mapping(unit.at("settings", "sampling"))
    steps, solver = number(sampling.get("num_inference_steps")), sampling.get("solver")
    drawn = f"; images are drawn in {steps:.0f} steps ({solver})" if steps and solver else ""
    trained = format_value(unit.at("steps", "diffusion"))
    return f"the same{size}, {trained} steps on the latents of each{drawn}"


def against_the_paper(comparison: Comparison, made: Sequence[ComparisonTable]) -> str:
    """Says what the paper's metrics were measured on, and ours in the tables; nothing without any of ours."""
    units = comparison.units
    names = [column.name for table in made for column in table.columns]
    features = [match[1] for name in names if (match := _ON_FEATURES.fullmatch(name))]
    ours = (
        [cut(str(unit.at("data", "name") or ""), 100) for unit in units],
        [f"{size:g} px" for unit in units if (size := number(unit.at("image_size")))],
        [cut(name, 60) for name in names if re.fullmatch(PERCEPTUAL, name)],
        [f"{cut(name, 60)}'s features" if name else paper.MEASURED_ON[3] for name in features],
    )
    words = [join_words([text for text in dict.fromkeys(texts) if text]) for texts in ours]
    pairs = [
        (f"{how} {theirs}", f"{how} {mine}")
        for how, theirs, mine in zip(("of", "at", "by", "on"), paper.MEASURED_ON, words, strict=True)
        if mine
    ]
    if not pairs:
        return ""
    theirs, mine = (join_words(list(texts)) for texts in zip(*pairs, strict=True))
    return f"The paper's metrics are {theirs}; ours {mine}. Where these differ, compare rankings, not values."


def _matching(comparison: Comparison, matching: dict[str, Any]) -> str:
    """Says how the baselines' operations were brought to VMAE's, with the counts."""
    means, alike = comparison.select(AUTOENCODERS).stats()["mean"], {}
    for variant in comparison.variants:
        if ("efficiency", "FLOPs", variant.name) in means.index:
            flops = float(means["efficiency", "FLOPs", variant.name])
            alike.setdefault(format_value(flops / 1e9), []).append(variant.title)
    widths = {width for unit in comparison.units if (width := number(unit.at("width"))) is not None}
    texts = []
    if widths:
        shown = " and ".join(f"{width:.4g}" for width in sorted(widths))
        fitted = ", fitted to what VMAE's encode + decode costs" if matching.get("fitted", True) else ""
        texts.append(f"the baselines' width is {shown} of the paper's{fitted}")
    if alike:
        counts = "; ".join(f"{count} ({join_words(titles)})" for count, titles in alike.items())
        texts.append(f"GFLOPs per image (a multiply-add counts 2): {counts}")
    full = mapping(matching.get("full_size"))
    operations, parameters = number(full.get("flops")), number(full.get("parameters"))
    if operations and parameters and widths != {1.0}:
        texts.append(
            f"a baseline at the paper's width, not trained here, would cost {format_value(operations / 1e9)} "
            f"GFLOPs and {format_count(parameters)} parameters"
        )
    return ". ".join(text[0].upper() + text[1:] for text in texts)


def _time(units: Sequence[UnitResults]) -> str:
    spent = [
        sum(seconds for value in mapping(unit.at("seconds")).values() if (seconds := number(value)))
        for unit in units
    ]
    if not sum(spent):
        return ""
    longest = f", the longest {format_seconds(max(spent))}" if len(spent) > 1 else ""
    day = max(str(unit.at("finished") or "")[:10] for unit in units)
    finished = f"; finished on {day}" if day else ""
    each = f"{counted(len(units), 'unit')} (one autoencoder at one seed each)"
    return f"{format_seconds(sum(spent))} for {each}{longest}{finished}"


def seeds_line(variants: Sequence[VariantResults]) -> str:
    """Returns which seeds there are, and where autoencoders differ in them, of whom."""
    seeds = {variant.name: variant.seeds for variant in variants}

    def words(unit: UnitResults) -> str:
        own = seeds[unit.variant]
        if len(own) == 1:
            return f"one seed, no spread (seed {own[0]})"
        return f"{len(own)} seeds: {', '.join(map(str, own))}"

    return _by_value(variants, words)


def missing_units(variants: Sequence[VariantResults], plan: dict[str, Any]) -> list[str]:
    """Returns in words the autoencoders and seeds that are not there.

    Expected are the plan's units, or without one the paper's rows, at every seed that an autoencoder of
    their group has.
    """
    titles = paper.ABLATION_TITLES | paper.TITLES | {variant.name: variant.title for variant in variants}
    seeds = {variant.name: variant.seeds for variant in variants}
    planned: dict[str, set[int]] = {}
    for entry in records(plan.get("units")):
        if isinstance(entry.get("seed"), int):
            planned.setdefault(str(entry.get("variant")), set()).add(entry["seed"])
    if not planned:
        for group, names in ((AUTOENCODERS, paper.TITLES), (ABLATION, paper.ABLATION_TITLES)):
            known = {seed for v in variants if v.group == group for seed in v.seeds}
            for name in names:
                planned.setdefault(name, set()).update(known)
    missing = []
    for name, wanted in planned.items():
        title = titles.get(name, cut(name, 60))
        gone = sorted(wanted - set(seeds.get(name, [])))
        if name not in seeds:
            missing.append(f"{title}: no unit of it is done")
        elif gone:
            noun = "seed" if len(gone) == 1 else "seeds"
            missing.append(f"{title}: {noun} {join_words([str(seed) for seed in gone])}")
    return missing


def commands(comparison: Comparison, plan: dict[str, Any]) -> list[str]:
    """Returns the commands that made the units, each once."""
    typed = [unit.at("command") for unit in comparison.units]
    known = [text for text in [plan.get("command"), *typed] if isinstance(text, str) and text]
    return [cut(text, 2000) for text in dict.fromkeys(known)]


# ---- summary.json: a row an autoencoder, so that a command can check every claim


def summarise(comparison: Comparison) -> dict[str, Any]:
    """Returns what `summary.json` holds (docs/reference/results-format.md)."""
    judges, stats = _judges(comparison.units), comparison.stats()
    names = _names(judges)
    floor = comparison.metrics[comparison.metrics.measurement == "floor"].astype({"value": float})
    floors = floor.groupby("name")["value"].agg(["mean", "std"])
    rows = []
    for variant in comparison.variants:
        keys: list[Any] = [*stats.index]
        own = {key[:2]: stats.loc[key] for key in keys if key[2] == variant.name}
        wanted = {kind: (_OF_AUTOENCODER.get(kind, "samples"), name) for kind, name in names.items()}
        wanted["PSNR"] = ("reconstruction", "PSNR")
        learned = [key for key in own if key[0] == "reconstruction" and "LPIPS" in key[1]]
        wanted |= dict.fromkeys(["perceptual"], learned[0]) if learned else {}
        wanted |= {kind: ("copies", kind) for kind in ("copies", "authenticity")}
        noisy = sorted(name for measurement, name in own if measurement == "smoothness")
        wanted |= {
            f"rKID{name.removeprefix(names['rKID'])}": ("smoothness", name)
            for name in noisy
            if name.startswith(f"{names['rKID']}(")
        }
        row: dict[str, Any] = {"name": variant.name, "title": variant.title, "seeds": len(variant.units)}
        row |= {kind: _spread(own[key]) for kind, key in wanted.items() if key in own}
        row |= {kind: float(own[key]["mean"]) for kind, key in _COUNTED.items() if key in own}
        rows.append(row)
    return {
        "schema": _SUMMARY_SCHEMA,
        "judges": judges,
        "floor": {
            kind: _spread(floors.loc[f"floor {name}"])
            for kind, name in names.items()
            if f"floor {name}" in floors.index
        },
        "rows": rows,
    }


_SUMMARY_SCHEMA = 1
_OF_AUTOENCODER = {"rKID": "reconstruction", "iKID": "ifid", "iFD": "ifid"}
"""The measurements of metrics on features that are not of samples."""
_COUNTED = {
    "parameters": ("efficiency", "parameters"),
    "flops": ("efficiency", "FLOPs"),
    "seconds": ("time", "autoencoder training"),
    "diffusion_seconds": ("time", "diffusion training"),
}
"""Metrics of which the summary has the mean alone."""


def _judges(units: Sequence[UnitResults]) -> list[str]:
    """Returns the networks whose features were compared, the one that decides first."""
    for unit in units:
        names = [unit.at("settings", "evaluation", key) for key in ("features", "second_features")]
        if any(names):
            return [str(name) for name in names if name]
    return []


def _names(judges: Sequence[str]) -> dict[str, str]:
    """Returns the names of the metrics on features, by their keys in the summary."""

    def on(network: str, kind: str) -> str:
        return kind.replace("FD", "FID") if network == "inception" else f"{kind}-{network}"

    first = judges[0] if judges else "inception"
    kinds = ("KID", "MIND", "precision", "recall", "rKID", "iKID", "iFD")
    found = {kind: on(first, kind) for kind in kinds}
    return found | {f"KID ({network})": on(network, "KID") for network in judges[1:]}


def _spread(row: Any) -> dict[str, float | None]:
    return {"mean": float(row["mean"]), "std": None if math.isnan(row["std"]) else float(row["std"])}
