"""The training of a decoder alone: another decoder on the same latents, for any autoencoder that exists."""

# b rows of this piece of a batch, C latent channels, h w latent grid, H W image

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from typing_extensions import Self

from ldmae.autoencoders.discriminator import build_discriminator
from ldmae.autoencoders.latent_terms import with_latent_noise
from ldmae.autoencoders.objective import Losses
from ldmae.autoencoders.reconstruction_objective import ReconstructionObjective
from ldmae.autoencoders.trainings import Training, adversarial_start, recorded_losses, with_perceptual
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config.autoencoder import AutoencoderConfig
from ldmae.contracts import BatchKeys
from ldmae.core.autoencoding import decode, decoder_modules, encode_moments
from ldmae.core.errors import UserError


class DecoderObjective(ReconstructionObjective):
    """A decoder with its loss, on latents of a frozen encoder; see `AutoencoderObjective`.

    The terms are `pixel` and, where it has a weight, `perceptual`. The posterior's mean is decoded. The model
    stays in evaluation mode: dropout, or batch statistics, would make an image depend on its batch.
    """

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the objective and its discriminator, and leaves the model in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def losses(self, batch: dict[str, Any], keys: BatchKeys) -> Losses:
        """Computes the losses of a piece of a batch, without the discriminator's."""
        images = batch["images"].float()
        with torch.no_grad():
            latents, _ = encode_moments(self.model, batch["images"])  # (b, C, h, w)
        latents = with_latent_noise(latents, keys, self.config.latent_noise)
        decoded = decode(self.model, latents, clip=False)  # (b, 3, H, W)
        restoration, terms = self._restoration(decoded, images, keys)
        return Losses(restoration, restoration, terms, decoded, images)


class DecoderTuning:
    """`autoencoder.kind=decoder`."""

    @staticmethod
    def trainings(config: AutoencoderConfig, image_size: int) -> list[Training]:
        """Returns the one training, which starts from `autoencoder.init` and leaves its encoder as it is."""
        stage = config.decoder

        def build(before: Any, device: torch.device) -> DecoderObjective:
            if before is None:
                raise UserError(
                    "autoencoder.kind=decoder trains the decoder of an autoencoder that exists; name it with "
                    "autoencoder.init=SOURCE"
                )
            freeze_all_but_decoder(before)
            if stage.gradient_checkpointing:
                _enable_gradient_checkpointing(before)
            objective, perceptual = with_perceptual(stage.objective, device)
            return DecoderObjective(before, objective, perceptual, build_discriminator(stage), image_size)

        return [
            Training(
                name="decoder",
                title="decoder training",
                image_size=image_size,
                config=stage.training,
                build=build,
                augment=stage.augment,
                settings=recorded_losses(stage),
                adversarial_start=adversarial_start(stage),
                keeps_encoder=True,
                prepare=partial(with_perceptual, stage.objective),
            )
        ]


def freeze_all_but_decoder(model: Any) -> None:
    """Freezes whatever the latents of an autoencoder depend on.

    Args:
        model: an AutoencoderVMAE, or an autoencoder of diffusers with an encoder and a decoder.

    Raises:
        UserError: it is of another kind.
    """
    if isinstance(model, AutoencoderVMAE):
        model.freeze_encoder()
        return
    if not isinstance(model, ModelMixin):
        raise UserError(
            f"{type(model).__name__} is no autoencoder of diffusers, in whose format a trained decoder is "
            "saved; name an AutoencoderVMAE or one of diffusers, such as an AutoencoderKL"
        )
    model.requires_grad_(False)
    for module in decoder_modules(model):
        module.requires_grad_(True)
        # of an AsymmetricAutoencoderKL, used with an inpainting mask alone; in several processes a weight
        # without a gradient is an error
        if (unused := getattr(module, "condition_encoder", None)) is not None:
            unused.requires_grad_(False)


def _enable_gradient_checkpointing(model: Any) -> None:
    if not model._supports_gradient_checkpointing:
        raise UserError(
            f"{type(model).__name__} has no gradient checkpointing; set "
            "autoencoder.decoder.gradient_checkpointing=false, and a smaller "
            "autoencoder.decoder.training.micro_batch_size to save memory"
        )
    model.enable_gradient_checkpointing()
