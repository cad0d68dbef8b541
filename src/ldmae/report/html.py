"""The report of a run: one HTML file that needs no other, from whatever the run folder holds so far."""

from __future__ import annotations

import json
import math
import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any, overload

from jinja2 import Environment, PackageLoader, StrictUndefined

from ldmae.core.files import write_text
from ldmae.report import curves
from ldmae.report.formatting import format_count, format_seconds, format_value, join_words
from ldmae.report.pictures import data_uri, reconstructions_picture, samples_picture

MAX_BYTES = 5_000_000
PICTURE_BYTES = (1_200_000, 400_000, 100_000)
"""What one picture may take before base64; the next is tried where the page came out too large."""
MAX_RESULTS, MAX_CLASSES, MAX_PANELS = 300, 1000, 4
"""Figures, classes and stages' loss curves that are shown at most."""
MAX_TEXT, MAX_SETTINGS = 400, 150_000
"""Characters of a name or note, and of the settings, that are shown."""
PACKAGES = ("ldmae", "torch", "torchvision", "diffusers", "accelerate", "numpy", "pillow")
MEASUREMENTS = {"reconstruction": "Reconstruction", "generation": "Generation"}
FOOTNOTES = {
    "ST-LPIPS": "ST-LPIPS is the shift-tolerant perceptual metric with its own weights (ECCV 2022). "
    "It is not LPIPS: its figures can't be compared with the LPIPS of papers.",
    "efficientnet": "Measured on features of EfficientNet-Lite0, not of Inception. "
    "It is neither the FID nor the KID of papers: its figures compare only with others on the same features.",
}
"""What a reader must be told of a metric, by a part of its name."""


