"""The trainings of VMAE: masked pre-training, then decoder tuning (arXiv 2507.09984)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from ldmae.autoencoders.discriminator import build_discriminator
from ldmae.autoencoders.masked_objective import MaskedObjective, set_initial_logvar
from ldmae.autoencoders.trainings import Training, adversarial_start, recorded_losses, with_perceptual
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import as_dict
from ldmae.config.autoencoder import AutoencoderConfig, MaskedObjectiveConfig, PretrainingConfig, TuningConfig
from ldmae.core.errors import UserError
from ldmae.perception.lpips import PerceptualDistance
from ldmae.perception.spatial import SpatialFeatures, load_spatial_features


class VMAE:
    """`autoencoder.kind=vmae`."""

    @staticmethod
    def trainings(config: AutoencoderConfig, image_size: int) -> list[Training]:
        """Returns pre-training and tuning; each starts from the autoencoder that was made before."""
        return [_pretraining(config, image_size), _tuning(config, image_size)]


class _AsItIs(nn.Module):
    """An autoencoder that is not trained."""

    def __init__(self, model: AutoencoderVMAE) -> None:
        super().__init__()
        self.model = model


def _pretraining(config: AutoencoderConfig, image_size: int) -> Training:
    stage, size = config.pretraining, config.pretraining.image_size or image_size

    def build(before: Any, device: torch.device) -> MaskedObjective:
        if before is not None:
            return _objective(resized(before, size), stage, device)
        model = AutoencoderVMAE(sample_size=size, use_mask_token=True, **as_dict(config.model))
        if stage.initial_logvar is not None:
            set_initial_logvar(model, stage.initial_logvar)
        return _objective(model, stage, device)

    return Training(
        name="pretraining",
        title="pre-training",
        image_size=size,
        config=stage.training,
        build=build,
        augment=stage.augment,
        settings={
            "model": as_dict(config.model),
            "initial_logvar": stage.initial_logvar,
            **recorded_losses(stage),
        },
        adversarial_start=adversarial_start(stage),
        prepare=partial(_networks, stage.objective),
    )


def _tuning(config: AutoencoderConfig, image_size: int) -> Training:
    stage = config.tuning

    def build(before: Any, device: torch.device) -> MaskedObjective | _AsItIs:
        model = resized(before, image_size)
        if not stage.enabled:
            return _AsItIs(model)
        if stage.freeze_encoder:
            model.freeze_encoder()
        return _objective(model, stage, device)

    trained = {"freeze_encoder": stage.freeze_encoder, **recorded_losses(stage)}
    return Training(
        name="tuning",
        title="tuning",
        image_size=image_size,
        config=stage.training if stage.enabled else None,
        build=build,
        augment=stage.augment,
        settings={"enabled": stage.enabled, **(trained if stage.enabled else {})},
        adversarial_start=adversarial_start(stage),
        keeps_encoder=stage.freeze_encoder or not stage.enabled,
        prepare=partial(_networks, stage.objective) if stage.enabled else None,
    )


def _objective(
    model: AutoencoderVMAE, stage: PretrainingConfig | TuningConfig, device: torch.device
) -> MaskedObjective:
    objective, perceptual, features = _networks(stage.objective, device)
    return MaskedObjective(model, objective, perceptual, build_discriminator(stage), features)


def _networks(
    objective: MaskedObjectiveConfig, device: torch.device
) -> tuple[MaskedObjectiveConfig, PerceptualDistance | None, SpatialFeatures | None]:
    objective, perceptual = with_perceptual(objective, device)
    if device.type == "meta":
        objective = objective.replace(alignment_weight=0.0)
    aligned = objective.alignment_weight > 0
    return objective, perceptual, load_spatial_features(objective.alignment, device) if aligned else None


def resized(model: Any, size: int) -> AutoencoderVMAE:
    """Returns a copy for another image size: the same weights, positions for the new grid.

    Sine-cosine positions are computed for it, others (official files hold a stretched table) resampled.

    Raises:
        UserError: it is no VMAE.
    """
    if not isinstance(model, AutoencoderVMAE):
        raise UserError(
            f"training starts from an AutoencoderVMAE, got {type(model).__name__}; use it as it is with "
            "autoencoder.source=…"
        )
    # statistics are of the latents of that encoder, which is about to change
    fresh: Any = {"latents_mean": None, "latents_std": None, "scaling_factor": 1.0}
    copy: Any = AutoencoderVMAE.from_config(model.config, sample_size=size, use_mask_token=True, **fresh)
    tables = {name: table for name, table in copy.state_dict().items() if name.endswith("pos_embed")}
    weights = {name: weight for name, weight in model.state_dict().items() if name not in tables}
    if model.mask_token is None:  # a final official checkpoint lacks it: it starts as it was drawn
        weights["mask_token"] = copy.state_dict()["mask_token"]
    side = size // model.config["patch_size"]
    for name in tables:
        stored = model.state_dict()[name]
        if not stored.is_meta and not bool(model._is_sincos(stored)):
            tables[name] = model._positions(stored, side, side)
    copy.load_state_dict({**weights, **tables})
    return copy
