"""iFID: whether what lies between latents decodes to images, a forecast of generation without a generator.

For each held-out image one of its nearest training latents is drawn, the point halfway between both is
decoded, and the decoded images are compared with the held-out ones as two sets (arXiv 2603.05630).
"""

# B batch, N training images, C latent channels, h w latent grid, D = C · h · w, k neighbours

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldmae.core.random import generator

NEIGHBOURS = 10
"""k, the paper's."""

PARALLEL = 1e-6
"""Below this sine of the angle, slerp is linear."""


def nearest_latents(
    latents: Tensor, training: Tensor, neighbours: int = NEIGHBOURS, own: Tensor | None = None
) -> Tensor:
    """Returns the training latents nearest by cosine over the whole flattened latent, (B, k) int64.

    Args:
        latents: (B, C, h, w).
        training: (N, C, h, w).
        neighbours: k; fewer where there are fewer training latents.
        own: (B,) the index among the training latents that is the image itself, which is none of its
            neighbours; -1 where there is none.
    """
    ours, theirs = (torch.nn.functional.normalize(z.flatten(1).float(), dim=1) for z in (latents, training))
    cosines = ours @ theirs.T  # (B, N)
    if own is not None:
        cosines[torch.arange(len(training)) == own[:, None]] = -torch.inf
    return cosines.topk(min(neighbours, len(training) - (own is not None)), dim=1).indices


def choose_neighbours(
    latents: Tensor, training: Tensor, nearest: Tensor, keys: Sequence[str], seed: int = 0
) -> Tensor:
    """Draws one neighbour for each latent, with probability softmax(−mean squared difference).

    Args:
        latents: (B, C, h, w).
        training: (N, C, h, w).
        nearest: (B, k) indices of training latents.
        keys: (B) what identifies each image; its draw hangs on it alone.
        seed: of the draws.

    Returns:
        (B,) indices of training latents.
    """
    squares = (training[nearest].flatten(2) - latents.flatten(1)[:, None]).square().mean(dim=2)  # (B, k)
    cumulative = torch.softmax(-squares.double(), dim=1).cumsum(dim=1)
    draws = [torch.rand((), generator=generator(seed, "iFID", key), dtype=torch.float64) for key in keys]
    places = torch.searchsorted(cumulative, torch.stack(draws)[:, None]).clamp(max=nearest.shape[1] - 1)
    return nearest.gather(1, places)[:, 0]


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Interpolates latents (B, C, h, w) on the arc between their directions; lengths follow.

    sin((1 − t) θ) / sin θ · z₁ + sin(t θ) / sin θ · z₂ with θ the angle between the flattened latents; linear
    where sin θ < 1e-6.
    """
    units = [torch.nn.functional.normalize(z.flatten(1).double(), dim=1) for z in (first, second)]
    angle = (units[0] * units[1]).sum(dim=1).clamp(-1, 1).acos()  # (B,)
    sine = angle.sin()
    straight = sine < PARALLEL
    safe = torch.where(straight, torch.ones_like(sine), sine)
    weights = [
        torch.where(straight, torch.full_like(sine, linear), (linear * angle).sin() / safe)
        for linear in (1 - t, t)
    ]
    shape = (-1, *[1] * (first.ndim - 1))
    one, other = (w.view(shape).to(first.dtype) for w in weights)
    return one * first + other * second
