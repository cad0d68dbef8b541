"""A run folder as a run leaves it, with drawn pictures."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldmae.contracts import RESULTS_SCHEMA, Metric

CLASSES = ["faces", "hearts", "clocks", "transport and other vehicles", "<script>alert('class')</script>"]


def draw_images(count: int, size: int = 48) -> np.ndarray:
    """Returns uint8 (count, size, size, 3): a coloured disc with a stroke, each another."""
    colours = np.random.default_rng(0).integers(30, 220, (count, 3))
    images = []
    for i in range(count):
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse((4 + i % 5, 4, size - 8, size - 4), fill=tuple(colours[i].tolist()))
        draw.line((6, size - 6 - i % 9, size - 4, 6), fill="black", width=2)
        images.append(np.asarray(image))
    return np.stack(images)


STAGES = {
    "autoencoder.pretraining": {
        "visible": (0.3, 0.006, 1),
        "masked": (0.4, 0.02, 1),
        "perceptual": (0.5, 0.15, 0.5),
        "kl": (90, 60, 1e-6),
    },
    "autoencoder.tuning": {"visible": (0.002, 0.006, 1), "perceptual": (0.02, 0.1, 0.15)},
    "diffusion": {"velocity": (0.9, 0.6, 1)},
}
"""By stage and term: how far the term falls, to where, and its weight."""


def metrics_lines() -> list[str]:
    random = np.random.default_rng(1)
    lines = []
    for stage, sizes in STAGES.items():
        for step in range(2, 901, 2):
            terms = {
                name: (fall * math.exp(-step / 90) + end) * math.exp(0.1 * random.normal())
                for name, (fall, end, _) in sizes.items()
            }
            loss = sum(weight * terms[name] for name, (_, _, weight) in sizes.items())
            place = {"stage": stage, "step": step}
            speed = {"learning_rate": 1e-3, "images_per_second": 210.0, "seconds": step * 0.16}
            lines.append(json.dumps(place | {"loss": loss, "terms": terms} | speed))
            if stage == "autoencoder.pretraining" and step % 100 == 0:
                higher = {name: value * 1.1 for name, value in terms.items()}
                lines.append(json.dumps(place | {"validation": {"loss": loss * 1.1, "terms": higher}}))
    return lines


def _result(measurement: str, name: str, value: float, better: str, **more: object) -> dict:
    counts = {"held-out": 103} if measurement == "reconstruction" else {"generated": 1000, "real": 1037}
    metric = Metric(name=name, value=value, better=better, counts=counts, **more)  # type: ignore[arg-type]
    return metric.to_dict() | {"measurement": measurement}


def _results() -> list[dict]:
    return [
        _result("reconstruction", "PSNR", 21.93471, "higher", unit="dB"),
        _result("reconstruction", "SSIM", 0.8932, "higher"),
        _result("reconstruction", "ST-LPIPS-alex", 0.06214, "lower", trained_on_metric=True),
        _result("generation", "KID-efficientnet_lite0", 0.0123456, "lower"),
    ]


TITLES = {"reconstruction": "Reconstruction", "generation": "Generation"}


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a run folder, to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "emoji"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "emoji"
    _json(folder / "results.json", {"schema": RESULTS_SCHEMA, "titles": TITLES, "results": _results()})
    seconds = {"autoencoder.pretraining": 144.2, "autoencoder.tuning": 61.0, "latents": 4.31}
    seconds |= {"diffusion": 355.6, "pipeline": 0.4, "samples": 12.2, "evaluation": 25.0}
    done = {"status": "done", "finished": "2025-11-03T10:20:30+00:00", "device": "cpu"}
    stages = [{"name": name, "seconds": value} | done for name, value in seconds.items()]
    _json(folder / "stages.json", {"stages": [*stages, {"name": "report", "status": "running"}]})
    counts = [{"name": name, "train": 80 + 7 * i, "held_out": 9 + i} for i, name in enumerate(CLASSES)]
    data = {"name": "twemoji", "licence": "CC-BY 4.0", "train": 1037, "held_out": 103, "unreadable": 2}
    _json(folder / "data.json", data | {"classes": counts})
    sizes = {"autoencoder": {"total": 4_812_304, "trainable": 4_700_000}, "diffusion": {"total": 15_100_000}}
    _json(folder / "parameters.json", sizes)
    (folder / "config.yaml").write_text(
        "preset: emoji\nseed: 3\ndata:\n  name: emoji\n  size: 48\n"
        "autoencoder:\n  model:\n    patch_size: 6\n    note: '</pre><script>alert(1)</script>'\n"
    )
    _json(folder / "run.json", {"command": ["ldmae", "run", "emoji", "seed=3"]})
    (folder / "metrics.jsonl").write_text("\n".join(metrics_lines()) + '\n{"stage": "diffusion", "st')
    images = draw_images(40)
    labels = [i % 5 for i in range(40)]
    (folder / "samples" / "images").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "samples" / "images" / f"{i:05d}.png")
    drawn = {"guidance_scale": 2.5, "num_inference_steps": 50, "seed": 0}
    _json(folder / "samples" / "samples.json", {"class_names": CLASSES, "labels": labels} | drawn)
    noise = np.random.default_rng(2).integers(-25, 25, images.shape)
    blurred = (images.astype(int) + noise).clip(0, 255).astype(np.uint8)
    (folder / "results").mkdir()
    np.savez(folder / "results" / "reconstruction.npz", originals=images, reconstructions=blurred)
    return folder
