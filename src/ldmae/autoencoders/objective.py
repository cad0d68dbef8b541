"""What all objectives of autoencoders share: the discriminator, and weights that balance gradients."""

# b rows of this piece of a batch, C latent channels, h w latent grid, H W image

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ldmae.autoencoders.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.contracts import BatchKeys, ObjectiveOutput
from ldmae.core.errors import UserError
from ldmae.core.random import normal

_WHOLE_BATCH = "whole_batch"
"""Key under which a piece of a batch has what `look_ahead` returned for all pieces, summed."""
_ADVERSARIAL = "adversarial"


class Balanced(NamedTuple):
    """A term whose weight makes its gradient as large as a share of the reconstruction loss's."""

    term: Tensor
    """(), this piece's share."""
    share: float
    parameter: Tensor
    """By which both gradients are taken."""
    weight_name: str
    """What the weight is called among the logged terms."""


@dataclass
class Losses:
    """The losses of a piece of a batch, as shares of the whole batch's means."""

    restoration: Tensor
    """(), weighted sum of all that compares the decoded image with the image."""
    loss: Tensor
    """(), that and the other terms with a weight of their own."""
    terms: dict[str, Tensor]
    """Unweighted, by name."""
    decoded: Tensor
    """(b, 3, H, W) float32."""
    images: Tensor
    """(b, 3, H, W) float32, what is to be decoded."""
    balanced: dict[str, Balanced] = field(default_factory=dict)
    """By the name under which `look_ahead` gives its gradients."""


class AutoencoderObjective(nn.Module):
    """An autoencoder with its loss, and the discriminator with its: what is prepared and stepped.

    One backward pass serves both. The discriminator learns from reconstructions without their graph, the
    autoencoder from a discriminator whose weights are constants, so that no gradient of one reaches the
    other.

    A balanced term's weight is a ratio of gradient norms of the WHOLE batch, of which a piece (a micro-batch,
    a process's share) knows only its own gradients. So a batch in pieces is computed twice: `look_ahead`
    gives each piece's share of the two gradients (of one weight only), their sums over all pieces come back
    in the batch as `whole_batch`, and `forward` takes the norms of these. A batch in one piece is computed
    once. The norms of the step before would be cheaper for pieces, but the ratio would no longer bound the
    term's pull, and the training would have one state more.

    Args:
        model: a VMAE, or an autoencoder with a `decoder`; trained, averaged, saved.
        config: the terms' weights, `adversarial_weight` and `adversarial_start_step` among them.
        perceptual: frozen distance (x, y) of images in [-1, 1] → (b,); kept out of the module tree, so that
            it is never trained, wrapped, put in training mode or saved.
        discriminator: trained along and kept in the training states, never saved.
        image_size: pixels along a side of the images; None: the model's `sample_size`.

    Raises:
        UserError: a setting that the model, or a missing network, does not allow.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        discriminator: PatchDiscriminator | None = None,
        image_size: int | None = None,
    ):
        super().__init__()
        if config.perceptual_weight > 0 and perceptual is None:
            raise UserError(
                f"perceptual_weight={config.perceptual_weight} needs the network {config.perceptual!r}, "
                "but none was given; load it with ldmae.perception, or set perceptual_weight=0"
            )
        if (config.adversarial_weight > 0) != (discriminator is not None):
            raise UserError(
                f"adversarial_weight={config.adversarial_weight} was given with"
                f"{'out' if discriminator is None else ''} a discriminator; give both, or neither (weight 0)"
            )
        size = image_size or model.config["sample_size"]
        if discriminator is not None and size < discriminator.smallest_image:
            raise UserError(
                f"images of {size} px are too small for this discriminator, which needs "
                f"{discriminator.smallest_image}; give it fewer layers"
            )
        self.model = model
        self.adversary = discriminator  # by this name the training engine knows it
        self.config = config
        self._perceptual = (perceptual,)  # in a tuple: a module in an attribute would join the tree

    def losses(self, batch: dict[str, Any], keys: BatchKeys) -> Losses:
        """Computes what this objective adds up; the discriminator's terms are added by `forward`."""
        raise NotImplementedError

    def forward(self, batch: dict[str, Any], keys: BatchKeys) -> ObjectiveOutput:
        """Computes the losses of a piece of a batch, as shares of the whole batch's means.

        Args:
            batch: `images`, (b, 3, H, W) in [-1, 1]; and `whole_batch`, the sum of all pieces' `look_ahead`,
                where the batch comes in several pieces.
            keys: where the piece stands; the only source of randomness.

        Returns:
            The sum that is minimised, and the raw terms of `losses`; once the discriminator takes part also
            `adversarial` (the generator's loss, the smaller the better), `discriminator` (its own loss) and
            `adaptive_weight`. In evaluation mode no balanced term takes part.

        Raises:
            UserError: gradients that are infinite or not a number, for a balanced term's weight.
        """
        found = self.losses(batch, keys)
        loss, terms = found.loss, found.terms
        for name, balanced in self._balanced(found, keys).items():
            gradients = batch.get(_WHOLE_BATCH, {}).get(name)
            if gradients is None:
                assert len(keys.rows) == keys.batch_size, "a batch in pieces must be looked ahead at"
                gradients = _gradients(found, balanced, keys)
            _require_finite(gradients, name, keys)
            weight = adaptive_weight(gradients[0], gradients[1])
            loss = loss + balanced.share * weight * balanced.term
            terms[name] = balanced.term
            terms[balanced.weight_name] = weight * len(found.images) / keys.batch_size  # the shares sum to it
        if self._listens(keys):
            discriminator = self._discriminator(found.decoded, found.images, keys)
            loss, terms["discriminator"] = loss + discriminator, discriminator
        elif self.adversary is not None and self.training:
            # a gradient of zero, which DistributedDataParallel waits for; AdamW then moves nothing
            loss = loss + 0 * torch.stack([p.sum() for p in self.adversary.parameters()]).sum()
        return ObjectiveOutput(loss=loss, terms={name: term.detach() for name, term in terms.items()})

    def look_ahead(self, batch: dict[str, Any], keys: BatchKeys) -> dict[str, Tensor] | None:
        """Computes a piece's share of what the balanced terms' weights are made of; None while there is none.

        Args:
            batch: `images`, (b, 3, H, W) in [-1, 1].
            keys: where the piece stands.

        Returns:
            By term (2, …), the gradients of the reconstruction loss and of the term by one weight: the
            decoder's last for `adversarial`.
        """
        if not self._balances(keys):
            return None
        found = self.losses(batch, keys)
        return {name: _gradients(found, one, keys) for name, one in self._balanced(found, keys).items()}

    def _balances(self, keys: BatchKeys) -> bool:
        return self._listens(keys)

    def _balanced(self, found: Losses, keys: BatchKeys) -> dict[str, Balanced]:
        balanced = dict(found.balanced)
        if self._listens(keys):
            term = self._adversarial(found.decoded, keys)
            weight = self.config.adversarial_weight
            balanced[_ADVERSARIAL] = Balanced(term, weight, last_weight(self.model), "adaptive_weight")
        return balanced

    def _listens(self, keys: BatchKeys) -> bool:
        started = keys.step >= self.config.adversarial_start_step
        return self.adversary is not None and self.training and started

    def _adversarial(self, decoded: Tensor, keys: BatchKeys) -> Tensor:
        assert self.adversary is not None
        constants = {name: weight.detach() for name, weight in self.adversary.named_parameters()}
        logits = functional_call(self.adversary, constants, (decoded,))
        return hinge_generator_loss(logits.float()).sum() / keys.batch_size

    def _discriminator(self, decoded: Tensor, images: Tensor, keys: BatchKeys) -> Tensor:
        assert self.adversary is not None
        real, fake = self.adversary(images).float(), self.adversary(decoded.detach()).float()
        return hinge_discriminator_loss(real, fake).sum() / keys.batch_size

    def _drawn(self, mean: Tensor, logvar: Tensor, keys: BatchKeys) -> Tensor:
        """Returns what is decoded of posteriors: a draw of each, or their means where the settings say so."""
        if not self.config.sample_posterior:
            return mean
        noise = normal(tuple(mean.shape[1:]), keys, stream="posterior", device=mean.device)
        return mean + (0.5 * logvar).exp() * noise.to(mean.dtype)

    def _perceptual_term(self, decoded: Tensor, images: Tensor, keys: BatchKeys) -> Tensor:
        """Computes a piece's share, (), of the mean perceptual distance over the batch's chosen rows.

        These are `perceptual_rows` of the whole batch, evenly spread by their place in it; None: all.
        """
        (perceptual,) = self._perceptual
        assert perceptual is not None
        count = min(self.config.perceptual_rows or keys.batch_size, keys.batch_size)
        chosen = [i for i, row in enumerate(keys.rows) if row * count % keys.batch_size < count]
        if not chosen:
            return decoded.new_zeros(())
        if len(chosen) < len(images):
            index = torch.tensor(chosen, device=images.device)
            images, decoded = images.index_select(0, index), decoded.index_select(0, index)
        return perceptual(decoded, images).float().sum() / count


