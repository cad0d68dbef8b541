"""The objectives of the paper's baselines: restore the image, keep the latent Gaussian, fool an adversary."""

# B rows of the whole batch, b rows of this piece, C latent channels, h w latent grid, H W image

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ldmae.autoencoders.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from ldmae.autoencoders.settings import ReconstructionObjectiveConfig
from ldmae.contracts import BatchKeys, ObjectiveOutput
from ldmae.core.errors import UserError
from ldmae.core.random import normal

WHOLE_BATCH = "whole_batch"
"""Key under which a piece of a batch bears what `look_ahead` said of all pieces, summed."""


class ReconstructionObjective(nn.Module):
    """A convolutional autoencoder with its loss, and the adversary with its: what is prepared and stepped.

    One backward pass serves both. The adversary learns from reconstructions without their graph, the
    autoencoder from an adversary whose weights are constants, so that no gradient of one reaches the other.

    The adversary's adaptive weight is a ratio of gradient norms of the WHOLE batch, of which a piece (a
    micro-batch, a process's share) knows but its own gradients. So a batch in pieces is gone through twice:
    `look_ahead` gives each piece's share of the two gradients (of one weight only), their sums over all
    pieces come back in the batch as `whole_batch`, and `forward` takes the norms of these. A batch in one
    piece is looked at once. The other way, the norms of the step before, would be cheaper for pieces, but the
    ratio would no longer bound the adversary's pull, and the training would have one state more.

    Args:
        model: a diffusers autoencoder that ends in `decoder.conv_out`; trained, averaged and saved.
        config: what is restored, and the terms' weights.
        perceptual: frozen distance (x, y) of images in [-1, 1] → (b,); kept out of the module tree, so that
            it is never trained, wrapped, put in training mode or saved.
        discriminator: the adversary; trained along and kept in the training states, never saved.

    Raises:
        UserError: a setting that the model, or a missing network, does not allow.
    """

    def __init__(
        self,
        model: Any,
        config: ReconstructionObjectiveConfig,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        discriminator: PatchDiscriminator | None = None,
    ):
        super().__init__()
        if config.perceptual_weight > 0 and perceptual is None:
            raise UserError(
                f"perceptual_weight={config.perceptual_weight} needs the network {config.perceptual!r}, "
                "none was given; load it with ldmae.perception, or set perceptual_weight=0"
            )
        if (config.adversarial_weight > 0) != (discriminator is not None):
            raise UserError(
                f"adversarial_weight={config.adversarial_weight} was given with"
                f"{'out' if discriminator is None else ''} a discriminator; give both, or neither (weight 0)"
            )
        if discriminator is not None and model.config["sample_size"] < discriminator.smallest_image:
            raise UserError(
                f"images of {model.config['sample_size']} px are too small for this discriminator, which "
                f"needs {discriminator.smallest_image}; give it fewer layers"
            )
        self.model = model
        self.adversary = discriminator  # by this name the training engine knows it
        self.config = config
        self._perceptual = (perceptual,)  # in a tuple: a module in an attribute would join the tree

    def forward(self, batch: dict[str, Tensor], keys: BatchKeys) -> ObjectiveOutput:
        """Computes the losses of a piece of a batch, as shares of the whole batch's means.

        Args:
            batch: `images`, (b, 3, H, W) in [-1, 1]; and `whole_batch`, the sum of all pieces' `look_ahead`,
                where the batch comes in several pieces.
            keys: where the piece stands; the only source of randomness.

        Returns:
            The sum that both networks descend, and the raw terms `pixel`, `perceptual`, `kl` (those that have
            a weight), and once the adversary takes part `adversarial` (what it says of reconstructions, the
            smaller the better), `discriminator` (its own loss) and `adaptive_weight`. In evaluation mode the
            adversary takes no part.

        Raises:
            UserError: gradients that are infinite or not a number, for the adversary's weight.
        """
        images = batch["images"].float()
        decoded, posterior = self._restore(batch["images"], keys)
        restoration, terms = self._restoration(decoded, images, keys)
        loss = restoration
        if self.config.kl_weight > 0:
            kl = gaussian_kl(posterior.mean.float(), posterior.logvar.float()).sum() / keys.batch_size
            loss, terms["kl"] = loss + self.config.kl_weight * kl, kl
        if self._listens(keys):
            adversarial = self._adversarial(decoded, keys)
            gradients = batch.get(WHOLE_BATCH)
            if gradients is None:
                assert len(keys.rows) == keys.batch_size, "a batch in pieces must be looked ahead at"
                gradients = self._last_gradients(restoration, adversarial, decoded, keys)
            _require_finite(gradients, keys)
            weight = adaptive_weight(gradients[0], gradients[1])
            discriminator = self._discriminator(decoded, images, keys)
            loss = loss + self.config.adversarial_weight * weight * adversarial + discriminator
            terms |= {"adversarial": adversarial, "discriminator": discriminator}
            terms["adaptive_weight"] = weight * len(images) / keys.batch_size  # the shares sum to it
        elif self.adversary is not None and self.training:
            # a gradient of zero, which DistributedDataParallel waits for; AdamW then moves nothing
            loss = loss + 0 * torch.stack([p.sum() for p in self.adversary.parameters()]).sum()
        return ObjectiveOutput(loss=loss, terms={name: term.detach() for name, term in terms.items()})

    def look_ahead(self, batch: dict[str, Tensor], keys: BatchKeys) -> Tensor | None:
        """Computes a piece's share of what the adaptive weight is made of; None while there is none.

        Args:
            batch: `images`, (b, 3, H, W) in [-1, 1].
            keys: where the piece stands.

        Returns:
            (2, …), the gradients of the reconstruction loss and of the adversarial loss by the decoder's last
            weight.
        """
        if not self._listens(keys):
            return None
        decoded, _ = self._restore(batch["images"], keys)
        restoration, _ = self._restoration(decoded, batch["images"].float(), keys)
        return self._last_gradients(restoration, self._adversarial(decoded, keys), decoded, keys)

    def _listens(self, keys: BatchKeys) -> bool:
        started = keys.step >= self.config.adversarial_start_step
        return self.adversary is not None and self.training and started

    def _restore(self, images: Tensor, keys: BatchKeys) -> tuple[Tensor, Any]:
        """Returns the decoded images in float32, and the posterior."""
        if self.config.input_noise > 0:
            noise = normal(tuple(images.shape[1:]), keys, stream="input", device=images.device)
            images = images + self.config.input_noise * noise.to(images.dtype)
        posterior = self.model.encode(images).latent_dist
        z = posterior.mean
        if self.config.sample_posterior:
            noise = normal(tuple(z.shape[1:]), keys, stream="posterior", device=z.device)
            z = z + (0.5 * posterior.logvar).exp() * noise.to(z.dtype)
        return self.model.decode(z).sample.float(), posterior

    def _restoration(
        self, decoded: Tensor, images: Tensor, keys: BatchKeys
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum of what compares decoded images with images, and its raw terms."""
        pixel_loss = F.l1_loss if self.config.pixel_loss == "l1" else F.mse_loss
        errors = pixel_loss(decoded, images, reduction="none")
        loss = errors.flatten(1).mean(1).sum() / keys.batch_size
        terms = {"pixel": loss}
        (perceptual,) = self._perceptual
        if self.config.perceptual_weight > 0 and perceptual is not None:
            term = perceptual_share(perceptual, decoded, images, keys, self.config.perceptual_rows)
            loss, terms["perceptual"] = loss + self.config.perceptual_weight * term, term
        return loss, terms

    def _adversarial(self, decoded: Tensor, keys: BatchKeys) -> Tensor:
        assert self.adversary is not None
        constants = {name: weight.detach() for name, weight in self.adversary.named_parameters()}
        logits = functional_call(self.adversary, constants, (decoded,))
        return hinge_generator_loss(logits.float()).sum() / keys.batch_size

    def _discriminator(self, decoded: Tensor, images: Tensor, keys: BatchKeys) -> Tensor:
        assert self.adversary is not None
        real, fake = self.adversary(images).float(), self.adversary(decoded.detach()).float()
        return hinge_discriminator_loss(real, fake).sum() / keys.batch_size

    def _last_gradients(
        self, restoration: Tensor, adversarial: Tensor, decoded: Tensor, keys: BatchKeys
    ) -> Tensor:
        last = self.model.decoder.conv_out.weight
        # fp16 would lose the gradients of a mean by its n pixels (1/n) and overflow at those of a sum by the
        # weight (n): both are about √n away from 1 at this scale, which the share is divided by afterwards
        scale = keys.batch_size * math.sqrt(decoded[0].numel() / len(decoded))
        found = [
            torch.autograd.grad(term * scale, last, retain_graph=True)[0]
            for term in (restoration, adversarial)
        ]
        return torch.stack(found).float() / scale


def _require_finite(gradients: Tensor, keys: BatchKeys) -> None:
    if not bool(gradients.isfinite().all()):
        restoration, adversarial = (torch.linalg.vector_norm(gradient).item() for gradient in gradients)
        raise UserError(
            f"at step {keys.step} the gradients that give the adversary its weight are not finite: norm "
            f"{restoration} of the reconstruction loss, {adversarial} of the adversary's. Take "
            "mixed_precision=bf16 or no in place of fp16, whose numbers end at 65,504; else a lower rate"
        )


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Computes the KL divergence of N(μ, var) to N(0, 1), in nats a cell.

    0.5 · Σ_c (μ_c² + var_c − 1 − logvar_c), summed over channels, averaged over the cells of the grid, as
    VMAE's L_reg is. A sum over the whole latent, as others write it, is h · w times this.

    Args:
        mean: (b, C, h, w) means.
        logvar: (b, C, h, w) log variances.

    Returns:
        (b,).
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).flatten(1).mean(1)


def perceptual_share(
    perceptual: Callable[[Tensor, Tensor], Tensor],
    decoded: Tensor,
    images: Tensor,
    keys: BatchKeys,
    rows: int | None = None,
) -> Tensor:
    """Computes a piece's share of the mean perceptual distance over the batch's chosen rows.

    Args:
        perceptual: distance (x, y) of images in [-1, 1] → (b,).
        decoded: (b, 3, H, W) decoded images.
        images: (b, 3, H, W) images.
        keys: where the piece stands.
        rows: how many rows of the whole batch are chosen, evenly spread by their place in it; None: all.

    Returns:
        ().
    """
    count = min(rows or keys.batch_size, keys.batch_size)
    chosen = [i for i, row in enumerate(keys.rows) if row * count % keys.batch_size < count]
    if not chosen:
        return decoded.new_zeros(())
    if len(chosen) < len(images):
        index = torch.tensor(chosen, device=images.device)
        images, decoded = images.index_select(0, index), decoded.index_select(0, index)
    return perceptual(decoded, images).float().sum() / count
