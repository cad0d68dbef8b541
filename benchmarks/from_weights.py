"""What starting from weights gains: metrics by training seconds, from `pretrained:emoji` and from nothing.

Both trainings have the same model, images, steps and settings, those of the shipped model. Of the autoencoder
the held-out PSNR is taken while it is pre-trained, of the diffusion model KID of generated images, each time
its training has been extended. No other program should run beside it, or seconds are not comparable. Kept are
OUT/from-weights.json and OUT/from-weights.png. Interrupted, the command resumes from the former and from the
run folders.

Usage: python benchmarks/from_weights.py PATH [--runs runs/from-weights] [--out docs/pictures]
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from _timing import machine
from matplotlib.figure import Figure

from ldmae.config import Config, load_config
from ldmae.core.files import read_json, write_json
from ldmae.loading import settings_of
from ldmae.run import evaluate_run, run_stages

SOURCE = "pretrained:emoji"
UNITS = {"autoencoder": "held-out PSNR, dB", "diffusion": "KID-efficientnet_lite0"}
Curve = list[tuple[int, float, float]]
"""Steps, seconds of training, and the metric then."""


def settings(data: str, *changes: str) -> Config:
    """Returns the shipped model's settings, on other images."""
    base: dict[str, Any] = {"base": settings_of(SOURCE), "data": {"source": data, "val": "0.1"}}
    return load_config(base, [*changes, "threads=1"])


def autoencoder_curve(data: str, folder: Path, steps: int, init: list[str]) -> Curve:
    """Returns held-out PSNR in dB while VMAE is pre-trained."""
    training = "autoencoder.pretraining.training"
    config = settings(
        data,
        *init,
        "autoencoder.tuning.enabled=false",
        f"{training}.steps={steps}",
        f"{training}.validate_every={max(1, steps // 10)}",
        f"{training}.log_every={max(1, steps // 10)}",
    )
    run_stages(config, folder, "autoencoder")
    spent, curve = 0.0, Curve()
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        spent += line.get("seconds", 0.0)
        if "validation" in line:
            error = line["validation"]["terms"]["visible"]  # mean square, of images in [-1, 1]
            curve.append((line["step"], spent, 10 * math.log10(4 / error)))
    return curve


def diffusion_point(data: str, folder: Path, steps: int, init: list[str]) -> tuple[int, float, float]:
    """Returns KID after so many steps of the diffusion model on the shipped autoencoder's latents."""
    config = settings(
        data,
        *init,
        f"autoencoder.source={SOURCE}",
        f"diffusion.training.steps={steps}",
        "diffusion.training.optimizer.schedule=constant",
        "diffusion.training.ema_decay=0.98",  # a longer average would hold the start of so short a training
        "evaluation.samples=300",
    )
    run_stages(config, folder, "latents", "diffusion")
    evaluate_run(config, folder, ["generation"])
    stages = {entry["name"]: entry for entry in read_json(folder / "stages.json")["stages"]}
    metrics = {entry["name"]: entry for entry in read_json(folder / "results.json")["results"]}
    return steps, stages["diffusion"]["seconds"], metrics[UNITS["diffusion"]]["value"]


def draw(curves: dict[str, dict[str, Curve]], path: Path) -> None:
    """Draws a panel for each model: both curves."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, (title, unit) in enumerate(UNITS.items()):
        axes = figure.add_subplot(1, 2, place + 1)
        for name, curve in curves[title].items():
            _, seconds, values = zip(*curve, strict=True)
            axes.plot(seconds, values, marker="o", label=name)
        axes.set(title=title, xlabel="seconds of training", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Trains what is not trained, prints a table, and draws the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="images: a folder or any other source")
    parser.add_argument("--steps", type=int, default=400, help="of the autoencoder")
    parser.add_argument("--diffusion-steps", type=int, nargs="+", default=[200, 400, 800])
    parser.add_argument("--runs", type=Path, default=Path("runs/from-weights"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "from-weights.json"
    curves = read_json(kept)["curves"] if kept.exists() else {"autoencoder": {}, "diffusion": {}}
    for name, source in (("from weights", [SOURCE]), ("from nothing", [])):
        folder = given.runs / name.replace(" ", "-")
        if name not in curves["autoencoder"]:
            init = [f"autoencoder.init={each}" for each in source]
            curves["autoencoder"][name] = autoencoder_curve(
                given.data, folder / "autoencoder", given.steps, init
            )
        points = curves["diffusion"].setdefault(name, [])
        init = [f"diffusion.init={each}" for each in source]
        for steps in given.diffusion_steps[len(points) :]:
            points.append(diffusion_point(given.data, folder / "diffusion", steps, init))
            write_json(kept, {"machine": machine(), "curves": curves})
    write_json(kept, {"machine": machine(), "curves": curves})
    draw(curves, given.out / "from-weights.png")
    print("| model | start | steps, seconds: metric |\n| --- | --- | --- |")
    for title, both in curves.items():
        for name, curve in both.items():
            points = [f"{steps}, {seconds:.0f} s: {value:.4g}" for steps, seconds, value in curve]
            print(f"| {title} | {name} | {'; '.join(points)} |")


if __name__ == "__main__":
    main()