def last_weight(model: Any) -> Tensor:
    """Returns the decoder's last weight, by which VQGAN takes the gradients that it balances."""
    decoder = model.decoder_pred if isinstance(model, AutoencoderVMAE) else model.decoder
    return [weight for weight in decoder.parameters() if weight.ndim > 1][-1]


def _gradients(found: Losses, balanced: Balanced, keys: BatchKeys) -> Tensor:
    # fp16 would lose the gradients of a mean by its n pixels (1/n) and overflow at those of a sum by the
    # weight (n): both are about √n away from 1 at this scale, which the share is divided by afterwards
    scale = keys.batch_size * math.sqrt(found.decoded[0].numel() / len(found.decoded))
    both = [
        torch.autograd.grad(term * scale, balanced.parameter, retain_graph=True)[0]
        for term in (found.restoration, balanced.term)
    ]
    return torch.stack(both).float() / scale


def _require_finite(gradients: Tensor, name: str, keys: BatchKeys) -> None:
    if not gradients.is_meta and not bool(gradients.isfinite().all()):
        restoration, other = (torch.linalg.vector_norm(gradient).item() for gradient in gradients)
        term = "the adversary" if name == _ADVERSARIAL else f"the {name}"
        raise UserError(
            f"at step {keys.step} the gradients that give {term} its weight are not finite: norm "
            f"{restoration} of the reconstruction loss, {other} of {term}'s. Take mixed_precision=bf16 or no "
            "in place of fp16, whose numbers end at 65,504; else a lower rate"
        )
