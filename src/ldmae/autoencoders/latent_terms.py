"""Terms of an objective that are of the latents: their noise, their spectrum, their likeness to features.

Pure functions: tensors in, one number an image out. Each names the paper that has it.
"""

# b rows of this piece of a batch, C latent channels, h w latent grid, N cells (h·w, or the visible ones),
# F features of a frozen network, K radial bins

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmae.contracts import BatchKeys
from ldmae.core.random import normal, uniform, uniforms

_FLOOR = 1e-12
"""Added where a flat latent would divide by 0."""
_EXPANSION_FLOOR = 1e-4
"""δ of variance expansion: no variance is worth more than 1/δ."""
_SPECTRUM_BINS = 16
_LEAST_SCALE = 0.25
_COSINE_MARGIN, _DISTANCE_MARGIN = 0.5, 0.25
"""m1 and m2 of VA-VAE."""


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


@torch.no_grad()
def relative_std(mean: Tensor, logvar: Tensor) -> Tensor:
    """Computes r, the posterior's standard deviation over that of the image's own mean latents.

    It says how much noise the decoder sees whatever the latents' scale: a sampler's errors are of that scale.

    Args:
        mean: (b, C, …) means.
        logvar: (b, C, …) log variances.

    Returns:
        (b,), the root of the mean variance over the root of the means' variance (over channels and cells).
    """
    return (logvar.exp().flatten(1).mean(1) / mean.flatten(1).var(1).clamp_min(_FLOOR)).sqrt()


def variance_expansion(mean: Tensor, logvar: Tensor, relative: bool) -> Tensor:
    """Computes the mean of 1 / (σ² + δ), which keeps the variance from collapsing (arXiv 2603.21085).

    Args:
        mean: (b, C, …) means.
        logvar: (b, C, …) log variances.
        relative: take σ² relative to the variance of the image's own mean latents; scaling means and
            deviations alike then changes nothing, so that no guard of the scale is needed.

    Returns:
        (b,).
    """
    variance = logvar.exp().flatten(1)
    if relative:
        variance = variance / mean.flatten(1).var(1, keepdim=True).clamp_min(_FLOOR)
    return (1 / (variance + _EXPANSION_FLOOR)).mean(1)


def scaled_noise(z: Tensor, keys: BatchKeys, stream: str) -> Tensor:
    """Draws normal noise (b, C, …) of the standard deviation of each image's own latents."""
    noise = normal(tuple(z.shape[1:]), keys, stream=stream, device=z.device)
    return z.detach().float().std(tuple(range(1, z.ndim)), keepdim=True) * noise


def with_latent_noise(z: Tensor, keys: BatchKeys, largest: float) -> Tensor:
    """Adds normal noise to latents; each image draws its size evenly from [0, largest] (arXiv 2510.11690).

    Args:
        z: (b, C, …) latents.
        keys: what determines the noise.
        largest: standard deviation, as a share of that of an image's own latents; 0: no noise.
    """
    if largest == 0:
        return z
    share = uniform((1,) * (z.ndim - 1), keys, stream="latent noise share", device=z.device)
    return z + (largest * share * scaled_noise(z, keys, "latent noise")).to(z.dtype)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Computes as the tensors are; those without values, on which work is counted, know no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def scale_guard(z: Tensor) -> Tensor:
    """Computes the mean of exp(|z| − 1) over latents (b, C, …), (b,): against large ones (2603.21085)."""
    return (z.abs() - 1).exp().flatten(1).mean(1)


# ------------------------------------------------------------------------------------------- spectrum


def spectrum_kl(images: Tensor, latents: Tensor) -> Tensor:
    """Computes KL(image ‖ latent) of radial DCT spectra, the image's times its frequency (SpectrumMatching).

    A spectrum is the power of an orthonormal 2-D DCT, averaged over channels and, the constant left out, over
    16 rings of equal width up to the corner; it is normalised to sum 1. Rings without a coefficient on the
    latents' grid are left out of both.

    Args:
        images: (b, 3, H, W).
        latents: (b, C, h, w).

    Returns:
        (b,), in nats.
    """
    (image, of_image), (latent, of_latent) = _radial_spectrum(images), _radial_spectrum(latents)
    frequency = (torch.arange(_SPECTRUM_BINS, device=images.device) + 0.5) / _SPECTRUM_BINS
    rings = (of_image & of_latent).nonzero().flatten().to(images.device)
    p, q = (
        F.normalize(power.index_select(1, rings) + _FLOOR, p=1, dim=1)
        for power in (image * frequency, latent)
    )
    return F.kl_div(q.log(), p, reduction="none").sum(1)


