"""The stages that train: images → autoencoder, latents → diffusion model."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ldmae.autoencoders.trainings import Training
from ldmae.config.training import TrainingConfig
from ldmae.core.errors import UserError
from ldmae.diffusion.flow import FlowMatchingObjective
from ldmae.images.base import spread
from ldmae.images.dataset import ImageDataset
from ldmae.latents.shards import LatentDataset, LatentShards
from ldmae.latents.statistics import load_statistics
from ldmae.run.initial import load_copy
from ldmae.run.initial_diffusion import model_to_train, without_adapter
from ldmae.run.run import (
    Run,
    autoencoder_fingerprints,
    image_dataset,
    kept_model,
    latent_channels,
    latents_fingerprint,
    load_trained,
    run_autoencoder,
    save_model,
)
from ldmae.run.threads import SlowSteps, settle_for_training
from ldmae.run.trainings import autoencoder_trainings, check_networks
from ldmae.training.engine import Trainer


def train_autoencoder(name: str, run: Run) -> dict[str, str]:
    """Does the training of the stage `name`; the last one makes `autoencoder/`."""
    listed = autoencoder_trainings(run.config)
    names, training = [*listed], listed[name]
    before: Any = None
    if name != names[0]:
        before = load_trained(run, run.folder / kept_model(names[names.index(name) - 1]))
    elif run.config.autoencoder.init is not None:
        before = load_copy(run)
    torch.manual_seed(run.config.seed)
    with run.accelerator.main_process_first():  # which may fetch networks
        objective: Any = training.build(before, run.accelerator.device)
    model = objective.model
    if training.config is not None:
        images = image_dataset(run, training.image_size, training.augment)
        model = _train(run, name, objective, training.config, images, training.image_size)
    if name != names[-1]:
        return {name: save_model(run, model, run.folder / kept_model(name))}
    save_model(run, model, run.folder / "autoencoder")
    return autoencoder_fingerprints(model, run.config.image_size)


def load_networks(training: Training, run: Run) -> None:
    """Loads the frozen networks of a training, so that one which can't be had is reported first."""
    with run.accelerator.main_process_first():
        check_networks(training, run.accelerator.device)


def train_diffusion(run: Run) -> dict[str, str]:
    """Trains the LightningDiT by flow matching on `latents/`; makes `diffusion/`, a diffusers folder."""
    config, shards = run.config.diffusion, LatentShards(run.folder / "latents")
    autoencoder = run_autoencoder(run)
    _check_shards(run, shards, autoencoder)
    channels, grid = latent_channels(autoencoder, run.config.image_size)
    _check_fit(run, shards, grid)
    mean, std = load_statistics(run.folder / "latents")
    keep = np.flatnonzero(shards.labels() >= 0)
    if not len(keep):
        raise UserError(f"no latent in {shards.folder} has a class; give data with classes")
    torch.manual_seed(run.config.seed)
    model = model_to_train(run, channels, grid)
    latents = LatentDataset(shards, channels, mean, std, run.config.seed, keep)
    objective = FlowMatchingObjective(model, config.flow)
    model = _train(run, "diffusion", objective, config.training, latents, started=config.init is not None)
    return {"diffusion": save_model(run, without_adapter(run, model), run.folder / "diffusion")}


def _train(
    run: Run,
    name: str,
    objective: nn.Module,
    training: TrainingConfig,
    dataset: Any,
    held_out_size: int | None = None,
    started: bool = False,
) -> Any:
    """Trains a stage up to its steps, going on from its last checkpoint."""
    record = run.records.stages[name]
    spent, began = record.seconds, time.monotonic()

    def keep_time(trainer: Trainer) -> None:
        if trainer.step % training.checkpoint.every_steps == 0:
            run.records.tick(name, spent + time.monotonic() - began)

    validation = None
    if held_out_size is not None:
        seen = spread(run.held_out, training.validation_images)
        validation = ImageDataset(seen, held_out_size, run.config.seed, None)
    return Trainer(
        objective=objective,
        dataset=dataset,
        config=training,
        stage=name,
        folder=run.folder / "checkpoints" / name,
        metrics_path=run.folder / "metrics.jsonl",
        seed=run.config.seed,
        accelerator=run.accelerator,
        made_of=record.made_of,
        started=started,
        validation=validation,
        on_start=[partial(settle_for_training, run), *run.on_start],
        on_step=[keep_time, SlowSteps(), *run.on_step],
    ).run()


def _check_fit(run: Run, shards: LatentShards, grid: int) -> None:
    """Raises for latents of another size than the autoencoder's, or of classes that the run does not have."""
    found, size = tuple(shards.shape[1:]), run.config.image_size
    if found != (grid, grid):
        raise UserError(
            f"the latents in {shards.folder} have {found[0]} x {found[1]} cells, the autoencoder makes "
            f"{grid} x {grid} of an image of {size} pixels; set image_size to that of their images, or "
            "take the autoencoder that made them"
        )
    largest, classes = int(shards.labels().max()), len(run.train.classes)
    if largest >= classes:
        raise UserError(
            f"the latents in {shards.folder} have labels up to {largest}, the images have {classes} classes; "
            "give the data that they were made of"
        )


def _check_shards(run: Run, shards: LatentShards, autoencoder: nn.Module) -> None:
    """Raises for latents of another autoencoder, or of fewer images than the run has."""
    if run.config.latents.fingerprint == "skip":
        return  # foreign ones may be of other images
    if run.stream is None and len(shards) != len(run.train):
        raise UserError(
            f"{shards.folder} holds latents of {len(shards)} images, the run has {len(run.train)}: a shard "
            f"is missing, or one is not of this run; type `ldmae encode {run.folder}`, or add "
            "--restart latents"
        )
    expected = latents_fingerprint(autoencoder, run.config.image_size)
    if shards.fingerprints != {expected}:
        raise UserError(
            f"the latents in {shards.folder} were made by another autoencoder or preprocessing (fingerprint "
            f"{sorted(map(str, shards.fingerprints))}, expected {expected}); add --restart latents"
        )
