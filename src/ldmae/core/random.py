"""Randomness keyed by progress: the same key gives the same numbers, whoever asks, in whatever order.

A run that was killed and resumed draws what the uninterrupted run draws, and neither the number of workers
nor of processes changes what a row of the batch sees.
"""

# b rows of this process in the batch

import hashlib
import struct

import torch
from torch import Tensor

from ldmae.contracts import BatchKeys


def key_seed(*key: int | str) -> int:
    """Returns the 63-bit seed that belongs to a key, such as `(seed, "order", epoch)`."""
    parts = tuple(part if isinstance(part, str) else int(part) for part in key)  # numpy's integers as ours
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """Returns a fresh generator on the CPU, seeded by the key."""
    return torch.Generator().manual_seed(key_seed(*key))


def uniforms(count: int, *key: int | str) -> list[float]:
    """Draws `count` numbers U[0, 1) that belong to a key; for a few, many times as fast as a generator."""
    parts = tuple(part if isinstance(part, str) else int(part) for part in key)
    digest = hashlib.shake_128(repr(parts).encode()).digest(8 * count)
    return [(number >> 11) * 2.0**-53 for number in struct.unpack(f"<{count}Q", digest)]


def _per_row(
    draw, shape: tuple[int, ...], keys: BatchKeys, stream: str, device: torch.device | str
) -> Tensor:
    out = torch.empty(len(keys.rows), *shape, device=device)
    if out.is_meta:  # counting costs, not computing
        return out
    source = torch.Generator(device)
    for i, row in enumerate(keys.rows):
        source.manual_seed(key_seed(keys.seed, stream, keys.step, row))
        draw(out[i], source)
    return out


def normal(
    shape: tuple[int, ...], keys: BatchKeys, stream: str, device: torch.device | str = "cpu"
) -> Tensor:
    """Draws N(0, 1) of (b, *shape), each row by (seed, stream, step, global row) alone."""
    return _per_row(lambda out, source: out.normal_(generator=source), shape, keys, stream, device)


def uniform(
    shape: tuple[int, ...], keys: BatchKeys, stream: str, device: torch.device | str = "cpu"
) -> Tensor:
    """Draws U[0, 1) of (b, *shape), each row by (seed, stream, step, global row) alone."""
    return _per_row(lambda out, source: out.uniform_(generator=source), shape, keys, stream, device)
