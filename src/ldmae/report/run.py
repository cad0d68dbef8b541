"""The report of a run: one HTML file that needs no other, from whatever the run folder holds so far."""

from __future__ import annotations

import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ldmae.core.errors import UserError
from ldmae.report import curves, grids, plots
from ldmae.report.data import (
    Comparison,
    VariantResults,
    cut,
    finite,
    in_classes,
    json_of,
    mapping,
    metrics_of,
    number,
    other_schema,
    read_arrays,
    read_text,
    records,
    samples_of,
)
from ldmae.report.formatting import format_count, format_seconds, format_value, join_words
from ldmae.report.pages import chart, write_page
from ldmae.report.tables import Table, footnotes, metrics_table

_MAX_RESULTS, _MAX_CLASSES = 300, 1000
"""Metrics and classes that are shown at most."""
_MAX_SETTINGS = 150_000
"""Characters of the settings that are shown."""
_PACKAGES = ("ldmae", "torch", "torchvision", "diffusers", "accelerate", "numpy", "pillow")
_FOLDED = 12
"""Metrics of a measurement from which on they are folded away."""
_ROWS = {
    "reconstruction": {"original": "originals", "reconstruction": "reconstructions"},
    "components": {"original": "originals", "components": "components"},
    "copies": {"generated": "generated", "nearest": "nearest"},
}
"""Pictures of rows: the arrays of `results/NAME.npz` by the rows' labels."""
_COLUMNS = 8
"""Images a row at most."""


def render_report(run_folder: Path) -> Path:
    """Writes `report.html` into a run folder, atomically: one file that needs no other, under 5 MB.

    It shows what there is, says what is missing and names what can't be read. The same folder gives the same
    bytes. Of a folder in which something foreign was measured (it has `measured.json` and no `config.yaml`),
    it shows the measurements and misses nothing else. The heading names the folder, or what was measured.
    Returns the page's path.
    """
    run_folder = Path(run_folder)
    problems: list[str] = []
    context = _gather(run_folder, problems)
    path = run_folder / "report.html"
    write_page(path, "report.html.j2", context, _pictures(run_folder, problems))
    return path


def overview(run_folder: Path) -> Image.Image:
    """Returns one picture of a run: its samples, and below them held-out images, reconstructed.

    Raises:
        UserError: one of the two is damaged or missing.
    """
    problems: list[str] = []
    samples = _samples_grid(run_folder, problems)
    pairs = read_arrays(run_folder / "results" / "reconstruction.npz", problems)
    if samples is None or not {"originals", "reconstructions"} <= pairs.keys():
        what, stage = ("samples", "samples") if samples is None else ("reconstructions", "evaluation")
        why = f": {problems[0]}" if problems else ""
        raise UserError(
            f"{run_folder} has no {what} that can be shown{why}; make them again with --restart {stage}"
        )
    rows = {label: pairs[key] for label, key in _ROWS["reconstruction"].items()}
    below = grids.image_rows(rows, _COLUMNS)
    picture = Image.new("RGB", (max(samples.width, below.width), samples.height + below.height + 24), "white")
    picture.paste(samples, (picture.width - samples.width, 0))
    picture.paste(below, (picture.width - below.width, samples.height + 24))
    return picture


def _samples_grid(run_folder: Path, problems: list[str]) -> Image.Image | None:
    """Returns a run's samples, a row a class; None where there are none that can be read."""
    folder = run_folder / "samples"
    samples = samples_of(folder, problems)
    if not samples:
        return None
    record = json_of(folder / "samples.json", [])
    names = record.get("class_names")
    per_class = int(number(record.get("per_class")) or _COLUMNS)
    labels = samples["labels"]
    return grids.class_grid(samples["images"], labels, names if isinstance(names, list) else [], per_class)


