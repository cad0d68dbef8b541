"""The report of a run: one HTML file that needs no other, from whatever the run folder holds so far."""

from __future__ import annotations

import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

from ldmae.report import charts, curves
from ldmae.report.formatting import format_count, format_seconds, format_value, join_words
from ldmae.report.pages import chart, write_page
from ldmae.report.pictures import (
    components_picture,
    copies_picture,
    interpolation_picture,
    reconstructions_picture,
    samples_picture,
)
from ldmae.report.reading import cut, mapping, number, read_json, read_text, records
from ldmae.report.tables import FOOTNOTES
from ldmae.report.units import Unit, Variant, read_figures

MAX_RESULTS, MAX_CLASSES, MAX_PANELS = 300, 1000, 4
"""Figures, classes and stages' loss curves that are shown at most."""
MAX_SETTINGS = 150_000
"""Characters of the settings that are shown."""
PACKAGES = ("ldmae", "torch", "torchvision", "diffusers", "accelerate", "numpy", "pillow")
MEASUREMENTS = {
    "reconstruction": "Reconstruction",
    "smoothness": "Latent smoothness",
    "interpolation": "Between two images",
    "ifid": "Between nearest latents",
    "compression": "Perceptual compression",
    "probe": "Linear probe",
    "components": "Principal components",
    "generation": "Generation",
    "samples": "Generated images, measured as by ADM's evaluator",
    "floor": "Floor: one half of the real images against the other",
    "copies": "Copies of training images",
    "efficiency": "Cost",
}
"""Titles, in the order in which they are shown; others follow."""
FOLDED = 12
"""Figures of a measurement from which on they are folded away."""


def render_report(run_folder: Path, title: str | None = None) -> Path:
    """Writes `report.html` into a run folder, atomically: one file that needs no other, under 5 MB.

    It shows what there is, says what is missing and names what can't be read. The same folder gives the same
    bytes. Of a folder in which something foreign was measured (it has `measured.json` and no `config.yaml`),
    it shows the measurements and misses nothing else.

    Args:
        run_folder: a run's folder, or one that `ldmae evaluate` or `evaluate-samples` filled.
        title: heading; the folder's name, or what was measured, where it is None.

    Returns:
        The path of the page.
    """
    run_folder = Path(run_folder)
    problems: list[str] = []
    context = _gather(run_folder, problems)
    context["title"] = title or context["title"]
    path = run_folder / "report.html"
    write_page(path, "report.html.j2", context, lambda budget: _pictures(run_folder, budget, problems))
    return path


def _gather(folder: Path, problems: list[str]) -> dict[str, Any]:
    """Returns what the template shows, but for the pictures."""
    config_text = read_text(folder / "config.yaml", problems)
    data = mapping(read_json(folder / "data.json", problems))
    parameters = mapping(read_json(folder / "parameters.json", problems))
    stages = _stages(mapping(read_json(folder / "stages.json", problems)))
    record = mapping(read_json(folder / "results.json", problems))
    results, footnotes = _results(record, problems)
    measured = mapping(read_json(folder / "measured.json", problems)) if config_text is None else {}
    title, summary = f"LDMAE run: {folder.resolve().name}", _summary(data, parameters, stages)
    if measured:
        title, summary = _measured(measured)
    return {
        "title": title,
        "summary": summary,
        "measured": measured,
        "smoothness": _smoothness(record),
        "sampling": _sampling(mapping(read_json(folder / "samples" / "samples.json", problems))),
        "results": results,
        "footnotes": footnotes,
        "panels": _panels(folder / "metrics.jsonl", problems),
        "stages": stages,
        "data": _data(data),
        "settings": cut(config_text, MAX_SETTINGS),
        "command": _command(mapping(read_json(folder / "run.json", problems))),
        "versions": _versions(),
    }


def _pictures(folder: Path, budget: int, problems: list[str]) -> dict[str, Any]:
    found: list[str] = []
    pairs = folder / "results" / "reconstruction_pairs.npz"
    record = mapping(read_json(folder / "samples" / "samples.json", []))
    return {
        "samples": samples_picture(folder / "samples", record, budget, found),
        "reconstructions": reconstructions_picture(pairs, budget, found),
        "components": components_picture(folder / "results" / "components.npz", budget, found),
        "interpolation": interpolation_picture(folder / "results" / "interpolation.npz", budget, found),
        "copies": copies_picture(folder / "results" / "copies.npz", budget, found),
        "problems": problems + found,
    }


# What the template shows, section by section.


def _summary(data: dict[str, Any], parameters: dict[str, Any], stages: dict[str, Any]) -> str:
    models = []
    for key, name in (("autoencoder", "an autoencoder"), ("diffusion", "a diffusion model")):
        total = number(mapping(parameters.get(key)).get("total"))
        if total is not None:
            models.append(f"{name} ({format_count(total)} parameters)")
    train, held_out = number(data.get("train")), number(data.get("held_out"))
    classes = len(records(data.get("classes")))
    parts = [join_words(models) or "models"]
    if train is not None:
        name = f" of {cut(str(data['name']), 100)}" if data.get("name") else ""
        parts.append(
            f"trained on {train:,.0f} images{name}" + (f" in {classes:,} classes" if classes > 1 else "")
        )
    if stages["total"]:
        devices = f" on {join_words(stages['devices'])}" if stages["devices"] else ""
        parts.append(f"made in {stages['total']}{devices}")
    if len(parts) == 1 and not models:
        return "This run has no results yet."
    sentence = ", ".join(parts) + (f"; {held_out:,.0f} more images were held out" if held_out else "")
    return sentence[0].upper() + sentence[1:] + "."


