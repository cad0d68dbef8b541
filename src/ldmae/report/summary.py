"""A comparison in one JSON file: a row an autoencoder, so that a command can check every claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ldmae.report.reading import mapping
from ldmae.report.units import Spread, Variant, spread_of

SCHEMA = 1


def summarise(variants: Sequence[Variant]) -> dict[str, Any]:
    """Returns what `summary.json` holds (docs/reference/results-format.md).

    Args:
        variants: the autoencoders that were compared.
    """
    judges = _judges(variants)
    floor = {
        kind: _spread(spread_of([f.value for v in variants for f in v.figures("floor", f"floor {name}")]))
        for kind, name in _names(judges).items()
        if kind.startswith(("KID", "MIND", "precision", "recall"))
    }
    return {
        "schema": SCHEMA,
        "judges": judges,
        "floor": {kind: value for kind, value in floor.items() if value is not None},
        "rows": [_row(variant, judges) for variant in variants],
    }


def _judges(variants: Sequence[Variant]) -> list[str]:
    """Returns the networks that judged, the one that decides first."""
    for variant in variants:
        for unit in variant.units:
            evaluation = mapping(mapping(unit.record.get("settings")).get("evaluation"))
            names = evaluation.get("features"), evaluation.get("second_features")
            if any(names):
                return [str(name) for name in names if name]
    return []


def _names(judges: Sequence[str]) -> dict[str, str]:
    """Returns the names of the figures on features, by their keys."""

    def on(network: str, kind: str) -> str:
        return kind.replace("FD", "FID") if network == "inception" else f"{kind}-{network}"

    first = judges[0] if judges else "inception"
    kinds = ("KID", "MIND", "precision", "recall", "rKID", "iKID", "iFD")
    found = {kind: on(first, kind) for kind in kinds}
    return found | {f"KID ({network})": on(network, "KID") for network in judges[1:]}


def _row(variant: Variant, judges: Sequence[str]) -> dict[str, Any]:
    names = _names(judges)
    measurements = {"rKID": "reconstruction", "iKID": "ifid", "iFD": "ifid"}
    row: dict[str, Any] = {"name": variant.name, "title": variant.title, "seeds": len(variant.units)}
    for kind, name in names.items():
        row[kind] = _spread(variant.spread(measurements.get(kind, "samples"), name))
    row["PSNR"] = _spread(variant.spread("reconstruction", "PSNR"))
    for kind, measurement, prefix in (
        ("perceptual", "reconstruction", ""),
        ("copies", "copies", "copies"),
        ("authenticity", "copies", "authenticity"),
    ):
        row[kind] = _spread(_first(variant, measurement, prefix))
    noisy = {name for unit in variant.units for kind, name in unit.figures if kind == "smoothness"}
    for name in sorted(noisy):
        if name.startswith(f"{names['rKID']}("):
            row[f"rKID{name.removeprefix(names['rKID'])}"] = _spread(variant.spread("smoothness", name))
    for kind, measurement, name in (
        ("parameters", "efficiency", "parameters"),
        ("flops", "efficiency", "FLOPs"),
        ("seconds", "time", "autoencoder training"),
        ("diffusion_seconds", "time", "diffusion training"),
    ):
        spread = variant.spread(measurement, name)
        row[kind] = None if spread is None else spread.mean
    return {kind: value for kind, value in row.items() if value is not None}


def _first(variant: Variant, measurement: str, prefix: str) -> Spread | None:
    """Returns the learned distance, or the figure of a name."""
    names = [name for unit in variant.units for kind, name in unit.figures if kind == measurement]
    wanted = [name for name in names if (name == prefix if prefix else "LPIPS" in name)]
    return variant.spread(measurement, wanted[0]) if wanted else None


def _spread(spread: Spread | None) -> dict[str, float | None] | None:
    if spread is None:
        return None
    return {"mean": spread.mean, "std": None if math.isnan(spread.deviation) else spread.deviation}
