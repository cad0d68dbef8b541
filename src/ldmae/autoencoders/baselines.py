"""The paper's baselines AE, DAE, VAE and SD-VAE: one convolutional autoencoder, four objectives.

It is Stable Diffusion 3's, as diffusers' `AutoencoderKL`, here of any width.
"""

# C latent channels, f down-sampling factor

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.autoencoders.vmae_training import resized
from ldmae.config.autoencoder import BaselineConfig
from ldmae.core.errors import UserError
from ldmae.core.flops import count_autoencoder_flops

FULL_WIDTHS = (128, 256, 512, 512)
"""Stable Diffusion 3's channels, from full resolution down; a further halving has 512 again."""

_WIDTH_STEP = 1 / 256
"""Between widths tried to meet a number of operations: the widest block then takes all even numbers."""


def build_baseline(
    config: BaselineConfig, sample_size: int, deterministic: bool = False, initial_logvar: float | None = None
) -> AutoencoderKL:
    """Builds the convolutional autoencoder that the paper's baselines share.

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
    widths = _block_widths(config.width, config.factor)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(widths),  # pyright: ignore[reportArgumentType]
        block_out_channels=widths,  # pyright: ignore[reportArgumentType]
        layers_per_block=2,
        latent_channels=config.latent_channels,
        norm_num_groups=_norm_groups(widths),
        sample_size=sample_size,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    _set_logvar(model.encoder.conv_out, deterministic, initial_logvar)
    return model


def build_vit_baseline(
    model: dict[str, Any], sample_size: int, deterministic: bool = False, initial_logvar: float | None = None
) -> AutoencoderVMAE:
    """Builds VMAE's network of the shape `model` for a baseline's objective, which has no masks.

    The other arguments are those of `build_baseline`.
    """
    vit = AutoencoderVMAE(sample_size=sample_size, **model)
    _set_logvar(vit.to_latent, deterministic, initial_logvar)
    return vit


def continued_baseline(model: Any, vit: bool, sample_size: int, deterministic: bool) -> Any:
    """Returns a copy of an autoencoder, to be trained further by a baseline's objective.

    Args:
        model: an AutoencoderKL of any shape, or a VMAE.
        vit: whether a VMAE is wanted.
        sample_size: pixels along a side of the images it is for.
        deterministic: as in `build_baseline`.

    Raises:
        UserError: it is of the other class.
    """
    if vit:
        copy: Any = resized(model, sample_size)
        copy.mask_token.requires_grad_(False)  # nothing is masked
        moments = copy.to_latent
    elif isinstance(model, AutoencoderKL):
        # statistics are of the latents of that encoder, which is about to change
        fresh: Any = {"latents_mean": None, "latents_std": None, "shift_factor": None, "scaling_factor": 1.0}
        copy = AutoencoderKL.from_config(model.config, sample_size=sample_size, **fresh)
        copy.load_state_dict(model.state_dict())
        moments = copy.encoder.conv_out if copy.quant_conv is None else copy.quant_conv
    else:
        raise UserError(
            f"a baseline starts from an AutoencoderKL, got {type(model).__name__}; name one, or take another "
            "autoencoder.kind"
        )
    _set_logvar(moments, deterministic, None)
    return copy


def _set_logvar(moments: nn.Conv2d | nn.Linear, deterministic: bool, initial: float | None) -> None:
    """Sets where the log variances start: the second half of what the encoder's last layer gives."""
    assert moments.bias is not None
    channels = len(moments.bias) // 2
    with torch.no_grad():
        if deterministic:
            moments.weight[channels:] = 0
            moments.bias[channels:] = -30.0
        elif initial is not None:
            moments.bias[channels:] = initial


def _block_widths(width: float, factor: int) -> tuple[int, ...]:
    """Returns the channels of each block: one at full resolution and one for each halving."""
    halvings = factor.bit_length() - 1
    full = (*FULL_WIDTHS, *[FULL_WIDTHS[-1]] * halvings)[: halvings + 1]
    return tuple(2 * max(2, round(width * channels / 2)) for channels in full)


def _norm_groups(widths: tuple[int, ...]) -> int:
    """Returns the most groups, at most 32, that divide all widths and leave each group 4 channels or more."""
    common, narrowest = math.gcd(*widths), min(widths)
    return max(g for g in range(1, 33) if common % g == 0 and (narrowest // g >= 4 or g == 1))


def fit_width(config: BaselineConfig, sample_size: int, target: int) -> tuple[float, int]:
    """Finds the width at which encode + decode of one image come closest to a number of operations.

    Args:
        config: the shape; its width is left aside. Channels are whole, so narrow ones miss by some per
            cent.
        sample_size: pixels along a side of the image.
        target: operations, as `count_autoencoder_flops` gives them.

    Returns:
        The width, and what encode + decode of one image then cost.
    """

    @cache
    def flops(step: int) -> int:
        with torch.device("meta"):
            shape = BaselineConfig(
                factor=config.factor, latent_channels=config.latent_channels, width=step * _WIDTH_STEP
            )
            return count_autoencoder_flops(build_baseline(shape, sample_size), sample_size).total

    low, high = 1, 2
    while flops(high) < target:
        low, high = high, high * 2
    while high - low > 1:  # operations grow with the width
        middle = (low + high) // 2
        low, high = (middle, high) if flops(middle) < target else (low, middle)
    best = min((low, high), key=lambda step: abs(flops(step) - target))
    return best * _WIDTH_STEP, flops(best)
