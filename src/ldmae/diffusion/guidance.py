"""Classifier-free guidance (arXiv 2207.12598) in an interval of time (arXiv 2404.07724)."""

# B batch, C latent channels, h w latent grid

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_TIME_ROUNDING = 1e-6
"""Times come as 1 - sigma in float32, so that a grid point at 0.1 may read 0.0999999."""


def guided_velocity(
    predict: Callable[[Tensor, float, Tensor], Tensor],
    latents: Tensor,
    t: float,
    class_labels: Tensor,
    *,
    null_class: int | None,
    scale: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
) -> Tensor:
    """Predicts the velocity at time t, in an interval of time moved away from the null class's.

    There it is v_null + scale · (v_class - v_null), and only there the batch is doubled.

    Args:
        predict: maps latents (B, C, h, w), a time and classes (B,) to velocities (B, C, h, w).
        latents: (B, C, h, w).
        t: time on the sampler's grid, after its shift.
        class_labels: (B,).
        null_class: the class that stands for none; may be None where the scale is 1.
        scale: of the guidance; 1 is none.
        interval: guidance acts at times from its first to its second number.
        channels: how many first channels are guided (the official sampler guides 3); None: all.
    """
    start, end = interval
    if scale == 1 or not start - _TIME_ROUNDING <= t <= end + _TIME_ROUNDING:
        return predict(latents, t, class_labels)
    assert null_class is not None, "guidance needs a null class"
    nulls = torch.full_like(class_labels, null_class)
    both = predict(torch.cat([latents, latents]), t, torch.cat([class_labels, nulls]))  # (2B, C, h, w)
    of_class, of_null = both.chunk(2)
    guided = of_null + scale * (of_class - of_null)
    return guided if channels is None else torch.cat([guided[:, :channels], of_class[:, channels:]], dim=1)
