"""Model cards: what a reader must know before using a published model, from the files of its run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image

from ldmae.report import curves, grids
from ldmae.report.data import in_classes, json_of, mapping, metrics_of, number, read_arrays, records, remarks
from ldmae.report.formatting import format_seconds
from ldmae.report.tables import footnotes, metrics_table

_TEMPLATE = Path(__file__).with_name("card.md.j2")
_TAGS = ["ldmae", "flow-matching", "class-conditional"]
_SHOWN = {
    *("reconstruction", "generation", "samples", "copies", "smoothness", "ifid", "probe"),
    *("components", "compression"),
}
"""Measurements on a card: what a machine's speed plays no part in, and no curve makes up."""
_MOST_OF_ONE = 12
"""A measurement of more metrics is a curve, of which the area is shown."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says beyond what the files of a run hold."""

    title: str
    summary: str
    licence: str
    """Of the weights, as the Hub names licences."""
    example: str
    """Python code that uses the model."""
    seeds: str
    data: str
    """The training data, as whoever publishes names it."""
    limits: list[str] = field(default_factory=list)
    """Further ones, as sentences."""
    made: str = ""
    """How it was made beyond the run."""
    command: str = ""
    """What measured the metrics."""
    base_model: str | None = None
    """What the training started from, as the Hub names it."""
    onnx: dict[str, Any] | None = None
    """Shapes of the exported networks."""


def write_card(folder: Path, card: Card, run: Path, results: list[dict[str, Any]]) -> None:
    """Writes README.md, the model card, into a folder with a published model and its pictures.

    The run's `data.json` and `stages.json` tell how the model was made; `results` are as `results.json` has
    them.
    """
    data = json_of(run / "data.json", [])
    stages = records(json_of(run / "stages.json", []).get("stages"))
    pipeline = (folder / "model_index.json").is_file()
    shown = [entry for entry in results if _is_shown(entry, results)]
    names = [str(entry["name"]) for entry in records(data.get("classes"))] if pipeline else []
    metrics = metrics_of({"results": shown})
    pictures = {name: f"{name}.png" for name in ("samples", "reconstructions", "nearest")}
    task = "unconditional-image-generation" if pipeline else "image-to-image"
    card_data = ModelCardData(
        license=card.licence,
        library_name="diffusers",
        pipeline_tag=task,
        tags=_TAGS if pipeline else ["ldmae", "autoencoder"],
        base_model=card.base_model,
        model_name=card.title,
        eval_results=[_eval_result(entry, card.data) for entry in shown] or None,  # pyright: ignore
    )
    text = ModelCard.from_template(
        card_data,
        template_path=str(_TEMPLATE),
        title=card.title,
        summary=card.summary,
        example=card.example.strip(),
        class_names=", ".join(names) if len(names) > 1 else "",
        made=card.made.strip(),
        seeds=card.seeds,
        settings=(folder / "settings.yaml").is_file(),
        versions=", ".join(dict.fromkeys(str(stage["version"]) for stage in stages if stage.get("version"))),
        stages="\n".join(_stage(stage) for stage in stages if number(stage.get("steps"))),
        data=_data(card.data, data),
        metrics=metrics_table(metrics, "{:.4g}".format).markdown() if shown else "",
        footnotes=footnotes(list(metrics["name"])),
        command=card.command,
        limits="\n".join(f"- {line}" for line in [*_own_limits(pipeline, results), *card.limits]),
        onnx=card.onnx,
        **{name: file if (folder / file).is_file() else "" for name, file in pictures.items()},
    )
    text.save(folder / "README.md")


def write_pictures(measured: Path, folder: Path, whole: bool) -> None:
    """Writes the pictures of a card: those of reconstructions and, of the `whole`, samples and copies.

    The folder `measured` holds `results/` and `samples/`; what is not there is left out.
    """
    rows = {"reconstructions": ("reconstruction", "originals", "reconstructions")}
    if whole:
        rows["nearest"] = ("copies", "generated", "nearest")
        if (grid := measured / "samples" / "grid.png").is_file():
            _save_small(Image.open(grid), folder / "samples.png")
    for name, (measurement, *parts) in rows.items():
        arrays = read_arrays(measured / "results" / f"{measurement}.npz", [])
        if all(part in arrays for part in parts):
            picture = grids.image_rows({part: arrays[part] for part in parts}, 99)
            _save_small(picture, folder / f"{name}.png")


def _save_small(picture: Image.Image, path: Path) -> None:
    picture.convert("RGB").quantize(256).save(path, optimize=True)


def _is_shown(entry: dict[str, Any], results: list[dict[str, Any]]) -> bool:
    of_one = [other for other in results if other.get("measurement") == entry.get("measurement")]
    return entry.get("measurement") in _SHOWN and (
        len(of_one) <= _MOST_OF_ONE or str(entry.get("name")).endswith("-AUC")
    )


def _eval_result(entry: dict[str, Any], data: str) -> EvalResult:
    """Returns a metric for the Hub, under the name that says what it was measured with."""
    generated = entry["measurement"] in ("generation", "samples", "copies")
    return EvalResult(
        task_type="unconditional-image-generation" if generated else "image-to-image",
        task_name=str(entry["measurement"]),
        dataset_type=re.sub(r"\W+", "-", data.lower()).strip("-")[:40] or "images",
        dataset_name=data,
        metric_type=str(entry["name"]),
        metric_name=str(entry["name"]),
        metric_value=entry["value"],
        metric_args={**mapping(entry.get("counts")), "note": remarks(entry)},
    )


def _stage(stage: dict[str, Any]) -> str:
    name, steps = str(stage.get("name")), number(stage.get("steps")) or 0
    title = curves.STAGE_TITLES.get(name, name)
    return f"- {title}: {steps:,.0f} steps, {format_seconds(stage.get('seconds'))} ({stage.get('device')})"


def _data(named: str, data: dict[str, Any]) -> str:
    counts = [f"{number(data.get('train')) or 0:,.0f} training images{in_classes(data)}"]
    counts += [f"{held_out:,.0f} held out"] if (held_out := number(data.get("held_out"))) else []
    return f"{named.rstrip('.')}. {'; '.join(counts)}."


def _own_limits(pipeline: bool, results: list[dict[str, Any]]) -> list[str]:
    """Returns what the metrics say of the model's limits."""
    lines = ["It handles only images that are similar to its training data."]
    if pipeline:
        found = {entry["name"]: entry for entry in results if entry["measurement"] == "copies"}
        if (near := found.get("authenticity")) is None:
            lines.append("How many of its images are copies of training images was not measured.")
        else:
            of = mapping(near.get("counts")).get("generated")
            real = "".join(f"; {kind}: {1 - value:.1%}" for kind, value in near["reference"].items())
            lines.append(
                f"{1 - near['value']:.1%} of {of} generated images are closer to a training image than any "
                f"other training image is to that one{real}."
            )
            if (same := found.get("copies")) is not None:
                lines[-1] += f" By the stricter metric `copies`, {same['value']:.1%} are near-copies."
    if not results:
        lines.append("Nothing of it was measured.")
    return lines
