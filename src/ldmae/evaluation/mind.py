"""MIND: how far two sets of features lie apart on random lines, which few images tell well."""

# n images of each set, D features, M directions

from __future__ import annotations

import torch
from torch import Tensor

from ldmae.core.errors import UserError
from ldmae.core.random import generator

DIRECTIONS = 1000
"""M, the random directions."""

AT_ONCE = 100
"""Directions at a time; bounds the memory, not the result."""


def mind(
    features_a: Tensor, features_b: Tensor, directions: int = DIRECTIONS, seed: int = 0
) -> tuple[float, float]:
    """Computes the Monge distance on features, MIND.

    It is 3 D / (n M) · Σ_m ‖sort(A u_m) − sort(B u_m)‖², with random unit directions u_m: D times three times
    the mean squared distance of the optimal transport along a line. As a Fréchet distance it is above 0 for
    two samples of one distribution, the more so the fewer the images: compare at equal n, beside its floor.

    Args:
        features_a: (n, D) features of one set, in any order.
        features_b: (n, D) features of the other.
        directions: M.
        seed: of the directions.

    Returns:
        The distance, and its standard error over the directions.

    Raises:
        UserError: the sets differ in size, or are empty.
    """
    if len(features_a) != len(features_b) or not len(features_a):
        raise UserError(
            f"MIND compares sets of equal size, got {len(features_a)} and {len(features_b)}; draw as many of "
            "each"
        )
    n, dimensions = features_a.shape
    u = torch.randn(dimensions, directions, generator=generator(seed, "MIND"), dtype=torch.float64)
    u = u / u.norm(dim=0)
    a, b = features_a.cpu().double(), features_b.cpu().double()
    squares = [
        ((a @ some).sort(dim=0).values - (b @ some).sort(dim=0).values).square().sum(dim=0)  # (AT_ONCE,)
        for some in u.split(AT_ONCE, dim=1)
    ]
    each = torch.cat(squares) * (3 * dimensions / n)  # (M,), whose mean is MIND
    return float(each.mean()), float(each.std()) / directions**0.5 if directions > 1 else float("nan")
