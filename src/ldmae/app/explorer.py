"""Looking into an autoencoder with one image: what comes back, latents, noise, hidden patches, mixtures."""

# C latent channels, h w latent grid, N tokens (h * w), V visible tokens, S side of the square image

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmae.app.uploads import squared
from ldmae.autoencoders.masking import random_visible_indices, visible_mask
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.contracts import BatchKeys
from ldmae.core.autoencoding import encode_moments, placement, reconstruct, require_finite
from ldmae.core.errors import UserError, check_range
from ldmae.evaluation.components import Components, fit_components
from ldmae.evaluation.groupings import enlarged
from ldmae.evaluation.interpolation import interpolated_decodings
from ldmae.evaluation.reconstruction import hwc, pair_values
from ldmae.evaluation.smoothness import noisy_decodings
from ldmae.perception.lpips import PerceptualDistance
from ldmae.perception.names import SMALLEST

MOST_HIDDEN = 0.95
"""Share of the patches that may be hidden; one always stays."""
STRONGEST_NOISE = 1.0
_GREY = 128
"""What stands for a hidden patch in a picture."""


@dataclass(frozen=True)
class Seen:
    """A picture that came out, beside the original it belongs to."""

    picture: np.ndarray
    """(S, S, 3) uint8."""
    metrics: dict[str, float]
    """`PSNR` in dB, and the perceptual distance under its label (see `metrics_of` for when it is missing)."""