def _gather(folder: Path, problems: list[str]) -> dict[str, Any]:
    """Returns what the template shows, but for the pictures."""
    config_text = read_text(folder / "config.yaml", problems)
    data = json_of(folder / "data.json", problems)
    parameters = json_of(folder / "parameters.json", problems)
    stages = _stages(json_of(folder / "stages.json", problems))
    record = json_of(folder / "results.json", problems)
    if record and (other := other_schema(record, "results.json")):
        problems.append(f"{other}; `ldmae evaluate` measures again")
        record = {}
    metrics = metrics_of(record)
    record_of = {} if config_text is not None else json_of(folder / "measured.json", problems)
    measured = mapping(record_of.get("settings"))
    title, lead = f"LDMAE run: {folder.resolve().name}", _summary(data, parameters, stages)
    if measured:
        title, lead = _measured(measured)
    return {
        "title": title,
        "lead": lead,
        "problems": problems,
        "measured": measured,
        "smoothness": _smoothness(metrics),
        "sampling": _sampling(json_of(folder / "samples" / "samples.json", [])),
        "results": _results(metrics, mapping(record.get("titles")), problems),
        "footnotes": footnotes(list(metrics["name"][:_MAX_RESULTS])),
        "panels": curves.loss_panels(folder / "metrics.jsonl", problems),
        "stages": stages,
        "data": _data(data),
        "settings": None if config_text is None else cut(config_text, _MAX_SETTINGS),
        "command": _command(json_of(folder / "run.json", problems)),
        "versions": _versions(),
    }


def _pictures(folder: Path, problems: list[str]) -> dict[str, Image.Image | None]:
    """Returns the pictures of a run, by name; None for one that is not there."""
    drawn: dict[str, Image.Image | None] = {"samples": _samples_grid(folder, problems)}
    for name in ("reconstruction", "components", "copies", "interpolation"):
        path = folder / "results" / f"{name}.npz"
        arrays = read_arrays(path, problems)
        try:
            drawn[name] = _picture(name, arrays) if arrays else None
        except Exception:  # arrays of any kind
            problems.append(f"{path.name} holds other arrays than expected")
            drawn[name] = None
    return drawn


def _picture(name: str, arrays: dict[str, np.ndarray]) -> Image.Image:
    if name == "interpolation":
        rows = arrays["rows"]  # (P, F + 2, H, W, 3)
        return grids.interpolation_grid(rows.reshape(-1, *rows.shape[2:]), arrays["fractions"], rows.shape[1])
    rows = {label: arrays[key] for label, key in _ROWS[name].items()}
    if name == "reconstruction":
        rows["difference × 4"] = grids.difference(rows["original"], rows["reconstruction"], 4)
    return grids.image_rows(rows, _COLUMNS)


# What the template shows, section by section.


def _summary(data: dict[str, Any], parameters: dict[str, Any], stages: dict[str, Any]) -> str:
    models = []
    for key, name in (("autoencoder", "an autoencoder"), ("diffusion", "a diffusion model")):
        total = number(mapping(parameters.get(key)).get("total"))
        if total is not None:
            models.append(f"{name} ({format_count(total)} parameters)")
    train, held_out = number(data.get("train")), number(data.get("held_out"))
    parts = [join_words(models) or "models"]
    if train is not None:
        name = f" of {cut(str(data['name']), 100)}" if data.get("name") else ""
        parts.append(f"trained on {train:,.0f} images{name}{in_classes(data)}")
    if stages["total"]:
        devices = f" on {join_words(stages['devices'])}" if stages["devices"] else ""
        parts.append(f"made in {stages['total']}{devices}")
    if len(parts) == 1 and not models:
        return "This run has no results yet."
    sentence = ", ".join(parts) + (f"; {held_out:,.0f} more images were held out" if held_out else "")
    return sentence[0].upper() + sentence[1:] + "."


