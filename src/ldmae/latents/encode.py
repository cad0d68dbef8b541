"""Encodes every training image once, and once mirrored, into safetensors shards."""

# n images of a shard, C latent channels, h w latent grid

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from ldmae.core.autoencoding import encode_moments
from ldmae.core.errors import UserError, loading_errors
from ldmae.core.files import atomic_path
from ldmae.latents.settings import LatentsConfig
from ldmae.latents.shards import read_header


def shard_name(rank: int, shard: int) -> str:
    """Returns the file name that LightningDiT and its kin read, in the order of the images."""
    return f"latents_rank{rank:02d}_shard{shard:03d}.safetensors"


def shard_ranges(length: int, rank: int, world: int, shard_size: int) -> list[range]:
    """Returns the images of each shard of a process: contiguous, so that sorted names keep their order."""
    first, last = rank * length // world, (rank + 1) * length // world
    return [range(start, min(last, start + shard_size)) for start in range(first, last, shard_size)]


@torch.no_grad()
@loading_errors()
def encode_images(
    autoencoder: Any,
    dataset: Dataset[Any],
    folder: Path,
    config: LatentsConfig,
    fingerprint: str,
    *,
    rank: int = 0,
    world: int = 1,
    advance: Callable[[int, str], None] = lambda n, note: None,
) -> None:
    """Writes this process's shards; one that is whole and bears the fingerprint is not made again.

    Args:
        autoencoder: encodes (B, 3, H, W) in [-1, 1], in the precision of its weights, without autocast: what
            is kept is what is measured.
        dataset: `dataset[(0, index)]` gives `images` (3, H, W) and `labels` (), without augmentation.
        folder: where the shards go; it holds no other `.safetensors`.
        config: format and sizes.
        fingerprint: of the autoencoder's encoder and of the preprocessing; written into each shard.
        rank: this process.
        world: how many processes share the work.
        advance: called with the number of images done.
    """
    length = len(dataset)  # pyright: ignore[reportArgumentType]
    for shard, images in enumerate(shard_ranges(length, rank, world, config.shard_size)):
        path = folder / shard_name(rank, shard)
        if path.exists() and read_header(path).metadata.get("fingerprint") == fingerprint:
            advance(len(images), "")
            continue
        tensors: dict[str, Tensor] = {}
        keys = Subset(_Unaugmented(dataset), images)
        loader = DataLoader(
            keys, config.batch_size, num_workers=config.num_workers, collate_fn=default_collate
        )
        done = 0
        for batch in loader:
            places = images[done : done + len(batch["labels"])]
            rows = _encoded(autoencoder, batch, config, _names(dataset, places))
            for name, part in rows.items():  # filled in place: a list and its concatenation would be twice it
                if name not in tensors:
                    tensors[name] = part.new_empty(len(images), *part.shape[1:])
                tensors[name][done : done + len(part)] = part
            done += len(rows["labels"])
            advance(len(rows["labels"]), "")
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"fingerprint": fingerprint, "format": "pt"})


@torch.no_grad()
@loading_errors()
def encode_stream(
    autoencoder: Any,
    dataset: IterableDataset[Any],
    folder: Path,
    config: LatentsConfig,
    fingerprint: str,
    *,
    rank: int = 0,
    advance: Callable[[int, str], None] = lambda n, note: None,
) -> None:
    """Writes shards of one epoch of a stream; begins anew after an interruption.

    Args:
        autoencoder: encodes (B, 3, H, W) in [-1, 1], in the precision of its weights, without autocast: what
            is kept is what is measured.
        dataset: yields `images` (3, H, W) and `labels` () of this process's share, without augmentation.
        folder: where the shards go.
        config: format and sizes.
        fingerprint: of the autoencoder's encoder and of the preprocessing.
        rank: this process.
        advance: called with the number of images done.

    Raises:
        UserError: the stream gave no image.
    """
    parts: list[dict[str, Tensor]] = []
    shard = held = seen = 0

    def write() -> None:
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        with atomic_path(folder / shard_name(rank, shard)) as temporary:
            save_file(tensors, temporary, metadata={"fingerprint": fingerprint, "format": "pt"})

    for batch in DataLoader(dataset, config.batch_size, num_workers=config.num_workers):
        parts.append(_encoded(autoencoder, batch, config, f"image {{}} after {seen} of the stream".format))
        seen += len(parts[-1]["labels"])
        held += len(parts[-1]["labels"])
        advance(len(parts[-1]["labels"]), "")
        if held >= config.shard_size:
            write()
            parts, held, shard = [], 0, shard + 1
    if parts:
        write()
    elif not shard:
        raise UserError("the stream gave no image to encode; check its address")


def _names(dataset: Any, places: Sequence[int]) -> Callable[[int], str]:
    """Returns what an error message calls an image, by its row in the batch."""
    describe = dataset.source.describe if hasattr(dataset, "source") else "image {}".format
    return lambda row: describe(places[row])


def _encoded(
    autoencoder: Any, batch: dict[str, Tensor], config: LatentsConfig, describe: Callable[[int], str]
) -> dict[str, Tensor]:
    """Returns a batch as it is kept, the images once and once mirrored."""
    pixels = batch["images"]
    rows = {"labels": batch["labels"], "latents": _stored(autoencoder, pixels, config, describe)}
    if config.flip:
        rows["latents_flip"] = _stored(autoencoder, pixels.flip(-1), config, describe)
    return rows


def _stored(
    autoencoder: Any, pixels: Tensor, config: LatentsConfig, describe: Callable[[int], str]
) -> Tensor:
    """Returns what is kept of each image: (n, 2C, h, w) moments, or the mean (n, C, h, w)."""
    mean, logvar = encode_moments(autoencoder, pixels, describe)
    keep = torch.cat([mean, logvar], dim=1) if config.moments and logvar is not None else mean
    stored = keep.to("cpu", getattr(torch, config.dtype))
    if not stored.isfinite().all() and keep.isfinite().all():
        raise UserError(
            f"latents of up to {keep.abs().max().item():.3g} do not fit latents.dtype={config.dtype}; give "
            "latents.dtype=float32"
        )
    return stored


class _Unaugmented(Dataset[Any]):
    """Gives the images by index alone."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> Any:
        return self.dataset[(0, index)]
