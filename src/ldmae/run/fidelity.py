"""Metrics of the images that a run generates."""

from __future__ import annotations

from collections.abc import Iterator

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
from ldmae.perception.features import load_features
from ldmae.run.run import Run
from ldmae.run.sample_cache import KEPT, keep_generated
from ldmae.run.sampling import measured_sampling


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
    mine = np.array_split(real_images, run.accelerator.num_processes)[run.accelerator.process_index]
    # whose settings are this run's: what they name was typed, or allowed
    pipeline = load_pipeline(str(run.folder), allow_code=True).to(run.accelerator.device)
    sampling = measured_sampling(run.config)
    made = keep_generated(pipeline, wanted, sampling, run.accelerator, run.folder / KEPT)
    features = [extractor(batch).cpu() for batch in made.share(run.accelerator)]
    real = [torch.empty(0, extractor.dimensions)]
    with progress_bar("features of real images", len(mine), "images", show=run.main) as advance:
        for images in _batches(run.train, run, mine):
            real.append(extractor(images).cpu())
            advance(len(images), "")
    gathered = gather_object([{"fake": features, "real": torch.cat(real)}])
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


def _recognition(run: Run, generated: Tensor, wanted: np.ndarray, bearing: np.ndarray) -> Metric:
    held_labels = np.asarray(run.held_out.labels)
    held = np.flatnonzero(held_labels >= 0)
    real = torch.cat([images.cpu() for images in _batches(run.train, run, bearing)])
    unseen = torch.cat([images.cpu() for images in _batches(run.held_out, run, held)])
    recogniser = train_recogniser(real, np.asarray(run.train.labels)[bearing])
    return recognition_metric(recogniser, generated, wanted, unseen, held_labels[held])


def _batches(source: ImageSource, run: Run, indices: np.ndarray) -> Iterator[Tensor]:
    """Yields images (B, 3, H, W) in uint8 on the run's device."""
    size, batch = run.config.image_size, run.config.evaluation.batch_size
    for _, images in read_batches(source, indices, size, batch, run.accelerator.device):
        yield to_uint8(images)
