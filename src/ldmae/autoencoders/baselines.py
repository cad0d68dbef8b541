"""The paper's baselines AE, DAE, VAE and SD-VAE: one convolutional autoencoder, four objectives.

It is Stable Diffusion 3's, as diffusers' `AutoencoderKL`, here of any width.
"""

# C latent channels, f down-sampling factor

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from ldmae.autoencoders.reconstruction_objective import ReconstructionObjectiveConfig
from ldmae.core.errors import UserError
from ldmae.core.flops import count_autoencoder_flops

KINDS = {"ae": "AE", "dae": "DAE", "vae": "VAE", "sd-vae": "SD-VAE"}
"""The baselines' names in settings, and in tables."""

FULL_WIDTHS = (128, 256, 512, 512)
"""Stable Diffusion 3's channels, from full resolution down; a further halving has 512 again."""

WIDTH_STEP = 1 / 256
"""Between widths tried to meet a number of operations: the widest block then takes all even numbers."""

VAE_PIXEL_STD = 0.16
"""Deviation of the VAE's Gaussian decoder, in images in [-1, 1]; the paper names none.

At the optimum each latent number adds its square to a patch's squared error: 16 times it over 192 numbers
makes about the step from the paper's AE (32.2 dB) to its VAE (29.4 dB).
"""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """The shape of a baseline; width 1, factor 8 and 16 channels are the paper's, 83.8 M parameters."""

    factor: int = 8
    """Pixels of the image along one side of a latent cell; a power of two, for each block halves."""
    latent_channels: int = 16
    """Channels C of the latent."""
    width: float = 1.0
    """Multiplier of 128, 256, 512, 512 channels; each is rounded to an even number."""

    def __post_init__(self) -> None:
        if self.factor < 1 or self.factor & (self.factor - 1):
            powers = [
                2 ** int(math.log2(max(1, self.factor))),
                2 ** math.ceil(math.log2(max(1, self.factor))),
            ]
            near = " or ".join(str(power) for power in dict.fromkeys(powers))
            raise UserError(
                f"factor must be a power of two, for each block of an AutoencoderKL halves the image, "
                f"got {self.factor}; take {near}"
            )
        if self.latent_channels < 1:
            raise UserError(f"latent_channels must be at least 1, got {self.latent_channels}")
        if not 0 < self.width < math.inf:
            raise UserError(f"width must be above 0, got {self.width}; 1 is the paper's")


def build_baseline(
    config: BaselineConfig, sample_size: int, deterministic: bool = False, initial_logvar: float | None = None
) -> AutoencoderKL:
    """Builds the convolutional autoencoder that all baselines share.

    Args:
        config: its shape.
        sample_size: pixels along a side of the images it is for; a multiple of the factor.
        deterministic: for AE and DAE, whose objective never sees a log variance: it starts at -30 everywhere,
            and without a gradient stays there, so that who samples from the posterior gets its mean.
        initial_logvar: where else the log variance's bias starts; torch's (about 0) where None.

    Raises:
        UserError: the image size is no multiple of the factor.
    """
    if sample_size % config.factor:
        raise UserError(
            f"images of {sample_size} px are no multiple of factor={config.factor}; "
            "choose another size, or another factor"
        )
    widths = block_widths(config.width, config.factor)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(widths),  # pyright: ignore[reportArgumentType]
        block_out_channels=widths,  # pyright: ignore[reportArgumentType]
        layers_per_block=2,
        latent_channels=config.latent_channels,
        norm_num_groups=norm_groups(widths),
        sample_size=sample_size,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    moments: nn.Conv2d = model.encoder.conv_out  # its channels: C means, C log variances
    with torch.no_grad():
        assert moments.bias is not None
        if deterministic:
            moments.weight[config.latent_channels :] = 0
            moments.bias[config.latent_channels :] = -30.0
        elif initial_logvar is not None:
            moments.bias[config.latent_channels :] = initial_logvar
    return model


def block_widths(width: float, factor: int) -> tuple[int, ...]:
    """Returns the channels of each block: one at full resolution and one for each halving."""
    halvings = factor.bit_length() - 1
    full = (*FULL_WIDTHS, *[FULL_WIDTHS[-1]] * halvings)[: halvings + 1]
    return tuple(2 * max(2, round(width * channels / 2)) for channels in full)


def norm_groups(widths: tuple[int, ...]) -> int:
    """Returns the most groups, at most 32, that divide all widths and leave each group 4 channels or more."""
    common, narrowest = math.gcd(*widths), min(widths)
    return max(g for g in range(1, 33) if common % g == 0 and (narrowest // g >= 4 or g == 1))


def baseline_objective(kind: str, factor: int = 8) -> ReconstructionObjectiveConfig:
    """Returns what sets a baseline apart, its objective, by its name in `KINDS`.

    AE: squared error. DAE: the same, of the clean image from a noisy one. VAE: the negative evidence bound of
    a decoder with deviation `VAE_PIXEL_STD`. SD-VAE: L1 + LPIPS + 1e-6 · KL + the adversary's adaptive term.
    """
    if kind == "ae":
        return ReconstructionObjectiveConfig(sample_posterior=False, kl_weight=0.0, perceptual_weight=0.0)
    if kind == "dae":
        return ReconstructionObjectiveConfig(
            sample_posterior=False, kl_weight=0.0, perceptual_weight=0.0, input_noise=0.1
        )
    if kind == "vae":
        weight = elbo_kl_weight(VAE_PIXEL_STD, factor)
        return ReconstructionObjectiveConfig(kl_weight=weight, perceptual_weight=0.0)
    if kind == "sd-vae":
        return ReconstructionObjectiveConfig(pixel_loss="l1", adversarial_weight=0.5)
    raise UserError(f"there is no baseline {kind!r}; take one of: {', '.join(KINDS)}")


def elbo_kl_weight(pixel_std: float, factor: int) -> float:
    """Returns the weight that makes MSE + weight · KL the negative evidence bound, up to its scale.

    The bound of an image is Σ error² / (2 s²) + Σ_cells KL. Times 2 s² / (3 H W) its first term is the mean
    squared error; there are H W / f² cells, so the mean over cells of the KL bears the weight 2 s² / (3 f²).
    """
    return 2 * pixel_std**2 / (3 * factor**2)


@dataclass(frozen=True)
class FittedWidth:
    """A width, and what encode + decode of one image cost (a multiply-add counting 2)."""

    width: float
    flops: int
    target: int


def fit_width(config: BaselineConfig, sample_size: int, target: int) -> FittedWidth:
    """Finds the width at which encode + decode of one image come closest to a number of operations.

    Args:
        config: the shape; its width is left aside. Channels are whole, so narrow ones miss by some per
            cent.
        sample_size: pixels along a side of the image.
        target: operations, as `count_autoencoder_flops` gives them.
    """

    @cache
    def flops(step: int) -> int:
        with torch.device("meta"):
            shape = BaselineConfig(
                factor=config.factor, latent_channels=config.latent_channels, width=step * WIDTH_STEP
            )
            return count_autoencoder_flops(build_baseline(shape, sample_size), sample_size).total

    low, high = 1, 2
    while flops(high) < target:
        low, high = high, high * 2
    while high - low > 1:  # operations grow with the width
        middle = (low + high) // 2
        low, high = (middle, high) if flops(middle) < target else (low, middle)
    best = min((low, high), key=lambda step: abs(flops(step) - target))
    return FittedWidth(best * WIDTH_STEP, flops(best), target)
