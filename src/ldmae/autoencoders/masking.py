"""Which patches the encoder sees."""

# b rows of this piece, N tokens, V visible tokens

from __future__ import annotations

import torch
from torch import Tensor

from ldmae.config.autoencoder import MaskingConfig
from ldmae.contracts import BatchKeys
from ldmae.core.random import uniform, uniforms


def mask_share(keys: BatchKeys, config: MaskingConfig) -> float:
    """Returns the share that a step hides: the same for all pieces of its batch.

    With a range it is max(0, U(low, high)), as l-DeTok draws it (arXiv 2507.15856).
    """
    if config.ratio_range is None:
        return config.ratio
    (drawn,), (low, high) = uniforms(1, keys.seed, "mask share", keys.step), config.ratio_range
    return max(0.0, low + (high - low) * drawn)


def num_visible(num_tokens: int, ratio: float) -> int:
    """Returns how many of the tokens stay visible: the nearest whole number, at least one."""
    return max(1, round(num_tokens * (1 - ratio)))


def random_visible_indices(
    keys: BatchKeys, num_tokens: int, ratio: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Draws the visible places of each row by its key alone, (b, V) int64, each row in ascending order."""
    noise = uniform((num_tokens,), keys, stream="mask", device=device)  # (b, N)
    return noise.argsort(1)[:, : num_visible(num_tokens, ratio)].sort(1).values


def visible_mask(visible_indices: Tensor, num_tokens: int) -> Tensor:
    """Returns (b, N) booleans, true at the visible places (b, V)."""
    mask = torch.zeros(len(visible_indices), num_tokens, dtype=torch.bool, device=visible_indices.device)
    return mask.scatter(1, visible_indices, True)
