"""The objective of VMAE: L = L_R + λ_M · L_M + λ_P · L_P + λ_reg · L_reg (arXiv 2507.09984), and what later
work adds to it, all of it off by default (docs/concepts/beyond-the-paper.md).
"""

# b rows of this piece of a batch, C latent channels, h w latent grid, N tokens, V visible ones, F features

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldmae.autoencoders.discriminator import PatchDiscriminator
from ldmae.autoencoders.latent_terms import (
    Transform,
    alignment,
    draw_transform,
    relative_std,
    scale_guard,
    scaled_noise,
    spectrum_kl,
    variance_expansion,
    variance_kl,
    with_latent_noise,
)
from ldmae.autoencoders.masking import mask_share, num_visible, random_visible_indices, visible_mask
from ldmae.autoencoders.objective import AutoencoderObjective, Balanced, Losses
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config.autoencoder import MaskedObjectiveConfig
from ldmae.contracts import BatchKeys
from ldmae.core.errors import UserError
from ldmae.core.random import generator, uniform
from ldmae.perception.names import SMALLEST
from ldmae.perception.spatial import SpatialFeatures

_GUARD_WEIGHT = 1e-6
"""Of the scale guard beside variance expansion in its absolute form (arXiv 2603.21085)."""


class MaskedObjective(AutoencoderObjective):
    """A VMAE with its loss; see `AutoencoderObjective`.

    The terms are `visible`, `masked` (where anything is masked), `perceptual` (where it has a weight), `kl`,
    `relative_std` (no part of the loss), and those that the settings switch on.

    Args:
        model: the autoencoder.
        config: weights and mask share.
        perceptual: frozen distance (x, y) of images in [-1, 1] → (b,).
        discriminator: where `adversarial_weight` asks for one.
        features: frozen network that latents are aligned with, where `alignment_weight` asks for one; kept
            out of the module tree. The projection of latents to its features is trained along, never saved.

    Raises:
        UserError: a setting that the model, or a missing network, does not allow.
    """

    config: MaskedObjectiveConfig

    def __init__(
        self,
        model: AutoencoderVMAE,
        config: MaskedObjectiveConfig,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        discriminator: PatchDiscriminator | None = None,
        features: SpatialFeatures | None = None,
    ):
        super().__init__(model, config, perceptual, discriminator)
        _check_mask(model, config)
        if config.alignment_weight > 0 and features is None:
            raise UserError(
                f"alignment_weight={config.alignment_weight} needs the network {config.alignment!r}, "
                "but none was given; load it with ldmae.perception.spatial, or set alignment_weight=0"
            )
        self._features = (features,)
        self.projection = None
        if features is not None and config.alignment_weight > 0:
            channels = model.config["latent_channels"]
            self.projection = nn.Linear(channels, features.channels, bias=False)
            if not self.projection.weight.is_meta:
                source = generator("projection")
                nn.init.normal_(self.projection.weight, std=channels**-0.5, generator=source)
        if config.masking.largest == 0 and model.mask_token is not None:
            # it stands nowhere, so it gets no gradient, which DistributedDataParallel would wait for
            model.mask_token.requires_grad_(False)
        pixels = [SMALLEST.get(config.perceptual, 1)] if config.perceptual_weight > 0 else []
        pixels += [discriminator.smallest_image] if discriminator is not None else []
        self._least_cells = -(-max(pixels, default=1) // model.config["patch_size"])

    def losses(self, batch: dict[str, Any], keys: BatchKeys) -> Losses:
        """Computes the losses of a piece of a batch, without the discriminator's."""
        images, p = batch["images"], self.model.config["patch_size"]
        grid = (images.shape[2] // p, images.shape[3] // p)
        transform = self._transform(keys, grid)
        visible = self._visible(keys, grid, images.device) if transform is None else None
        mean, logvar = self._posterior(images, visible)
        z = self._drawn(mean, logvar, keys)
        seen, target = z, images.float()
        if transform is not None:
            seen, target = transform(z, 1), transform(target, p)
        seen = self._noisy(seen, keys)
        decoded = self.model.decode(seen, visible_indices=visible, grid=grid, return_dict=False)[0].float()

        share = 1 / keys.batch_size
        raw = self._pixel_terms(target, decoded, visible, share)
        if self.config.perceptual_weight > 0:
            raw["perceptual"] = self._perceptual_term(decoded, target, keys)
        restoration = self._weighted(raw, decoded.new_zeros(()))
        latent = self._latent_terms(images, visible, mean.float(), logvar.float(), z.float(), share)
        loss = self._weighted(latent, restoration)
        token = self.model.mask_token
        if visible is None and token is not None and token.requires_grad and self.training:
            loss = loss + 0 * token.sum()  # hidden in other steps: see above
        terms = raw | latent | {"relative_std": relative_std(mean.float(), logvar.float()).sum() * share}
        found = Losses(restoration, loss, terms, decoded, target)
        if self.projection is not None:
            self._align(found, images, visible, z, grid, share)
        return found

    def _balances(self, keys: BatchKeys) -> bool:
        return super()._balances(keys) or (self.training and self.projection is not None)

    def _transform(self, keys: BatchKeys, grid: tuple[int, int]) -> Transform | None:
        if self.config.equivariance == 0 or not self.training:
            return None
        return draw_transform(keys, self.config.equivariance, grid, self._least_cells)

    def _visible(self, keys: BatchKeys, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        ratio, tokens = mask_share(keys, self.config.masking), grid[0] * grid[1]
        if num_visible(tokens, ratio) == tokens:
            return None
        return random_visible_indices(keys, tokens, ratio, device)

    def _weighted(self, raw: dict[str, Tensor], loss: Tensor) -> Tensor:
        for name, term in raw.items():
            weight = _GUARD_WEIGHT if name == "scale_guard" else getattr(self.config, f"{name}_weight")
            if weight > 0:  # 0 · inf would spoil the loss
                loss = loss + weight * term
        return loss

    def _posterior(self, images: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
        # a frozen encoder keeps no activations
        trained = any(parameter.requires_grad for parameter in self.model.encoder_parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            posterior = self.model.encode(images, visible_indices=visible, return_dict=False)[0]
        return posterior.mean, posterior.logvar

    def _noisy(self, z: Tensor, keys: BatchKeys) -> Tensor:
        """Returns latents with the noise that the settings put on them before decoding."""
        z = with_latent_noise(z, keys, self.config.latent_noise)
        if self.config.interpolation_noise > 0:
            share = uniform((1,) * (z.ndim - 1), keys, stream="interpolation share", device=z.device)
            noise = scaled_noise(z, keys, "interpolation")
            z = ((1 - share) * z + share * self.config.interpolation_noise * noise).to(z.dtype)
        return z

    def _pixel_terms(
        self, images: Tensor, decoded: Tensor, visible: Tensor | None, share: float
    ) -> dict[str, Tensor]:
        errors = patch_errors(decoded, images, self.model.config["patch_size"])  # (b, N)
        if visible is None:
            return {"visible": errors.mean(1).sum() * share}
        # every row has as many visible patches as the next: the mean of the rows' means is that of patches
        seen = visible_mask(visible, errors.shape[1])
        num_seen = visible.shape[1]
        return {
            "visible": (errors * seen).sum() / num_seen * share,
            "masked": (errors * ~seen).sum() / (errors.shape[1] - num_seen) * share,
        }

    def _latent_terms(
        self,
        images: Tensor,
        visible: Tensor | None,
        mean: Tensor,
        logvar: Tensor,
        z: Tensor,
        share: float,
    ) -> dict[str, Tensor]:
        """Returns the raw terms of the latents, `kl` and those that are switched on."""
        config = self.config
        raw = {"kl": variance_kl(logvar, config.prior_std).sum() * share}
        if config.expansion_weight > 0:
            relative = config.expansion == "relative"
            raw["expansion"] = variance_expansion(mean, logvar, relative).sum() * share
            if not relative:
                raw["scale_guard"] = scale_guard(z).sum() * share
        if config.spectrum_weight > 0:
            # a spectrum is of the whole grid: where patches are hidden, all are encoded once more
            whole = mean if visible is None else self._posterior(images, None)[0].float()
            raw["spectrum"] = spectrum_kl(images.float(), whole).sum() * share
        return raw

    def _align(
        self,
        found: Losses,
        images: Tensor,
        visible: Tensor | None,
        z: Tensor,
        grid: tuple[int, int],
        share: float,
    ) -> None:
        """Adds the alignment of latents with the frozen network's features."""
        (network,) = self._features
        assert network is not None
        assert self.projection is not None
        tokens, features = z.flatten(2), network(images, grid).flatten(2)  # (b, C, N), (b, F, N)
        if visible is not None:
            features = features.gather(2, visible[:, None].expand(-1, features.shape[1], -1))
        projected = self.projection(tokens.mT).mT.float()
        term = alignment(tokens.float(), projected, features).sum() * share
        found.terms["alignment"] = term
        if self.training:
            weight = self.config.alignment_weight
            balanced = Balanced(term, weight, self.model.to_latent.weight, "alignment_weight")
            found.balanced["alignment"] = balanced


def _check_mask(model: AutoencoderVMAE, config: MaskedObjectiveConfig) -> None:
    """Raises a UserError for a mask that the model cannot decode, or that hides nothing."""
    ratio, patches = config.masking.largest, (model.config["sample_size"] // model.config["patch_size"]) ** 2
    if ratio > 0 and model.mask_token is None:
        raise UserError(
            f"masking.ratio={ratio} needs a model with use_mask_token=True, and this one "
            "has none; set use_mask_token=True, or masking.ratio=0"
        )
    if ratio > 0 and num_visible(patches, ratio) == patches:
        # nor would the mask token get a gradient, which DistributedDataParallel waits for
        raise UserError(
            f"masking.ratio={ratio} hides none of an image's {patches} patches; give "
            f"masking.ratio={1 / patches:.2g} or more, or 0"
        )


def patch_errors(decoded: Tensor, images: Tensor, patch_size: int) -> Tensor:
    """Returns the mean squared error of each patch, (b, N), of images (b, 3, H, W)."""
    p = patch_size
    error = (decoded - images).square().mean(1)  # (b, H, W)
    cut = error.unflatten(2, (-1, p)).unflatten(1, (-1, p))  # (b, h, p, w, p)
    return cut.mean((2, 4)).flatten(1)


def set_initial_logvar(model: AutoencoderVMAE, value: float) -> None:
    """Sets where the posterior's log variance starts, by the bias of `to_latent`.

    At the default, 0, noise of standard deviation 1 drowns what an untrained encoder says; −4 starts
    training off sooner.
    """
    with torch.no_grad():
        model.to_latent.bias[model.config["latent_channels"] :] = value
