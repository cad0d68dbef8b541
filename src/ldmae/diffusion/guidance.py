"""Classifier-free guidance (arXiv 2207.12598) in an interval of time (arXiv 2404.07724)."""

# B batch, C latent channels, h w latent grid

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_TIME_ROUNDING = 1e-6
"""Times come as 1 - sigma in float32, so that a grid point at 0.1 may read 0.0999999."""


def guidance_is_active(t: float, scale: float, interval: tuple[float, float]) -> bool:
    """Says whether a step at time t is guided: the scale is not 1, and t lies in the closed interval."""
    start, end = interval
    return scale != 1 and start - _TIME_ROUNDING <= t <= end + _TIME_ROUNDING


def guide(of_class: Tensor, of_null: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """Moves velocities (B, C, h, w) away from the null class's: v_null + scale · (v_class - v_null).

    With `channels` only that many first channels are guided, the others keep `of_class` (the official sampler
    guides 3).
    """
    guided = of_null + scale * (of_class - of_null)
    if channels is None:
        return guided
    return torch.cat([guided[:, :channels], of_class[:, channels:]], dim=1)


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
    """Predicts the velocity at time t, guided where guidance is active; only there the batch is doubled.

    Args:
        predict: maps latents (B, C, h, w), a time and classes (B,) to velocities (B, C, h, w).
        latents: (B, C, h, w).
        t: time on the sampler's grid, after its shift.
        class_labels: (B,).
        null_class: the class that stands for none; may be None where the scale is 1.
        scale: of the guidance; 1 is none.
        interval: guidance acts at times from its first to its second number.
        channels: as in `guide`.
    """
    if not guidance_is_active(t, scale, interval):
        return predict(latents, t, class_labels)
    assert null_class is not None, "guidance needs a null class"
    nulls = torch.full_like(class_labels, null_class)
    both = predict(torch.cat([latents, latents]), t, torch.cat([class_labels, nulls]))  # (2B, C, h, w)
    return guide(*both.chunk(2), scale=scale, channels=channels)
