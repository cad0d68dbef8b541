"""Metrics of generated images by their features, and copies among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldmae.config import Config
from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import Metric
from ldmae.core.provenance import Record
from ldmae.evaluation.api import OF_GENERATED, Measured
from ldmae.evaluation.copies import compared_images, measure_copies
from ldmae.evaluation.distances import FEWEST_IMAGES
from ldmae.evaluation.generation import fidelity_metrics, floor_metrics, generation_metrics, mind_metric
from ldmae.evaluation.references import Reference
from ldmae.evaluation.results import merge_results, remove_results, write_results
from ldmae.perception.features import FeatureExtractor, Features
from ldmae.run.initial import teachers
from ldmae.run.real_images import Trained
from ldmae.run.sample_cache import SampleSet


def write_metrics(folder: Path, name: str, metrics: list[Metric], record: Record | None = None) -> None:
    """Writes metrics of generated images, with the record of those."""
    write_results(folder, name, OF_GENERATED[name], Measured(metrics), record)


def mark_taught(metrics: list[Metric], config: Config) -> list[Metric]:
    """Marks the metrics on features of a network that a run's autoencoder was trained with."""
    names = tuple(f"-{name}" for name in teachers(config))
    return [replace(metric, trained_on_metric=metric.name.endswith(names)) for metric in metrics]


def judged(
    features: list[Features],
    known: list[Reference],
    extractors: list[FeatureExtractor],
    config: EvaluationConfig,
    device: torch.device,
) -> tuple[list[Metric], list[Metric]]:
    """Returns all metrics on the first network's features, KID (and FD) on the second's, and the floors."""
    seed, shrink = config.seed, config.shrink_covariance
    device = torch.device("cpu") if device.type == "mps" else device  # which knows no float64
    metrics = generation_metrics(features[0], known[0], shrink=shrink, seed=seed, device=device)
    floor: list[Metric] = []
    for number, (made, reference, extractor) in enumerate(zip(features, known, extractors, strict=True)):
        real = reference.images
        if real is None or min(len(made), len(real)) < FEWEST_IMAGES:
            continue
        if number > 0:
            metrics += fidelity_metrics(made.pooled, real.pooled, extractor, seed=seed, shrink=shrink)
        if min(len(made), len(real) // 2) < FEWEST_IMAGES:
            continue
        floor += floor_metrics(real.pooled, len(made), extractor.labels, seed, device)
        if number == 0:
            metrics.append(mind_metric(made.pooled, real.pooled, extractor.labels.mind, seed))
    return metrics, floor


def write_copies(folder: Path, made: SampleSet, own: Trained, config: Config) -> None:
    """Compares some generated images with those the model was trained on, where these are known."""
    if own is None:  # what may be there is of other images
        remove_results(folder, "copies")
        merge_results(folder)
        return
    seed = config.evaluation.seed
    copies = measure_copies(
        made.select(compared_images(made.count, made.labels, seed)),
        *own,
        size=made.size,
        mirrored=config.latents.flip,
        batch_size=config.evaluation.batch_size,
        seed=seed,
    )
    write_results(folder, "copies", OF_GENERATED["copies"], copies, made.record)


def features_of(made: SampleSet, extractor: FeatureExtractor, accelerator: Accelerator) -> Features | None:
    """Returns the features of all generated images, on the main process: each makes a share of them."""
    mine = [extractor.none(), *(extractor.measure(images).cpu() for images in made.share(accelerator))]
    gathered = gather_object([Features.join(mine)])
    return Features.join(gathered) if accelerator.is_main_process else None
