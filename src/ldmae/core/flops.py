"""Floating-point operations, counted by running a model, on a device without memory where that works."""

# B batch, C latent channels, h w latent grid

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldmae.core.autoencoding import decode, encode_moments, placement


def count_flops(work: Callable[[], object]) -> int:
    """Counts the operations of a piece of work by torch's counter, a multiply-add as 2.

    Counted are matrix products, convolutions and attention, however it is computed; not counted is what works
    element by element (norms, activations, softmax), some hundredths of the whole.
    """
    counter = FlopCounterMode(display=False)
    # fused attention kernels differ by device, and the counter knows not all of them: products it knows
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


@dataclass(frozen=True)
class _AutoencoderFlops:
    """Operations for one image, a multiply-add counting 2."""

    encode: int
    decode: int

    @property
    def total(self) -> int:
        """Of both."""
        return self.encode + self.decode


@torch.no_grad()
def count_autoencoder_flops(autoencoder: Any, size: int) -> _AutoencoderFlops:
    """Counts what it takes to encode one image of `size` × `size` pixels, and to decode its latent.

    A copy runs on torch's meta device, without memory or arithmetic; one that cannot is run where it is.
    """
    if isinstance(autoencoder, nn.Module):
        try:
            return _count(copy.deepcopy(autoencoder).to("meta"), size)
        except (RuntimeError, TypeError, ValueError):  # its code looks at values, which meta tensors lack
            pass
    return _count(autoencoder, size)


def _count(autoencoder: Any, size: int) -> _AutoencoderFlops:
    device, _ = placement(autoencoder)
    images = torch.zeros(1, 3, size, size, device=device)
    latents: list[torch.Tensor] = []
    encoding = count_flops(lambda: latents.append(encode_moments(autoencoder, images)[0]))
    return _AutoencoderFlops(encoding, count_flops(lambda: decode(autoencoder, latents[0])))
