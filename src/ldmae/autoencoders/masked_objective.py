"""The objective of VMAE: L = L_R + λ_M · L_M + λ_P · L_P + λ_reg · L_reg (arXiv 2507.09984)."""

# B rows of the whole batch, b rows of this piece, C latent channels, N tokens, V visible ones

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldmae.autoencoders.masking import num_visible, random_visible_indices, visible_mask
from ldmae.autoencoders.reconstruction_objective import perceptual_share
from ldmae.autoencoders.settings import MaskedObjectiveConfig
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.contracts import BatchKeys, ObjectiveOutput
from ldmae.core.errors import UserError
from ldmae.core.random import normal, uniform


class MaskedObjective(nn.Module):
    """A VMAE with its loss: the one module that is prepared and stepped.

    Args:
        model: the autoencoder; the only part of the module tree.
        config: weights and mask share.
        perceptual: frozen distance (x, y) of images in [-1, 1] → (b,); kept out of the module tree, so that
            it is never trained, wrapped, put in training mode or saved.

    Raises:
        UserError: a setting that the model or the missing perceptual distance does not allow.
    """

    def __init__(
        self,
        model: AutoencoderVMAE,
        config: MaskedObjectiveConfig,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        if config.masking.ratio > 0 and model.mask_token is None:
            raise UserError(
                f"masking.ratio={config.masking.ratio} needs a model with use_mask_token=True, this one has "
                "none; set use_mask_token=True, or masking.ratio=0"
            )
        if config.perceptual_weight > 0 and perceptual is None:
            raise UserError(
                f"perceptual_weight={config.perceptual_weight} needs the network {config.perceptual!r}, "
                "none was given; load it with ldmae.perception, or set perceptual_weight=0"
            )
        patches = (model.config["sample_size"] // model.config["patch_size"]) ** 2
        if config.masking.ratio > 0 and num_visible(patches, config.masking.ratio) == patches:
            # nor would the mask token get a gradient, which DistributedDataParallel waits for
            raise UserError(
                f"masking.ratio={config.masking.ratio} hides none of an image's {patches} patches; give "
                f"masking.ratio={1 / patches:.2g} or more, or 0"
            )
        self.model = model
        self.config = config
        self._perceptual = (perceptual,)  # in a tuple: a module in an attribute would join the tree
        if config.masking.ratio == 0 and model.mask_token is not None:
            # it stands nowhere, so it gets no gradient, which DistributedDataParallel would wait for
            model.mask_token.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor], keys: BatchKeys) -> ObjectiveOutput:
        """Computes the losses of a piece of a batch, as shares of the whole batch's means.

        Args:
            batch: `images`, (b, 3, H, W) in [-1, 1].
            keys: where the piece stands; the only source of randomness.

        Returns:
            The weighted sum, and the raw terms `visible`, `masked` (where anything is masked), `perceptual`
            (where it has a weight) and `kl`.
        """
        images = batch["images"]
        p = self.model.config["patch_size"]
        grid = (images.shape[2] // p, images.shape[3] // p)
        num_tokens = grid[0] * grid[1]
        visible = None
        if num_visible(num_tokens, self.config.masking.ratio) < num_tokens:
            visible = random_visible_indices(keys, num_tokens, self.config.masking.ratio, images.device)
        mean, logvar = self._posterior(images, visible)
        z = mean
        if self.config.sample_posterior:
            noise = normal(tuple(mean.shape[1:]), keys, stream="posterior", device=mean.device)
            z = mean + (0.5 * logvar).exp() * noise.to(mean.dtype)
        if self.config.latent_noise > 0:
            z = z + self._latent_noise(z, keys)
        decoded = self.model.decode(z, visible_indices=visible, grid=grid, return_dict=False)[0].float()

        share = 1 / keys.batch_size
        raw = self._pixel_terms(images.float(), decoded, visible, share)
        if self.config.perceptual_weight > 0:
            raw["perceptual"] = self._perceptual_term(images.float(), decoded, keys)
        raw["kl"] = variance_kl(logvar.float(), self.config.prior_std).sum() * share
        weights = {
            "visible": self.config.visible_weight,
            "masked": self.config.masked_weight,
            "perceptual": self.config.perceptual_weight,
            "kl": self.config.kl_weight,
        }
        loss = decoded.new_zeros(())
        for name, term in raw.items():
            if weights[name] > 0:  # 0 · inf would spoil the loss
                loss = loss + weights[name] * term
        return ObjectiveOutput(loss=loss, terms={name: term.detach() for name, term in raw.items()})

    def _posterior(self, images: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
        # a frozen encoder keeps no activations
        trained = any(parameter.requires_grad for parameter in self.model.encoder_parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            posterior = self.model.encode(images, visible_indices=visible, return_dict=False)[0]
        return posterior.mean, posterior.logvar

    def _latent_noise(self, z: Tensor, keys: BatchKeys) -> Tensor:
        every = tuple(range(1, z.ndim))
        share = uniform((1,) * len(every), keys, stream="latent noise share", device=z.device)
        noise = normal(tuple(z.shape[1:]), keys, stream="latent noise", device=z.device)
        deviation = z.detach().float().std(every, keepdim=True)
        return (self.config.latent_noise * share * deviation * noise).to(z.dtype)

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

    def _perceptual_term(self, images: Tensor, decoded: Tensor, keys: BatchKeys) -> Tensor:
        (perceptual,) = self._perceptual
        assert perceptual is not None
        return perceptual_share(perceptual, decoded, images, keys, self.config.perceptual_rows)


def patch_errors(decoded: Tensor, images: Tensor, patch_size: int) -> Tensor:
    """Returns the mean squared error of each patch, (b, N), of images (b, 3, H, W)."""
    p = patch_size
    error = (decoded - images).square().mean(1)  # (b, H, W)
    cut = error.unflatten(2, (-1, p)).unflatten(1, (-1, p))  # (b, h, p, w, p)
    return cut.mean((2, 4)).flatten(1)


def variance_kl(logvar: Tensor, prior_std: float) -> Tensor:
    """Computes the KL divergence of N(μ, var) to N(μ, s²): the variance is pulled, the mean stays free.

    0.5 · Σ_c (var_c / s² − 1 − logvar_c + log s²) (the paper's L_reg), summed over channels, averaged
    over tokens.

    Args:
        logvar: (b, C, …) log variances.
        prior_std: s.

    Returns:
        (b,).
    """
    relative = logvar - 2 * math.log(prior_std)  # log (var / s²)
    return 0.5 * (relative.exp() - 1 - relative).sum(1).flatten(1).mean(1)


def set_initial_logvar(model: AutoencoderVMAE, value: float) -> None:
    """Sets where the posterior's log variance starts, by the bias of `to_latent`.

    At the default, 0, noise of standard deviation 1 drowns what an untrained encoder says; −4 starts
    training off sooner.
    """
    with torch.no_grad():
        model.to_latent.bias[model.config["latent_channels"] :] = value
