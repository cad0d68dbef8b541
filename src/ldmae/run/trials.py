"""Pieces of a run, tried on models with random weights: a step of a training, a batch of the measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.utils import clip_grad_norm_

from ldmae.config import Config
from ldmae.contracts import BatchKeys
from ldmae.core.autoencoding import reconstruct
from ldmae.evaluation.distances import FEWEST_IMAGES, SUBSET_SIZE, SUBSETS, kernel_distance
from ldmae.evaluation.efficiency import seconds_of
from ldmae.evaluation.reconstruction import PairMetrics
from ldmae.perception.features import load_features
from ldmae.perception.lpips import load_perceptual
from ldmae.run.plan import example_rows
from ldmae.run.run import Run
from ldmae.run.trainings import adversary_start, trainings, untrained_objective
from ldmae.training.averaging import AveragedWeights
from ldmae.training.data import split_rows
from ldmae.training.optim import build_optimizer

_FEW = 2
"""Images that a piece of work is tried on first."""
_PATIENCE = 1.0
"""Seconds above which a piece of work is tried on no more images."""


def seconds_of_an_image(
    work: Callable[[int], object], count: int, device: torch.device | str = "cpu"
) -> float:
    """Returns the seconds of an image in work on `count` of them, as many as the run takes at once.

    Where all of them take more than `_PATIENCE`, they are extrapolated from a few, by a line through two
    counts: what a call costs by itself (an optimizer's step, say) does not grow with the images.
    """
    few = min(_FEW, count)
    work(few)  # the first time is slower
    seconds = min(seconds_of(lambda: work(few), device) for _ in range(2))
    if count == few or seconds > _PATIENCE:
        return seconds / few
    more = min(2 * few, count)
    growth = (min(seconds_of(lambda: work(more), device) for _ in range(2)) - seconds) / (more - few)
    expected = (seconds + max(0.0, growth) * (count - few)) / count
    if expected * count > _PATIENCE:
        return expected
    try:
        work(count)
    except torch.OutOfMemoryError:  # beside what the training holds
        return expected
    return median(seconds_of(lambda: work(count), device) for _ in range(3)) / count


def seconds_of_steps(
    config: Config,
    stage: str,
    accelerator: Accelerator,
    autoencoder: Any,
    latent_shape: tuple[int, int] = (1, 1),
    num_classes: int = 1,
    loading: float = 0.0,
) -> tuple[float, float, int]:
    """Times this process's share of a training's first step and of its last, which an adversary may join.

    Weights are random. The autoencoder has the shape of the run's, its latents have `latent_shape`: channels
    and cells along a side. Each image takes `loading` seconds besides. The steps are as the last one from the
    step on that is returned too.
    """
    training = trainings(config)[stage]
    with torch.random.fork_rng(devices=[]), torch.device(str(accelerator.device)):
        before: Any = None
        if stage != next(iter(trainings(config))) or config.autoencoder.init is not None:
            before = type(autoencoder).from_config(autoencoder.config)
        objective: Any = untrained_objective(config, stage, latent_shape, num_classes, before)
    objective = objective.to(accelerator.device).train()
    share = split_rows(
        training.batch_size, training.micro_batch_size, accelerator.process_index, accelerator.num_processes
    )
    rows = example_rows(config, stage, latent_shape, len(share[0]))
    rows = {name: value.to(accelerator.device) for name, value in rows.items()}
    optimizer = build_optimizer(objective, training.optimizer)
    average = None if training.ema_decay is None else AveragedWeights(objective.model, training.ema_decay)

    def step(number: int, count: int) -> None:
        optimizer.zero_grad()
        with accelerator.autocast():
            piece = {name: value[:count] for name, value in rows.items()}
            loss = objective(piece, BatchKeys(0, number, range(count), count)).loss
        loss.backward()
        clip_grad_norm_(objective.model.parameters(), math.inf)
        optimizer.step()
        if average is not None:
            average.update(1)

    start, images = min(adversary_start(config, stage), training.steps), sum(map(len, share))
    seconds = [
        images * (loading + seconds_of_an_image(partial(step, number), len(share[0]), accelerator.device))
        for number in ((0, training.steps) if start else (training.steps,))
    ]
    return seconds[0], seconds[-1], start


def measuring_seconds(run: Run, autoencoder: Any, held_out: int, real: int) -> tuple[float, float, float]:
    """Times the measurements of a run, which reconstruct `held_out` images and compare with `real` ones.

    Returns:
        Seconds of an image's features, of reconstructing and comparing an image, and of all distances.
    """
    config, size, device = run.config.evaluation, run.config.image_size, run.accelerator.device
    extractor = load_features(config.features, device)
    perceptual = load_perceptual(config.perceptual, device)
    pixels = torch.zeros(config.batch_size, 3, size, size).to(device, torch.uint8)
    metrics = PairMetrics(perceptual=perceptual, extractor=extractor if held_out >= FEWEST_IMAGES else None)

    @torch.no_grad()
    def measure(count: int) -> None:
        images = pixels[:count].float()
        metrics.update(images, reconstruct(autoencoder, images))

    some = min(8, config.batch_size)
    features = seconds_of_an_image(lambda count: extractor(pixels[:count]), some, device)
    restoring = seconds_of_an_image(measure, some, device)
    rows = min(SUBSET_SIZE, config.samples, real)
    first, second = torch.rand(2, rows, extractor.dimensions)
    times = real / rows  # each pair of images is computed once, or each subset
    pairs = (1 + min(times, SUBSETS) + min(times**2, SUBSETS)) / 3
    distances = seconds_of(lambda: kernel_distance(first, second, num_subsets=1)) * pairs
    return features, restoring, distances
