"""The stages that train: images → autoencoder, latents → diffusion model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
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
from ldmae.core.imports import import_object
from ldmae.diffusion.backbones import build_backbone
from ldmae.diffusion.flow import FlowMatchingObjective
from ldmae.images.base import Subset
from ldmae.images.dataset import ImageDataset
from ldmae.latents.shards import LatentDataset, LatentShards
from ldmae.latents.statistics import load_statistics
from ldmae.loading import load_autoencoder, load_model
from ldmae.perception.lpips import PerceptualDistance, load_perceptual
from ldmae.perception.spatial import SpatialFeatures, load_spatial_features
from ldmae.run.own import own_trainings
from ldmae.run.run import (
    Run,
    autoencoder_fingerprints,
    image_dataset,
    latent_channels,
    latents_fingerprint,
    pretrained_folder,
    run_autoencoder,
    save_model,
)
from ldmae.run.threads import SlowSteps, settle_for_training
from ldmae.training.engine import Trainer


def check_networks(part: str) -> Callable[[Run], None]:
    """Returns what loads the networks of a training's objective, so that one that can't be had is told first.

    Args:
        part: of the settings of the autoencoder: `pretraining`, `tuning` or `baseline`.
    """

    def check(run: Run) -> None:
        objective = getattr(run.config.autoencoder, part).objective
        _perceptual(run, objective)
        if part != "baseline":
            _features(run, objective)

    return check


def pretrain(run: Run) -> dict[str, str]:
    """Trains VMAE on masked images; makes the autoencoder that tuning starts from."""
    config, size = run.config.autoencoder, run.config.pretraining_size
    stage = config.pretraining
    torch.manual_seed(run.config.seed)
    if config.init is not None:
        model = _resized(load_autoencoder(config.init), size)
    else:
        model = AutoencoderVMAE(sample_size=size, use_mask_token=True, **as_dict(config.model))
        if stage.initial_logvar is not None:
            set_initial_logvar(model, stage.initial_logvar)
    objective, images = _masked_objective(run, model, stage), image_dataset(run, size, stage.augment)
    model = _train(run, "autoencoder.pretraining", objective, stage.training, images, size)
    return {"pretrained": save_model(run, model, pretrained_folder(run.folder))}


def tune(run: Run) -> dict[str, str]:
    """Trains the decoder at the run's image size, or takes VMAE as it is; makes `autoencoder/`."""
    stage, size = run.config.autoencoder.tuning, run.config.image_size
    model = _resized(load_model(AutoencoderVMAE, pretrained_folder(run.folder)), size)
    if stage.enabled:
        if stage.freeze_encoder:
            model.freeze_encoder()
        torch.manual_seed(run.config.seed)
        objective, images = _masked_objective(run, model, stage), image_dataset(run, size, stage.augment)
        model = _train(run, "autoencoder.tuning", objective, stage.training, images, size)
    return _save_autoencoder(run, model)


def train_baseline(run: Run) -> dict[str, str]:
    """Trains one of the paper's baselines; makes `autoencoder/`."""
    config, size = run.config.autoencoder, run.config.image_size
    stage = config.baseline
    torch.manual_seed(run.config.seed)
    objective = baseline_training(config, size, _perceptual(run, stage.objective))
    images = image_dataset(run, size, stage.augment)
    model = _train(run, "autoencoder.baseline", objective, stage.training, images, size)
    return _save_autoencoder(run, model)


def train_own(name: str) -> Callable[[Run], dict[str, str]]:
    """Returns what does one of the trainings of a user's own autoencoder, by the name of its stage."""

    def execute(run: Run) -> dict[str, str]:
        stages = own_trainings(run.config)
        names, training = [*stages], stages[name]
        place = names.index(name)
        torch.manual_seed(run.config.seed)
        before = None
        if place > 0:
            kind = import_object(run.config.autoencoder.own_kind or "")
            before = load_model(kind, run.folder / own_folder(names[place - 1]))
        with run.accelerator.main_process_first():  # which may fetch networks
            objective = training.build(before, run.accelerator.device)
        images = image_dataset(run, training.image_size, training.augment)
        model = _train(run, name, objective, training.config, images, training.image_size)
        if name == names[-1]:
            return _save_autoencoder(run, model)
        return {name: save_model(run, model, run.folder / own_folder(name))}

    return execute


def own_folder(name: str) -> str:
    """Returns where a user's own autoencoder is after one of its trainings but the last."""
    return f"checkpoints/{name}/model"


def _save_autoencoder(run: Run, model: Any) -> dict[str, str]:
    save_model(run, model, run.folder / "autoencoder")
    return autoencoder_fingerprints(model, run.config.image_size)


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
    model = build_backbone(config, grid, channels, len(run.train.classes))
    latents = LatentDataset(shards, channels, mean, std, run.config.seed, keep)
    model = _train(run, "diffusion", FlowMatchingObjective(model, config.flow), config.training, latents)
    return {"diffusion": save_model(run, model, run.folder / "diffusion")}


def _train(
    run: Run,
    name: str,
    objective: nn.Module,
    training: TrainingConfig,
    dataset: Any,
    held_out_size: int | None = None,
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
