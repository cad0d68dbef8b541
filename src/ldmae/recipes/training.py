"""The arrows that train: images → autoencoder, latents → diffusion model."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from ldmae.autoencoders.baselines import build_baseline, build_vit_baseline
from ldmae.autoencoders.discriminator import PatchDiscriminator
from ldmae.autoencoders.masked_objective import MaskedObjective, set_initial_logvar
from ldmae.autoencoders.reconstruction_objective import ReconstructionObjective
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import as_dict
from ldmae.config.autoencoder import (
    AutoencoderConfig,
    BaselineTrainingConfig,
    MaskedObjectiveConfig,
    PretrainingConfig,
    ReconstructionObjectiveConfig,
    TuningConfig,
)
from ldmae.config.training import TrainingConfig
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.core.files import content_digests, fingerprint, fingerprint_tensors
from ldmae.diffusion.backbones import build_backbone
from ldmae.diffusion.flow import FlowMatchingObjective
from ldmae.images.base import Subset
from ldmae.images.dataset import ImageDataset
from ldmae.latents.shards import LatentDataset, LatentShards
from ldmae.latents.statistics import load_statistics
from ldmae.loading import load_autoencoder, load_model
from ldmae.perception.lpips import PerceptualDistance, load_perceptual
from ldmae.perception.spatial import SpatialFeatures, load_spatial_features
from ldmae.recipes.run import (
    Run,
    image_dataset,
    latent_channels,
    latents_fingerprint,
    pretrained_folder,
    run_autoencoder,
    save_model,
)
from ldmae.recipes.settings import training_settings, training_steps
from ldmae.recipes.threads import SlowSteps, settle_for_training
from ldmae.training.engine import Trainer

LATENT_DRAWS = "on the device, keyed by latent"
"""How latents are drawn and mirrored, recorded of foreign shards; 0.1.0 drew otherwise, recording none."""


def train_autoencoder(run: Run) -> None:
    """Masked pre-training, then decoder tuning, or a baseline's one training; makes `autoencoder/`."""
    arrows = {"pretraining": _pretrain, "tuning": _tune, "baseline": _train_baseline}
    _check_perceptual(run)
    for part in run.config.autoencoder.stages:
        arrows[part](run)


def _check_perceptual(run: Run) -> None:
    """Loads the networks that the trainings to come need, so that one that can't be had is told at once."""
    auto, records = run.config.autoencoder, run.book.records
    for part in auto.stages:
        record = records.get(f"autoencoder.{part}")
        skipped = part == "tuning" and not auto.tuning.enabled
        if not skipped and (record is None or record.status != "done"):
            objective = getattr(auto, part).objective
            _perceptual(run, objective)
            if part != "baseline":
                _features(run, objective)


def _pretrain(run: Run) -> None:
    config, name = run.config.autoencoder, "autoencoder.pretraining"
    stage, size, made = config.pretraining, run.config.pretraining_size, pretrained_folder(run.folder)
    settings = training_settings(run.config, run.accelerator.mixed_precision)[name]
    if not run.needed(name, settings, run.images, made, stage.training.steps):
        return
    with run.book.running(name, settings, run.images, stage.training.steps) as record:
        torch.manual_seed(run.config.seed)
        if config.init is not None:
            model = _resized(load_autoencoder(config.init), size)
        else:
            model = AutoencoderVMAE(sample_size=size, use_mask_token=True, **as_dict(config.model))
            if stage.initial_logvar is not None:
                set_initial_logvar(model, stage.initial_logvar)
        objective = _masked_objective(run, model, stage)
        model = _train(run, name, objective, stage.training, image_dataset(run, size, stage.augment), size)
        record.output = save_model(run, model, made)