def _stages(record: dict[str, Any]) -> dict[str, Any]:
    rows = []
    entries = [
        e for e in records(record.get("stages")) if (e.get("name"), e.get("status")) != ("report", "running")
    ]
    seconds = [number(entry.get("seconds")) for entry in entries]
    longest = max((s for s in seconds if s), default=0)
    for entry, spent in list(zip(entries, seconds, strict=True))[:_MAX_RESULTS]:
        name = str(entry.get("name", "unnamed"))
        rows.append(
            {
                "name": cut(curves.STAGE_TITLES.get(name, name)),
                "status": cut(str(entry.get("status", ""))),
                "seconds": format_seconds(spent),
                "share": round(100 * spent / longest, 1) if spent and longest else 0,
                "device": cut(str(entry.get("device") or "")),
                "finished": cut(str(entry.get("finished") or "")[:19].replace("T", " ")),
            }
        )
    known = [s for s in seconds if s]
    devices = dict.fromkeys(cut(str(entry["device"]), 40) for entry in entries if entry.get("device"))
    return {"rows": rows, "total": format_seconds(sum(known)) if known else "", "devices": [*devices][:3]}


def _results(metrics: pd.DataFrame, titles: dict[str, Any], problems: list[str]) -> list[dict[str, Any]]:
    """Returns the metrics' tables, one a measurement."""
    if len(metrics) > _MAX_RESULTS:
        problems.append(f"results.json holds {len(metrics):,} metrics; {_MAX_RESULTS} are shown")
    return [
        {
            "title": cut(str(titles.get(name) or f"{name[:1].upper()}{name[1:]}")),
            "table": metrics_table(group),
            "count": len(group),
            "folded": len(group) > _FOLDED,
        }
        for name, group in metrics[:_MAX_RESULTS].groupby("measurement", sort=False)
    ]


def _measured(record: dict[str, Any]) -> tuple[str, str]:
    """Returns heading and summary of a folder in which something foreign was measured."""
    if "autoencoder" in record:
        size = number(record.get("image_size"))
        on = f" on the images of {record['data']}" if record.get("data") else ""
        at = f", at {size:.0f} px" if size else ""
        return f"Measured: {cut(str(record['autoencoder']), 100)}", f"An autoencoder, measured{cut(on)}{at}."
    source, reference = (cut(str(record.get(key) or "not known"), 100) for key in ("source", "reference"))
    return f"Measured: {source}", f"Generated images, compared with the real ones of {reference}."


def _smoothness(metrics: pd.DataFrame) -> dict[str, Any] | None:
    """Returns the plot of all metrics over latent noise, where they were measured."""
    alone = Comparison([VariantResults("", "", "", 0)], metrics[finite(metrics)].assign(variant="", seed=0))
    found = plots.noise_curves(alone)
    if found.empty:
        return None
    alt = f"{join_words(list(found.metric.unique()))} over latent noise"
    return chart(plots.smoothness(found, alone.variants), alt)


def _data(data: dict[str, Any]) -> dict[str, Any]:
    classes = records(data.get("classes"))
    shown = classes[:_MAX_CLASSES]
    table = pd.DataFrame(
        {
            "For training": [format_value(entry.get("train")) for entry in shown],
            "Held out": [format_value(entry.get("held_out")) for entry in shown],
        },
        index=[cut(str(entry.get("name", "")), 100) for entry in shown],
    )
    facts = data["facts"] if isinstance(data.get("facts"), list) else []
    return {
        "name": cut(str(data.get("name") or "")),
        "licence": cut(str(data.get("licence") or "")),
        "unreadable": int(number(data.get("unreadable")) or 0),
        "facts": [cut(fact) for fact in facts[:20] if isinstance(fact, str)],
        "train": format_value(data.get("train")),
        "held_out": format_value(data.get("held_out")),
        "classes": Table(table),
        "count": len(classes),
        "more": len(classes) - len(shown),
        "known": bool(data),
    }


def _command(record: dict[str, Any]) -> str:
    command = record.get("command")
    return cut(shlex.join(map(str, command)), 5000) if isinstance(command, list) else ""


def _sampling(record: dict[str, Any]) -> str:
    terms = (
        ("guidance scale {}", "guidance_scale"),
        ("{} steps", "num_inference_steps"),
        ("seed {}", "seed"),
    )
    known = [(words, number(record.get(key))) for words, key in terms]
    return ", ".join(words.format(f"{value:.10g}") for words, value in known if value is not None)


def _versions() -> list[tuple[str, str]]:
    versions = [("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return versions