def _stages(record: dict[str, Any]) -> dict[str, Any]:
    rows, devices = [], []
    entries = [
        e for e in records(record.get("stages")) if (e.get("name"), e.get("status")) != ("report", "running")
    ]
    seconds = [number(entry.get("seconds")) for entry in entries]
    longest = max((s for s in seconds if s), default=0)
    for entry, spent in list(zip(entries, seconds, strict=True))[:MAX_RESULTS]:
        name, device = str(entry.get("name", "unnamed")), str(entry.get("device") or "")
        if device and device not in devices:
            devices.append(cut(device, 40))
        rows.append(
            {
                "name": cut(curves.STAGE_TITLES.get(name, name)),
                "status": cut(str(entry.get("status", ""))),
                "seconds": format_seconds(spent),
                "share": round(100 * spent / longest, 1) if spent and longest else 0,
                "device": cut(device),
                "finished": cut(str(entry.get("finished") or "")[:19].replace("T", " ")),
            }
        )
    known = [s for s in seconds if s]
    return {"rows": rows, "total": format_seconds(sum(known)) if known else "", "devices": devices[:3]}


def _results(record: dict[str, Any], problems: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the figures' groups, one a measurement, and the footnotes that their rows number."""
    groups: dict[str, list[dict[str, Any]]] = {}
    footnotes: list[str] = []
    entries = records(record.get("results"))
    if len(entries) > MAX_RESULTS:
        problems.append(f"results.json holds {len(entries):,} metrics; {MAX_RESULTS} are shown")
    for entry in sorted(entries[:MAX_RESULTS], key=_place):
        name = cut(str(entry.get("name", "unnamed")))
        marks = []
        for part, text in FOOTNOTES.items():
            if part.lower() in name.lower():
                if text not in footnotes:
                    footnotes.append(text)
                marks.append(footnotes.index(text) + 1)
        counts = mapping(entry.get("counts"))
        measurement = cut(str(entry.get("measurement") or "other"))
        groups.setdefault(measurement, []).append(
            {
                "name": name,
                "marks": marks,
                "value": format_value(entry.get("value")),
                "unit": cut(str(entry.get("unit") or "")),
                "better": entry.get("better"),
                "counts": [
                    f"{format_value(n)} {cut(str(kind), 60)}" for kind, n in list(counts.items())[:10]
                ],
                "note": cut(str(entry.get("note") or "")),
            }
        )
    named = [
        {
            "title": MEASUREMENTS.get(key, key[:1].upper() + key[1:]),
            "rows": rows,
            "folded": len(rows) > FOLDED,
        }
        for key, rows in groups.items()
    ]
    return named, footnotes


def _place(entry: dict[str, Any]) -> int:
    """Returns where a figure's measurement stands among all."""
    order = list(MEASUREMENTS)
    measurement = entry.get("measurement")
    return order.index(measurement) if measurement in order else len(order)


def _measured(record: dict[str, Any]) -> tuple[str, str]:
    """Returns heading and summary of a folder in which something foreign was measured."""
    if "autoencoder" in record:
        size = number(record.get("image_size"))
        on = f" on the images of {record['data']}" if record.get("data") else ""
        at = f", at {size:.0f} px" if size else ""
        return f"Measured: {cut(str(record['autoencoder']), 100)}", f"An autoencoder, measured{cut(on)}{at}."
    source, reference = (cut(str(record.get(key) or "not known"), 100) for key in ("source", "reference"))
    return f"Measured: {source}", f"Generated images, compared with the real ones of {reference}."


def _smoothness(record: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the plot of all figures over latent noise, where they were measured."""
    unit = Unit(Path(), "", 0, {}, read_figures(record, "", []))
    alone = [Variant(name="", title="", group="", order=0, units=[unit])]
    found = charts.noise_curves(alone)
    if not found:
        return None
    title = f"{join_words([curve.title for curve in found])} over latent noise"
    return chart(charts.smoothness(found, alone), title, title)


def _data(data: dict[str, Any]) -> dict[str, Any]:
    classes = records(data.get("classes"))
    rows = [
        {
            "name": cut(str(entry.get("name", "")), 100),
            "train": format_value(entry.get("train")),
            "held_out": format_value(entry.get("held_out")),
        }
        for entry in classes[:MAX_CLASSES]
    ]
    facts = list(data["facts"]) if isinstance(data.get("facts"), list) else []
    return {
        "name": cut(str(data.get("name") or "")),
        "licence": cut(str(data.get("licence") or "")),
        "unreadable": int(number(data.get("unreadable")) or 0),
        "facts": [cut(fact, 400) for fact in facts[:20] if isinstance(fact, str)],
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
    return cut(command.strip(), 5000) if isinstance(command, str) else ""


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
        steps, values = stage.training.get("loss", curves.Curve()).points()
        title = curves.STAGE_TITLES.get(name, name)
        ends = (
            f": from {format_value(float(values[0]))} to {format_value(float(values[-1]))}"
            if len(values)
            else ""
        )
        after = f" at step {int(steps[-1]):,}" if len(values) else ""
        figure = curves.draw_curves({name: stage}, titles=False)
        drawn = chart(figure, title, f"Loss curves of {title}{ends}{after}")
        panels.append(drawn | {"unusable": stage.unusable()})
    return panels