def _tune(run: Run) -> None:
    config, name, size = run.config.autoencoder, "autoencoder.tuning", run.config.image_size
    stage, made = config.tuning, run.folder / "autoencoder"
    inputs = {"pretrained": run.book.output("autoencoder.pretraining")}
    settings = training_settings(run.config, run.accelerator.mixed_precision)[name]
    steps = training_steps(run.config)[name]
    if not run.needed(name, settings, inputs, made, steps):
        return
    with run.book.running(name, settings, inputs, steps) as record:
        model = _resized(load_model(AutoencoderVMAE, pretrained_folder(run.folder)), size)
        if stage.enabled:
            if stage.freeze_encoder:
                model.freeze_encoder()
            torch.manual_seed(run.config.seed)
            objective = _masked_objective(run, model, stage)
            images = image_dataset(run, size, stage.augment)
            model = _train(run, name, objective, stage.training, images, size)
        record.output = save_model(run, model, run.folder / "autoencoder")


def _train_baseline(run: Run) -> None:
    config, name, size = run.config.autoencoder, "autoencoder.baseline", run.config.image_size
    stage, made = config.baseline, run.folder / "autoencoder"
    settings = training_settings(run.config, run.accelerator.mixed_precision)[name]
    if not run.needed(name, settings, run.images, made, stage.training.steps):
        return
    with run.book.running(name, settings, run.images, stage.training.steps) as record:
        torch.manual_seed(run.config.seed)
        objective = baseline_training(config, size, _perceptual(run, stage.objective))
        images = image_dataset(run, size, stage.augment)
        record.output = save_model(run, _train(run, name, objective, stage.training, images, size), made)


def baseline_training(
    config: AutoencoderConfig, size: int, perceptual: PerceptualDistance | None
) -> ReconstructionObjective:
    """Builds a baseline with its objective, and its discriminator where it has one.

    Args:
        config: shape and objective; one that decodes the posterior's mean (AE, DAE) is deterministic.
        size: pixels along a side of the images.
        perceptual: the objective's perceptual distance, where it has one.
    """
    stage = config.baseline
    start = (not stage.objective.sample_posterior, stage.initial_logvar)
    if config.is_vit:
        model: Any = build_vit_baseline(as_dict(config.model), size, *start)
    else:
        model = build_baseline(stage.model, size, *start)
    return ReconstructionObjective(model, stage.objective, perceptual, _discriminator(stage))


def masked_training(
    model: AutoencoderVMAE,
    stage: PretrainingConfig | TuningConfig,
    perceptual: PerceptualDistance | None,
    features: SpatialFeatures | None,
) -> MaskedObjective:
    """Builds the objective of one of VMAE's trainings, and its discriminator where it has one.

    Args:
        model: what is trained.
        stage: its objective, and the shape of the discriminator.
        perceptual: the objective's perceptual distance, where it has one.
        features: the network that latents are aligned with, where they are.
    """
    return MaskedObjective(model, stage.objective, perceptual, _discriminator(stage), features)


def _discriminator(
    stage: PretrainingConfig | TuningConfig | BaselineTrainingConfig,
) -> PatchDiscriminator | None:
    if stage.objective.adversarial_weight == 0:
        return None
    return PatchDiscriminator(stage.discriminator_layers, stage.discriminator_channels)


def train_diffusion(run: Run) -> None:
    """Trains the LightningDiT by flow matching on `latents/`; makes `diffusion/`, a diffusers folder."""
    config, made = run.config.diffusion, run.folder / "diffusion"
    settings = training_settings(run.config, run.accelerator.mixed_precision)["diffusion"]
    own = run.book.output("latents")
    inputs = {"latents": own} if own else {"latents": _foreign_latents(run), "latent_draws": LATENT_DRAWS}
    if not run.needed("diffusion", settings, inputs, made, config.training.steps):
        return
    shards = LatentShards(run.folder / "latents")
    autoencoder = run_autoencoder(run)
    _check_shards(run, shards, autoencoder)
    channels, grid = latent_channels(autoencoder, run.config.image_size)
    _check_fit(run, shards, grid)
    mean, std = load_statistics(run.folder / "latents")
    keep = np.flatnonzero(shards.labels() >= 0)
    if not len(keep):
        raise UserError(f"no latent in {shards.folder} has a class; give data with classes")
    with run.book.running("diffusion", settings, inputs, config.training.steps) as record:
        torch.manual_seed(run.config.seed)
        model = build_backbone(config, grid, channels, len(run.train.classes))
        latents = LatentDataset(shards, channels, mean, std, run.config.seed, keep)
        model = _train(run, "diffusion", FlowMatchingObjective(model, config.flow), config.training, latents)
        record.output = save_model(run, model, made)


