"""KID of the shipped model's samples by Euler's and Heun's scheduler, at equal numbers of evaluations.

Usage: python benchmarks/solvers.py [--samples 500] [--heun-steps 5 10 25 50] [--out PLOT.png]

Heun makes 2N - 1 evaluations of the transformer in N steps, Euler one a step. All settings start from the
same noise and labels, so that their differences are smaller than the deviation over the subsets suggests.
"""

# B batch, C latent channels, h w latent grid

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from ldmae.config import load_config
from ldmae.core.device import device_name, reuse_freed_memory
from ldmae.core.random import generator
from ldmae.evaluation.distances import kernel_distance
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.subject import read_batches
from ldmae.images.index import open_images
from ldmae.loading import load_pipeline, settings_of
from ldmae.perception.features import FeatureExtractor, load_features

SOURCE = "pretrained:emoji"
BATCH = 100


def real_features(extractor: FeatureExtractor) -> Tensor:
    """Returns the features of the training images, (N, D)."""
    config = load_config(settings_of(SOURCE) or {})
    with tempfile.TemporaryDirectory() as cache:
        images, _ = open_images(config.data, Path(cache), progress=False)
        batches = read_batches(images, np.arange(len(images)), config.image_size, BATCH, torch.device("cpu"))
        return torch.cat([extractor(to_uint8(batch)) for _, batch in batches])


def sampled_features(extractor: FeatureExtractor, heun: bool, steps: int, samples: int) -> Tensor:
    """Returns the features of samples with as many of each class, (N, D)."""
    sampling = load_config(settings_of(SOURCE) or {}).sampling
    pipeline = load_pipeline(SOURCE)
    pipeline.set_progress_bar_config(disable=True)
    scheduler = FlowMatchHeunDiscreteScheduler if heun else FlowMatchEulerDiscreteScheduler
    pipeline.scheduler = scheduler(shift=pipeline.scheduler.config["shift"])
    classes = pipeline.transformer.config["num_classes"]
    features = []
    for start in range(0, samples, BATCH):
        numbers = range(start, min(start + BATCH, samples))
        images = pipeline(
            [number % classes for number in numbers],
            guidance_scale=sampling.guidance_scale,
            guidance_interval=tuple(sampling.guidance_interval),
            num_inference_steps=steps,
            generator=[generator(0, "solvers", number) for number in numbers],
            output_type="pt",
        ).images
        features.append(extractor(to_uint8(2 * images - 1)))
    return torch.cat(features)


def draw(curves: dict[str, list[tuple[int, float, float]]], label: str, path: Path) -> None:
    """Saves the distance over evaluations, with the deviation over subsets as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for name, points in curves.items():
        evaluations, means, deviations = zip(*points, strict=True)
        ax.errorbar(evaluations, means, deviations, marker="o", capsize=3, label=name)
    ax.set(xscale="log", xlabel="evaluations of the transformer", ylabel=label)
    ticks = [points[0] for points in next(iter(curves.values()))]
    ax.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    ax.set_xticks([], minor=True)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--heun-steps", type=int, nargs="+", default=[5, 10, 25, 50])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    reuse_freed_memory()
    extractor = load_features("efficientnet_lite0")
    real = real_features(extractor)
    print(
        f"{SOURCE}, {arguments.samples} samples against {len(real)} training images, float32, "
        f"{device_name(torch.device('cpu'))}\n"
    )
    print(f"| evaluations | Euler steps | {extractor.labels.kid} | Heun steps | {extractor.labels.kid} |")
    print("| --- | --- | --- | --- | --- |")
    curves: dict[str, list[tuple[int, float, float]]] = {"Euler": [], "Heun": []}
    for steps in arguments.heun_steps:
        evaluations = 2 * steps - 1
        for name, heun, own in (("Euler", False, evaluations), ("Heun", True, steps)):
            features = sampled_features(extractor, heun, own, arguments.samples)
            curves[name].append((evaluations, *kernel_distance(features, real)))
        (_, euler, euler_std), (_, heun_mean, heun_std) = (points[-1] for points in curves.values())
        print(
            f"| {evaluations} | {evaluations} | {euler:.4f} ± {euler_std:.4f} | {steps} | "
            f"{heun_mean:.4f} ± {heun_std:.4f} |",
            flush=True,
        )
    if arguments.out:
        draw(curves, extractor.labels.kid, arguments.out)


if __name__ == "__main__":
    main()
