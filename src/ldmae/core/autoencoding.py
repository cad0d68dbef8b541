"""One way to call any autoencoder, whatever its output is called: ours and diffusers'."""

# B batch, C latent channels, h w latent grid

from typing import Any

import torch
from torch import Tensor


def encode_moments(autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Encodes images to the posterior's mean and log variance.

    Args:
        autoencoder: a model with `encode`, whose output has `latent_dist`, `latent` or `latents`.
        images: (B, 3, H, W) in [-1, 1].

    Returns:
        The mean (B, C, h, w), and the log variance (B, C, h, w) or None where the latent is deterministic.

    Raises:
        TypeError: the output is of none of these forms.
    """
    parameter = next(autoencoder.parameters())
    output = autoencoder.encode(images.to(parameter.device, parameter.dtype))
    if hasattr(output, "latent_dist"):
        posterior = output.latent_dist
        return posterior.mean.float(), posterior.logvar.float()
    for name in ("latent", "latents"):
        if hasattr(output, name):
            return getattr(output, name).float(), None
    if isinstance(output, Tensor):
        return output.float(), None
    raise TypeError(
        f"{type(autoencoder).__name__}.encode returned {type(output).__name__}, which holds no latents"
    )


def decode(autoencoder: Any, latents: Tensor) -> Tensor:
    """Decodes raw latents (B, C, h, w), as `encode_moments` gives them, to images (B, 3, H, W) in [-1, 1]."""
    parameter = next(autoencoder.parameters())
    output = autoencoder.decode(latents.to(parameter.device, parameter.dtype))
    images = output if isinstance(output, Tensor) else output.sample
    return images.float().clamp(-1, 1)


@torch.no_grad()
def reconstruct(autoencoder: Any, images: Tensor) -> Tensor:
    """Encodes to the posterior mean and decodes it: (B, 3, H, W) to (B, 3, H, W), in [-1, 1]."""
    return decode(autoencoder, encode_moments(autoencoder, images)[0])
