"""The objectives of the paper's baselines: restore the image, keep the latent Gaussian, fool an adversary."""

# b rows of this piece of a batch, C latent channels, h w latent grid, H W image

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ldmae.autoencoders.latent_terms import relative_std, variance_kl
from ldmae.autoencoders.objective import AutoencoderObjective, Losses
from ldmae.contracts import BatchKeys
from ldmae.core.random import normal


class ReconstructionObjective(AutoencoderObjective):
    """A baseline with its loss, and its discriminator where it has one; see `AutoencoderObjective`.

    The terms are `pixel`, `perceptual` and `kl` (those that have a weight), and `relative_std` where the
    posterior is drawn from.
    """

    def losses(self, batch: dict[str, Any], keys: BatchKeys) -> Losses:
        """Computes the losses of a piece of a batch, without the discriminator's."""
        images = batch["images"].float()
        decoded, posterior = self._restore(batch["images"], keys)
        restoration, terms = self._restoration(decoded, images, keys)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        loss = restoration
        if self.config.kl_weight > 0:
            each = variance_kl(logvar, 1.0) if self.config.variance_kl else gaussian_kl(mean, logvar)
            kl = each.sum() / keys.batch_size
            loss, terms["kl"] = loss + self.config.kl_weight * kl, kl
        if self.config.sample_posterior:
            terms["relative_std"] = relative_std(mean, logvar).sum() / keys.batch_size
        return Losses(restoration, loss, terms, decoded, images)

    def _restore(self, images: Tensor, keys: BatchKeys) -> tuple[Tensor, Any]:
        """Returns the decoded images in float32, and the posterior."""
        if self.config.input_noise > 0:
            noise = normal(tuple(images.shape[1:]), keys, stream="input", device=images.device)
            images = images + self.config.input_noise * noise.to(images.dtype)
        posterior = self.model.encode(images).latent_dist
        z = self._drawn(posterior.mean, posterior.logvar, keys)
        return self.model.decode(z).sample.float(), posterior

    def _restoration(
        self, decoded: Tensor, images: Tensor, keys: BatchKeys
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum of what compares decoded images with images, and its raw terms."""
        pixel_loss = F.l1_loss if self.config.pixel_loss == "l1" else F.mse_loss
        errors = pixel_loss(decoded, images, reduction="none")
        loss = errors.flatten(1).mean(1).sum() / keys.batch_size
        terms = {"pixel": loss}
        if self.config.perceptual_weight > 0:
            term = self._perceptual_term(decoded, images, keys)
            loss, terms["perceptual"] = loss + self.config.perceptual_weight * term, term
        return loss, terms


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Computes the KL divergence (b,) of N(μ, var), both (b, C, h, w), to N(0, 1), in nats a cell.

    0.5 · Σ_c (μ_c² + var_c − 1 − logvar_c), summed over channels, averaged over the cells of the grid, as
    VMAE's L_reg is. A sum over the whole latent, as others write it, is h · w times this.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).flatten(1).mean(1)
