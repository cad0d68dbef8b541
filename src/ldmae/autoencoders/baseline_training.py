"""The training of the paper's baselines: one network, an objective for each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ldmae.autoencoders.baselines import build_baseline, build_vit_baseline, continued_baseline
from ldmae.autoencoders.discriminator import build_discriminator
from ldmae.autoencoders.reconstruction_objective import ReconstructionObjective
from ldmae.autoencoders.trainings import Training, adversarial_start, with_perceptual
from ldmae.config import as_dict
from ldmae.config.autoencoder import AutoencoderConfig


class Baseline:
    """`autoencoder.kind=ae`, `dae`, `vae` or `sd-vae`."""

    @staticmethod
    def trainings(config: AutoencoderConfig, image_size: int) -> list[Training]:
        """Returns the one training; one that decodes the posterior's mean (AE, DAE) is deterministic."""
        stage = config.baseline

        def build(before: Any, device: torch.device) -> ReconstructionObjective:
            start = (not stage.objective.sample_posterior, stage.initial_logvar)
            if before is not None:
                model: Any = continued_baseline(before, config.is_vit, image_size, start[0])
            elif config.is_vit:
                model = build_vit_baseline(as_dict(config.model), image_size, *start)
            else:
                model = build_baseline(stage.model, image_size, *start)
            objective, perceptual = with_perceptual(stage.objective, device)
            return ReconstructionObjective(model, objective, perceptual, build_discriminator(stage))

        return [
            Training(
                name="baseline",
                title="autoencoder",
                image_size=image_size,
                config=stage.training,
                build=build,
                augment=stage.augment,
                settings={
                    "kind": config.kind,
                    "network": stage.network,
                    "model": as_dict(config.model if config.is_vit else stage.model),
                    "initial_logvar": stage.initial_logvar,
                    "objective": as_dict(stage.objective),
                    "discriminator": [stage.discriminator_layers, stage.discriminator_channels],
                },
                adversarial_start=adversarial_start(stage),
                prepare=partial(with_perceptual, stage.objective),
            )
        ]
