"""Reads shards of latents in LightningDiT's layout: memory-mapped, opened once, nothing held per item."""

# N latents over all shards, C latent channels, h w latent grid

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldmae.core.device import moved
from ldmae.core.errors import UserError
from ldmae.core.random import key_seed

_NAMES = {"latents", "latents_flip", "labels"}
_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4"}


@dataclass(frozen=True)
class _ShardHeader:
    """What stands at the head of a safetensors file."""

    tensors: dict[str, tuple[str, tuple[int, ...], int]]
    """By name: number format, shape, offset of the first byte in the file."""
    metadata: dict[str, str]


def read_header(path: Path) -> _ShardHeader:
    """Reads the head of a safetensors file.

    Raises:
        UserError: the file is no safetensors file, or is cut short.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= 100_000_000:
                raise ValueError(f"head of {length} bytes")
            header = json.loads(file.read(length))
        metadata = dict(header.pop("__metadata__", {}))
        tensors = {name: _entry(name, entry, 8 + length) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if path.stat().st_size < 8 + length + end:
            raise ValueError("the file is cut short")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({error}); delete it and encode again"
        ) from error
    return _ShardHeader(tensors, metadata)


def _entry(name: str, entry: Any, start: int) -> tuple[str, tuple[int, ...], int]:
    """Returns a tensor's number format, shape and first byte in the file, as its head's entry says."""
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has no shape or place")
    size = np.dtype(_NUMPY[dtype]).itemsize if dtype in _NUMPY else None
    if size is not None and math.prod(shape) * size != end - begin:
        raise ValueError(f"{name} of shape {shape} does not fill its place")
    return dtype, shape, start + begin


class LatentShards:
    """All shards of a folder as one array of N latents, read by index.

    Args:
        folder: holds `latents_rank*_shard*.safetensors` with `latents`, `labels` and maybe `latents_flip`.

    Raises:
        UserError: there are no shards, or they do not match one another.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        # by number, for rank 100 comes after rank 11; hidden files are still being written
        found = (path for path in self.folder.glob("*.safetensors") if not path.name.startswith("."))
        self.paths = sorted(
            found, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)]
        )
        if not self.paths:
            raise UserError(f"no latents in {self.folder}; make them with `ldmae encode`")
        headers = [read_header(path) for path in self.paths]
        for path, header in zip(self.paths, headers, strict=True):
            _check_layout(path, header.tensors)
        shapes = {(header.tensors["latents"][0], *header.tensors["latents"][1][1:]) for header in headers}
        flips = {"latents_flip" in header.tensors for header in headers}
        if len(shapes) > 1 or len(flips) > 1:
            raise UserError(
                f"the shards of {self.folder} differ in number format, shape or flips: {sorted(shapes)}; "
                "encode again"
            )
        self.dtype, *shape = shapes.pop()
        self.shape: tuple[int, ...] = tuple(shape)
        self.has_flips = flips.pop()
        self.fingerprints = {header.metadata.get("fingerprint") for header in headers}
        self._headers = headers
        self._ends = np.cumsum([header.tensors["latents"][1][0] for header in headers])
        self._maps: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}  # a map is opened by the process that reads it

    def labels(self) -> np.ndarray:
        """Returns the (N,) class labels."""
        return np.concatenate([self._arrays(shard)["labels"] for shard in range(len(self.paths))])

    def read(self, index: int, flip: bool = False) -> Tensor:
        """Returns one stored latent, (C, h, w) or moments (2C, h, w), as float32."""
        return self.rows(np.array([index]), np.array([flip]))[0].float()

    def rows(self, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """Returns stored latents, (B, C, h, w) or moments (B, 2C, h, w), as they are stored; copied once.

        Both `indices` and `flips`, which are those of the mirror image, are (B,).

        Raises:
            IndexError: an index is not in [0, N).
        """
        outside = (indices < 0) | (indices >= len(self))
        if outside.any():
            raise IndexError(f"no latent {indices[outside][0]} among the {len(self)} of {self.folder}")
        out = np.empty((len(indices), *self.shape), _NUMPY[self.dtype])
        places = np.searchsorted(self._ends, indices, side="right")
        starts = np.concatenate([[0], self._ends])[places]
        for row, shard, place, flip in zip(out, places, indices - starts, flips, strict=True):
            row[:] = self._arrays(int(shard))["latents_flip" if flip else "latents"][place]
        stored = torch.from_numpy(out)
        return stored.view(torch.bfloat16) if self.dtype == "BF16" else stored

    def _arrays(self, shard: int) -> dict[str, np.ndarray]:
        """Returns a shard's tensors as views of its one memory map."""
        if shard not in self._maps:
            whole = np.memmap(self.paths[shard], np.uint8, "r")
            self._maps[shard] = {
                name: np.ndarray(shape, _NUMPY[dtype], whole, offset)
                for name, (dtype, shape, offset) in self._headers[shard].tensors.items()
                if name in _NAMES
            }
        return self._maps[shard]


def _check_layout(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> None:
    lacking = {"latents", "labels"} - set(tensors)
    if lacking:
        raise UserError(
            f"{path} lacks {sorted(lacking)}; expected shards of latents in LightningDiT's layout"
        )
    for name in _NAMES & set(tensors):
        dtype, shape, _ = tensors[name]
        expected = tensors["latents"][1][: 1 if name == "labels" else 4]
        known = ("I64", "I32") if name == "labels" else tuple(_NUMPY)
        if shape != expected or dtype not in known or len(shape) not in (1, 4):
            raise UserError(
                f"{path}: {name} is {dtype} of shape {list(shape)}, expected {list(expected)} in one of "
                f"{', '.join(known)}, with latents of (N, C, h, w) and labels of (N,); encode again"
            )


class LatentDataset(Dataset[dict[str, Tensor]]):
    """Latents as the diffusion model learns them: drawn from the posterior, normalised, with their class.

    A loading process reads `stored` latents or moments; `finish` makes of a batch of them, on the device,
    `latents` (B, C, h, w). The mirror image and the draw are keyed by (seed, epoch, index).

    Args:
        shards: where they are read.
        channels: C; shards that store 2C hold moments.
        mean: (C, 1, 1) to subtract.
        std: (C, 1, 1) to divide by.
        seed: of the draws.
        keep: the indices to use (those that have a class); None: all.

    Raises:
        UserError: the shards or the statistics have other channels.
    """

    def __init__(
        self,
        shards: LatentShards,
        channels: int,
        mean: Tensor,
        std: Tensor,
        seed: int,
        keep: np.ndarray | None = None,
    ) -> None:
        if shards.shape[0] not in (channels, 2 * channels):
            raise UserError(
                f"the latents in {shards.folder} have {shards.shape[0]} channels, the autoencoder has "
                f"{channels} (or {2 * channels} with log variances); encode again, or name the right folder"
            )
        if len(mean) != channels or len(std) != channels:
            raise UserError(
                f"the statistics beside {shards.folder} are of {len(mean)} channels, the autoencoder has "
                f"{channels}; encode again, or name the right folder"
            )
        self.shards, self.channels, self.seed = shards, channels, seed
        self.mean, self.std = mean, std
        self.keep = np.arange(len(shards)) if keep is None else keep
        self.all_labels = shards.labels()
        self._sound = np.zeros((len(shards), 2), bool)  # which this process knows to be finite; mirrored

    def __len__(self) -> int:
        return len(self.keep)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Returns a batch as it is stored, collated: a loading process copies each latent once."""
        indices = self.keep[[place for _, place in keys]]
        seeds = [
            key_seed(self.seed, "latent", epoch, int(index))
            for (epoch, _), index in zip(keys, indices, strict=True)
        ]
        flips = np.array(seeds) % 2 == 1 if self.shards.has_flips else np.zeros(len(seeds), bool)
        stored = self.shards.rows(indices, flips)
        self._check(indices, flips, stored)
        labels = torch.from_numpy(self.all_labels[indices].astype(np.int64))
        return {"stored": stored, "seeds": torch.tensor(seeds), "labels": labels}

    def _check(self, indices: np.ndarray, flips: np.ndarray, stored: Tensor) -> None:
        """Raises for a latent that is not finite, for which a training would blame its learning rate."""
        for row in np.flatnonzero(~self._sound[indices, flips.astype(int)]).tolist():
            if not stored[row].isfinite().all():
                raise UserError(
                    f"latent {indices[row]} in {self.shards.folder} is NaN or infinite; encode again, with "
                    "an autoencoder that has valid weights"
                )
        self._sound[indices, flips.astype(int)] = True

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what `__getitems__` gave, which is a batch."""
        return batch

    def finish(self, batch: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
        """Moves a batch to its device, and there draws and normalises `latents` (B, C, h, w), float32."""
        seeds = batch.pop("seeds").tolist()
        batch = moved(batch, device)
        source = torch.Generator(device)
        drawn = [
            draw_latent(stored, self.channels, source.manual_seed(seed))
            for stored, seed in zip(batch["stored"].float(), seeds, strict=True)
        ]
        mean, std = self.mean.to(device), self.std.to(device)
        return {"latents": (torch.stack(drawn) - mean) / std, "labels": batch["labels"]}


def draw_latent(stored: Tensor, channels: int, source: torch.Generator) -> Tensor:
    """Draws z (C, h, w) from stored moments (2C, h, w); a stored mean (C, h, w) is returned as it is."""
    if stored.shape[0] == channels:
        return stored
    mean, logvar = stored.chunk(2)  # (C, h, w) each
    return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=source, device=mean.device)