def _radial_spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean power of each ring, (b, K), and which rings have coefficients, (K,)."""
    height, width = x.shape[2:]
    with _no_autocast(x):
        rows, columns = (_dct(n).to(x.device) for n in (height, width))
        power = (rows @ x.float() @ columns.T).square().mean(1)  # (b, h, w)
        means, present = _rings(height, width)
        return power.flatten(1) @ means.to(x.device), present


@cache
def _dct(n: int) -> Tensor:
    """Returns the orthonormal DCT-II as a matrix (frequency, place), on the CPU."""
    k, place = torch.arange(n, device="cpu")[:, None], torch.arange(n, device="cpu") + 0.5
    matrix = (math.pi * k * place / n).cos() * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


@cache
def _rings(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns the matrix (h·w, K) that averages over each ring, and which rings there are (K,)."""
    v, u = torch.arange(height, device="cpu") / height, torch.arange(width, device="cpu") / width
    radius = ((v[:, None].square() + u.square()) / 2).sqrt().flatten()
    member = F.one_hot((radius * _SPECTRUM_BINS).long(), _SPECTRUM_BINS).float()
    member[0] = 0  # the constant
    count = member.sum(0)
    return member / count.clamp_min(1), count > 0


# ------------------------------------------------------------------------------------------- alignment


def alignment(latents: Tensor, projected: Tensor, features: Tensor) -> Tensor:
    """Computes VA-VAE's alignment with a frozen network's features (arXiv 2501.01423, equations 3 to 5).

    relu(1 − m1 − cos(f, Wz)), averaged over cells, plus relu(|cos(z_i, z_j) − cos(f_i, f_j)| − m2), averaged
    over pairs of cells of an image.

    Args:
        latents: (b, C, N) z.
        projected: (b, F, N) Wz.
        features: (b, F, N) f.

    Returns:
        (b,).
    """
    near = F.relu(1 - _COSINE_MARGIN - F.cosine_similarity(projected, features, dim=1)).mean(1)
    z, f = (F.normalize(x, dim=1) for x in (latents, features))
    with _no_autocast(latents):
        apart = (z.mT @ z - f.mT @ f).abs()  # (b, N, N)
    return near + F.relu(apart - _DISTANCE_MARGIN).mean((1, 2))


# ---------------------------------------------------------------------------------------- equivariance

Transform = Callable[[Tensor, int], Tensor]
"""Applied to x (b, …, h·p, w·p), with p pixels a latent cell: 1 for latents."""


def draw_transform(
    keys: BatchKeys, probability: float, grid: tuple[int, int], least_cells: int
) -> Transform | None:
    """Draws τ of EQ-VAE (arXiv 2502.09509) for a step: a scaling, a quarter turn, or none.

    The draw belongs to the step, so that all pieces of its batch keep one shape.

    Args:
        keys: of the piece; only seed and step count.
        probability: that there is a τ.
        grid: (h, w).
        least_cells: along a side, that scaling leaves; the scale is drawn from [¼, 1] or what is left of it.
    """
    taken, kind, amount = uniforms(3, keys.seed, "equivariance", keys.step)
    if taken >= probability:
        return None
    if kind < 0.5:
        return partial(_turned, turns=1 + int(3 * amount))
    least = min(1.0, max(_LEAST_SCALE, least_cells / min(grid)))
    scale = least + (1 - least) * amount
    height, width = (max(1, round(side * scale)) for side in grid)
    return partial(_scaled, cells=(height, width))


def _turned(x: Tensor, cell: int, turns: int) -> Tensor:
    return x.rot90(turns, (-2, -1))


def _scaled(x: Tensor, cell: int, cells: tuple[int, int]) -> Tensor:
    # as matrix products: the gradient of an interpolation is not deterministic on CUDA
    with _no_autocast(x):
        rows, columns = (
            _resampling(before, after * cell).to(x.device)
            for before, after in zip(x.shape[-2:], cells, strict=True)
        )
        return rows @ x.float() @ columns.T


@cache
def _resampling(before: int, after: int) -> Tensor:
    """Returns antialiased bilinear resampling as a matrix (after, before), on the CPU."""
    identity = torch.eye(before, device="cpu")[None, None]
    return F.interpolate(identity, (after, before), mode="bilinear", antialias=True)[0, 0]