def render_report(run_folder: Path, title: str | None = None) -> Path:
    """Writes `report.html` into a run folder, atomically: one file that needs no other, under 5 MB.

    It shows what there is, says what is missing and names what can't be read. The same folder gives the same
    bytes.

    Args:
        run_folder: a run's folder.
        title: heading; the folder's name where it is None.

    Returns:
        The path of the page.
    """
    run_folder = Path(run_folder)
    problems: list[str] = []
    context = _gather(run_folder, problems) | {"title": title or f"LDMAE run: {run_folder.resolve().name}"}
    environment = Environment(
        loader=PackageLoader("ldmae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    page = ""
    for budget in PICTURE_BYTES:
        page = template.render(context | _pictures(run_folder, budget, problems))
        if len(page.encode()) < MAX_BYTES:
            break
    path = run_folder / "report.html"
    write_text(path, page)
    return path


def _gather(folder: Path, problems: list[str]) -> dict[str, Any]:
    """Returns what the template shows, but for the pictures."""
    config_text = _read_text(folder / "config.yaml", problems)
    data = _mapping(_read_json(folder / "data.json", problems))
    parameters = _mapping(_read_json(folder / "parameters.json", problems))
    stages = _stages(_mapping(_read_json(folder / "stages.json", problems)))
    results, footnotes = _results(_mapping(_read_json(folder / "results.json", problems)), problems)
    return {
        "summary": _summary(data, parameters, stages),
        "sampling": _sampling(_mapping(_read_json(folder / "samples" / "samples.json", problems))),
        "results": results,
        "footnotes": footnotes,
        "panels": _panels(folder / "metrics.jsonl", problems),
        "stages": stages,
        "data": _data(data),
        "settings": _cut(config_text, MAX_SETTINGS),
        "command": _command(_mapping(_read_json(folder / "run.json", problems))),
        "versions": _versions(),
    }


def _pictures(folder: Path, budget: int, problems: list[str]) -> dict[str, Any]:
    found: list[str] = []
    pairs = folder / "results" / "reconstruction_pairs.npz"
    record = _mapping(_read_json(folder / "samples" / "samples.json", []))
    return {
        "samples": samples_picture(folder / "samples", record, budget, found),
        "reconstructions": reconstructions_picture(pairs, budget, found),
        "problems": problems + found,
    }


# Reading: a missing file is None without a word, one that can't be read is None and named among the problems.


def _read_text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error.strerror}")
    return None


def _read_json(path: Path, problems: list[str]) -> Any:
    text = _read_text(path, problems)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is not whole JSON")
    return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _records(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@overload
def _cut(text: None, length: int = ...) -> None: ...
@overload
def _cut(text: str, length: int = ...) -> str: ...
def _cut(text: str | None, length: int = MAX_TEXT) -> str | None:
    if text is None or len(text) <= length:
        return text
    return text[:length] + f"… ({len(text) - length:,} more characters)"


# What the template shows, section by section.


def _summary(data: dict[str, Any], parameters: dict[str, Any], stages: dict[str, Any]) -> str:
    models = []
    for key, name in (("autoencoder", "an autoencoder"), ("diffusion", "a diffusion model")):
        total = _number(_mapping(parameters.get(key)).get("total"))
        if total is not None:
            models.append(f"{name} ({format_count(total)} parameters)")
    train, held_out = _number(data.get("train")), _number(data.get("held_out"))
    classes = len(_records(data.get("classes")))
    parts = [join_words(models) or "models"]
    if train is not None:
        name = f" of {_cut(str(data['name']), 100)}" if data.get("name") else ""
        parts.append(
            f"trained on {train:,.0f} images{name}" + (f" in {classes:,} classes" if classes > 1 else "")
        )
    if stages["total"]:
        devices = f" on {join_words(stages['devices'])}" if stages["devices"] else ""
        parts.append(f"made in {stages['total']}{devices}")
    if len(parts) == 1 and not models:
        return "Nothing of this run is on record yet."
    sentence = ", ".join(parts) + (f"; {held_out:,.0f} more images were held out" if held_out else "")
    return sentence[0].upper() + sentence[1:] + "."


def _stages(record: dict[str, Any]) -> dict[str, Any]:
    rows, devices = [], []
    entries = [
        e for e in _records(record.get("stages")) if (e.get("name"), e.get("status")) != ("report", "running")
    ]
    seconds = [_number(entry.get("seconds")) for entry in entries]
    longest = max((s for s in seconds if s), default=0)
    for entry, spent in list(zip(entries, seconds, strict=True))[:MAX_RESULTS]:
        name, device = str(entry.get("name", "unnamed")), str(entry.get("device") or "")
        if device and device not in devices:
            devices.append(_cut(device, 40))
        rows.append(
            {
                "name": _cut(curves.STAGE_TITLES.get(name, name)),
                "status": _cut(str(entry.get("status", ""))),
                "seconds": format_seconds(spent),
                "share": round(100 * spent / longest, 1) if spent and longest else 0,
                "device": _cut(device),
                "finished": _cut(str(entry.get("finished") or "")[:19].replace("T", " ")),
            }
        )
    known = [s for s in seconds if s]
    return {"rows": rows, "total": format_seconds(sum(known)) if known else "", "devices": devices[:3]}


def _results(record: dict[str, Any], problems: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the figures' groups, one a measurement, and the footnotes that their rows number."""
    groups: dict[str, list[dict[str, Any]]] = {}
    footnotes: list[str] = []
    entries = _records(record.get("results"))
    if len(entries) > MAX_RESULTS:
        problems.append(f"results.json holds {len(entries):,} figures; {MAX_RESULTS} are shown")
    for entry in entries[:MAX_RESULTS]:
        name = _cut(str(entry.get("name", "unnamed")))
        marks = []
        for part, text in FOOTNOTES.items():
            if part.lower() in name.lower():
                if text not in footnotes:
                    footnotes.append(text)
                marks.append(footnotes.index(text) + 1)
        counts = _mapping(entry.get("counts"))
        measurement = _cut(str(entry.get("measurement") or "other"))
        groups.setdefault(measurement, []).append(
            {
                "name": name,
                "marks": marks,
                "value": format_value(entry.get("value")),
                "unit": _cut(str(entry.get("unit") or "")),
                "better": entry.get("better"),
                "counts": [
                    f"{format_value(n)} {_cut(str(kind), 60)}" for kind, n in list(counts.items())[:10]
                ],
                "note": _cut(str(entry.get("note") or "")),
            }
        )
    named = [
        {"title": MEASUREMENTS.get(key, key[:1].upper() + key[1:]), "rows": rows}
        for key, rows in groups.items()
    ]
    return named, footnotes


def _data(data: dict[str, Any]) -> dict[str, Any]:
    classes = _records(data.get("classes"))
    rows = [
        {
            "name": _cut(str(entry.get("name", "")), 100),
            "train": format_value(entry.get("train")),
            "held_out": format_value(entry.get("held_out")),
        }
        for entry in classes[:MAX_CLASSES]
    ]
    return {
        "name": _cut(str(data.get("name") or "")),
        "licence": _cut(str(data.get("licence") or "")),
        "unreadable": int(_number(data.get("unreadable")) or 0),
        "train": format_value(data.get("train")),
        "held_out": format_value(data.get("held_out")),
        "classes": rows,
        "more": len(classes) - len(rows),
        "known": bool(data),
    }


def _command(record: dict[str, Any]) -> str:
    command = record.get("command")
    if isinstance(command, list):
        command = shlex.join(str(word) for word in command)
    return _cut(command.strip(), 5000) if isinstance(command, str) else ""


def _sampling(record: dict[str, Any]) -> str:
    terms = (
        ("guidance scale {}", "guidance_scale"),
        ("{} steps", "num_inference_steps"),
        ("seed {}", "seed"),
    )
    known = [(words, _number(record.get(key))) for words, key in terms]
    return ", ".join(words.format(f"{value:.10g}") for words, value in known if value is not None)


def _versions() -> list[tuple[str, str]]:
    versions = [("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return versions


def _panels(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        stages = curves.collect_curves(curves.read_metrics(path))
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error.strerror}")
        return []
    if len(stages) > MAX_PANELS:
        problems.append(f"{path.name} holds {len(stages):,} stages; {MAX_PANELS} are plotted")
    panels = []
    for name, stage in list(stages.items())[:MAX_PANELS]:
        svg = curves.figure_svg(curves.draw_curves({name: stage}, titles=False))
        steps, values = stage.training.get("loss", curves.Curve()).points()
        title = curves.STAGE_TITLES.get(name, name)
        ends = (
            f": from {format_value(float(values[0]))} to {format_value(float(values[-1]))}"
            if len(values)
            else ""
        )
        after = f" at step {int(steps[-1]):,}" if len(values) else ""
        panels.append(
            {
                "title": _cut(title),
                "light": data_uri(svg, "image/svg+xml"),
                "dark": data_uri(curves.darkened(svg), "image/svg+xml"),
                "alt": _cut(f"Loss curves of {title}{ends}{after}"),
                "unusable": stage.unusable(),
            }
        )
    return panels
