"""Metrics of the images that a run generates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import ImageSource, Metric
from ldmae.core.progress import progress_bar
from ldmae.core.provenance import Record
from ldmae.core.random import generator
from ldmae.evaluation.generation import fidelity_metrics
from ldmae.evaluation.recognition import recognition_metric, train_recogniser
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.subject import read_batches
from ldmae.loading import load_pipeline
from ldmae.perception.features import FeatureExtractor, load_features
from ldmae.run.run import Run
from ldmae.run.sample_cache import KEPT, keep_generated


def measure_generation(run: Run, config: EvaluationConfig) -> tuple[list[Metric], Record]:
    """Measures generated images, in the training set's proportion of classes, against training images.

    The processes share the work; the main process returns the metrics, the others an empty list, and all
    what they are made of.
    """
    labels = np.asarray(run.train.labels)
    bearing = np.flatnonzero(labels >= 0)  # images without a class train the autoencoder only
    order = torch.randperm(len(bearing), generator=generator(config.seed, "evaluation labels")).numpy()
    wanted = np.resize(labels[bearing[order]], config.samples)
    real_images = bearing[order][: config.real_images]
    extractor = load_features(config.features, run.accelerator.device)
    theirs = _share(len(real_images), run)
    # whose settings are this run's: what they name was typed, or allowed
    pipeline = load_pipeline(str(run.folder), allow_code=True).to(run.accelerator.device)
    sampling = run.config.sampling.replace(
        seed=config.seed + 1,  # not the noise of the grid
        guidance_scale=(
            run.config.sampling.guidance_scale if config.guidance_scale is None else config.guidance_scale
        ),
    )
    made = keep_generated(pipeline, wanted, sampling, run.accelerator, run.folder / KEPT)
    features = [extractor(batch).cpu() for batch in made.share(run.accelerator)]
    with progress_bar(
        "features of real images", theirs.stop - theirs.start, "images", show=run.main
    ) as advance:
        real = _features(extractor, _batches(run.train, run, real_images[theirs]), advance)
    gathered = gather_object([{"fake": features, "real": real}])
    if not run.main:
        return [], made.record
    fake = torch.cat([piece for share in gathered for piece in share["fake"]])
    metrics = fidelity_metrics(
        fake,
        torch.cat([share["real"] for share in gathered]),
        extractor,
        seed=config.seed,
        shrink=config.shrink_covariance,
    )
    if config.recogniser:
        generated = torch.cat(list(made.batches(0, made.count)))
        metrics.append(_recognition(run, generated, wanted, bearing))
    return metrics, made.record


def _share(count: int, run: Run) -> slice:
    """Returns this process's contiguous share of `count` things."""
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    return slice(rank * count // world, (rank + 1) * count // world)


def _recognition(run: Run, generated: Tensor, wanted: np.ndarray, bearing: np.ndarray) -> Metric:
    held_labels = np.asarray(run.held_out.labels)
    held = np.flatnonzero(held_labels >= 0)
    real = torch.cat([to_uint8(images).cpu() for images in _batches(run.train, run, bearing)])
    unseen = torch.cat([to_uint8(images).cpu() for images in _batches(run.held_out, run, held)])
    recogniser = train_recogniser(real, np.asarray(run.train.labels)[bearing])
    return recognition_metric(recogniser, generated, wanted, unseen, held_labels[held])


def _features(extractor: FeatureExtractor, batches: Iterator[Tensor], advance: Any) -> Tensor:
    pieces = [torch.empty(0, extractor.dimensions)]
    for images in batches:
        pieces.append(extractor(to_uint8(images)).cpu())
        advance(len(images), "")
    return torch.cat(pieces)


def _batches(source: ImageSource, run: Run, indices: np.ndarray) -> Iterator[Tensor]:
    """Yields images (B, 3, H, W) in [-1, 1] on the run's device."""
    size, batch = run.config.image_size, run.config.evaluation.batch_size
    for _, images in read_batches(source, indices, size, batch, run.accelerator.device):
        yield images