def _train(
    run: Run,
    name: str,
    objective: nn.Module,
    training: TrainingConfig,
    dataset: Any,
    held_out_size: int | None = None,
) -> Any:
    """Trains a stage up to its steps, going on from its last checkpoint."""
    record = run.book.records[name]
    spent, began = record.seconds, time.monotonic()

    def keep_time(trainer: Trainer) -> None:
        if trainer.step % training.checkpoint.every_steps == 0:
            run.book.tick(name, spent + time.monotonic() - began)

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
        maker=fingerprint([json.dumps([record.settings, record.inputs], sort_keys=True)]),
        validation=validation,
        on_start=[partial(settle_for_training, run), *run.on_start],
        on_step=[keep_time, SlowSteps(), *run.on_step],
    ).run()


def spread(source: ImageSource, at_most: int) -> ImageSource:
    """Returns evenly spread images of a source, which as a rule is sorted by class."""
    count = min(at_most, len(source))
    return Subset(source, np.arange(count) * len(source) // max(1, count))


def _masked_objective(
    run: Run, model: AutoencoderVMAE, stage: PretrainingConfig | TuningConfig
) -> MaskedObjective:
    perceptual, features = _perceptual(run, stage.objective), _features(run, stage.objective)
    return masked_training(model, stage, perceptual, features)


def _features(run: Run, config: MaskedObjectiveConfig) -> SpatialFeatures | None:
    if config.alignment_weight == 0:
        return None
    with run.accelerator.main_process_first():
        return load_spatial_features(config.alignment, run.accelerator.device)


def _perceptual(
    run: Run, config: MaskedObjectiveConfig | ReconstructionObjectiveConfig
) -> PerceptualDistance | None:
    if config.perceptual_weight == 0:
        return None
    with run.accelerator.main_process_first():
        return load_perceptual(config.perceptual, run.accelerator.device)


def _resized(model: Any, size: int) -> AutoencoderVMAE:
    """Returns a copy for another image size: the same weights, positions for the new grid.

    Sine-cosine positions are computed anew, others (official files hold a stretched table) resampled.
    """
    if not isinstance(model, AutoencoderVMAE):
        raise UserError(
            f"training starts from an AutoencoderVMAE, got {type(model).__name__}; use it as it is with "
            "autoencoder.source=…"
        )
    copy: Any = AutoencoderVMAE.from_config(model.config, sample_size=size, use_mask_token=True)
    tables = {name: table for name, table in copy.state_dict().items() if name.endswith("pos_embed")}
    weights = {name: weight for name, weight in model.state_dict().items() if name not in tables}
    if model.mask_token is None:  # a final official checkpoint lacks it: it starts as it was drawn
        weights["mask_token"] = copy.state_dict()["mask_token"]
    side = size // model.config["patch_size"]
    for name in tables:
        stored = model.state_dict()[name]
        if not bool(model._is_sincos(stored)):
            tables[name] = model._positions(stored, side, side)
    copy.load_state_dict({**weights, **tables})
    return copy


def _foreign_latents(run: Run) -> str:
    """Returns an input name for shards that no stage of this run made, where the settings allow them."""
    if run.config.latents.fingerprint != "skip":
        raise UserError(
            f"{run.folder / 'latents'} was not made by this run; make it with `ldmae encode`, or take "
            "foreign shards with latents.fingerprint=skip"
        )
    paths = LatentShards(run.folder / "latents").paths
    mean, std = load_statistics(run.folder / "latents")
    digests: list[str] = content_digests(paths, run.folder / "data" / "latents.json") if run.main else []
    (digests,) = broadcast_object_list([digests])
    return fingerprint([*digests, fingerprint_tensors({"mean": mean, "std": std})])


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