class AutoencoderExplorer:
    """An autoencoder, and what its latents are measured against; shared by all visitors, and not changed.

    Args:
        autoencoder: any, on its device, in evaluation mode.
        size: pixels along a side of the square images that it gets.
        samples: RGB images: colours of latents, and (where `deviation` is None) the latents' deviation, are
            fitted on them.
        perceptual: the perceptual distance, on the CPU.
        deviation: the latents' deviation in each channel over the training set (C numbers), or None where
            nobody knows it: then that over the samples.
    """

    def __init__(
        self,
        autoencoder: Any,
        size: int,
        samples: Sequence[Image.Image],
        perceptual: PerceptualDistance,
        deviation: Sequence[float] | None = None,
    ) -> None:
        self.autoencoder, self.size, self.perceptual = autoencoder, size, perceptual
        self._samples, self._deviation = samples, deviation

    @torch.no_grad()
    def encode(self, image: Image.Image) -> Latent:
        """Encodes the centred square of an RGB image.

        Raises:
            UserError: the autoencoder fails on it.
        """
        images = squared(image, self.size)
        return Latent(images, encode_moments(self.autoencoder, images)[0].cpu())

    @cached_property
    def _sample_latents(self) -> Tensor:
        return torch.cat([self.encode(image).mean for image in self._samples])

    @cached_property
    def components(self) -> Components:
        """The principal components of the samples' latents: the same colours mean the same in all images."""
        return fit_components(self._sample_latents)

    @cached_property
    def deviation(self) -> Tensor:
        """The latents' deviation in each channel, (C, 1, 1)."""
        if self._deviation is not None:
            return torch.tensor(self._deviation, dtype=torch.float32).view(-1, 1, 1)
        return self._sample_latents.double().std(dim=(0, 2, 3)).float().view(-1, 1, 1)

    def reconstruction(self, latent: Latent) -> Seen:
        """Returns what the decoder makes of the image's latents."""
        return self._seen(latent, reconstruct(self.autoencoder, latent.image))

    def colours(self, latent: Latent) -> np.ndarray:
        """Returns the latents' first three principal components as red, green and blue, (S, S, 3) uint8."""
        return self.components.pictures(latent.mean, (self.size, self.size))[0]

    def noisy(self, latent: Latent, epsilon: float) -> Seen:
        """Returns what the decoder makes of z + ε · σ_c · N(0, 1); the noise is the same at every ε.

        ε is from 0 to `STRONGEST_NOISE`, in standard deviations σ_c of each latent channel.

        Raises:
            UserError: ε is out of range.
        """
        check_range("ε", epsilon, 0, STRONGEST_NOISE, "try 0.1")
        device, _ = placement(self.autoencoder)
        latents, std = latent.mean.to(device), self.deviation.to(device)
        [(_, images)] = noisy_decodings(self.autoencoder, ["page"], latents, std, [epsilon])
        return self._seen(latent, images)

    @property
    def cannot_hide(self) -> str:
        """Why patches can't be hidden from this autoencoder, or an empty string where they can."""
        if not isinstance(self.autoencoder, AutoencoderVMAE):
            return (
                f"{type(self.autoencoder).__name__} always encodes whole images; only masked autoencoders "
                "(AutoencoderVMAE) decode from a part of the patches"
            )
        if self.autoencoder.mask_token is None:
            return (
                "this AutoencoderVMAE has no mask token to replace masked patches (use_mask_token=False, as "
                "in final official checkpoints); models trained by `ldmae run` have one"
            )
        return ""

    @torch.no_grad()
    def hidden(self, latent: Latent, share: float, draw: int = 0) -> tuple[np.ndarray, Seen]:
        """Hides a share of the patches from the encoder, and decodes the rest with mask tokens for them.

        With a larger share the same patches stay hidden, and more with them; `draw` chooses which.

        Returns:
            What the encoder sees, (S, S, 3) uint8 with grey for what it doesn't; and what is made of it.

        Raises:
            UserError: the share is above `MOST_HIDDEN`, or the autoencoder can't (see `cannot_hide`).
        """
        if self.cannot_hide:
            raise UserError(f"{self.cannot_hide}; open the page with such a model")
        check_range("the mask ratio", share, 0, MOST_HIDDEN, "the paper uses 0.6")
        h, w = latent.mean.shape[2:]
        device, dtype = placement(self.autoencoder)
        name = type(self.autoencoder).__name__
        visible = random_visible_indices(BatchKeys(draw, 0, [0], 1), h * w, share).to(device)  # (1, V)
        posterior = self.autoencoder.encode(
            latent.image.to(device, dtype), visible_indices=visible
        ).latent_dist
        z = posterior.mode()
        require_finite(z, f"{name}.encode", dtype)
        images = self.autoencoder.decode(z, visible_indices=visible, grid=(h, w)).sample.float()
        require_finite(images, f"{name}.decode", dtype)
        images = images.clamp(-1, 1)
        seen = visible_mask(visible, h * w).view(1, h, w, 1).cpu().numpy()
        window = enlarged(seen, (self.size, self.size))[0]  # (S, S, 1)
        return np.where(window, latent.picture, np.uint8(_GREY)), self._seen(latent, images)

    def between(self, first: Latent, second: Latent, fractions: Sequence[float]) -> list[np.ndarray]:
        """Returns what the decoder makes of (1 - t) · first + t · second, (S, S, 3) uint8, for each t.

        Raises:
            UserError: a fraction is out of [0, 1].
        """
        for t in fractions:
            check_range("t", t, 0, 1, "0.5 is halfway")
        device, _ = placement(self.autoencoder)
        ends = first.mean.to(device), second.mean.to(device)
        decoded = interpolated_decodings(self.autoencoder, *ends, fractions)
        return [hwc(images)[0] for _, images in decoded]

    def _seen(self, latent: Latent, images: Tensor) -> Seen:
        picture = hwc(images)[0]
        return Seen(picture, metrics_of(latent.picture, picture, self.perceptual))


@dataclass(frozen=True)
class Latent:
    """An image and its latents: what is kept for a visitor between two movements of a slider."""

    image: Tensor
    """(1, 3, S, S) in [-1, 1], on the CPU."""
    mean: Tensor
    """(1, C, h, w) raw posterior mean, on the CPU."""

    @property
    def picture(self) -> np.ndarray:
        """The image as (S, S, 3) uint8."""
        return hwc(self.image)[0]


@torch.no_grad()
def metrics_of(first: np.ndarray, second: np.ndarray, perceptual: PerceptualDistance) -> dict[str, float]:
    """Returns PSNR in dB and the perceptual distance (on the CPU) of two pictures (H, W, 3) uint8.

    The perceptual distance is left out where the images are smaller than its network can take.
    """
    x, y = (torch.tensor(picture).permute(2, 0, 1)[None] for picture in (first, second))  # (1, 3, H, W)
    fits = min(x.shape[-2:]) >= SMALLEST[perceptual.name]
    pairs = pair_values(x, y, ("PSNR",), perceptual if fits else None)
    return {name: values[0] for name, values in pairs.items()}
