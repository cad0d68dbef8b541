"""Encodes every training image once, and once mirrored, into safetensors shards."""

# n images of a shard, C latent channels, h w latent grid

import collections
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ldmae.config.data import LatentsConfig
from ldmae.core.autoencoding import encode_moments, placement
from ldmae.core.device import finished
from ldmae.core.errors import UserError, loading_errors
from ldmae.core.files import atomic_path
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
        dataset: `dataset[(0, index)]`, without augmentation; a batch, finished on the device, has `images`
            (B, 3, H, W) and `labels` (B,).
        folder: where the shards go; it holds no other `.safetensors`.
        config: format and sizes.
        fingerprint: of the autoencoder's encoder and of the preprocessing; written into each shard.
        rank: this process.
        world: how many processes share the work.
        advance: called with the number of images done.
    """
    length = len(dataset)  # pyright: ignore[reportArgumentType]
    size, missing = config.batch_size, []  # each shard with its batches
    for shard, images in enumerate(shard_ranges(length, rank, world, config.shard_size)):
        path = folder / shard_name(rank, shard)
        if path.exists() and read_header(path).metadata.get("fingerprint") == fingerprint:
            advance(len(images), "")
        else:
            missing.append((path, [images[k : k + size] for k in range(0, len(images), size)]))
    keys = ([(0, place) for place in batch] for _, batches in missing for batch in batches)
    # one loader for all shards, so that it loads on while the end of a shard is written
    loaded = iter(_loader(dataset, config, autoencoder, batch_sampler=keys))
    for path, batches in missing:
        rows = (
            _encoded(autoencoder, dataset, next(loaded), config, _names(dataset, places))
            for places in batches
        )
        _write_shard(path, sum(map(len, batches)), fingerprint, rows, advance)


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
    """Writes shards of one epoch of a stream, of which the dataset yields this process's share.

    It begins again after an interruption; the arguments are those of `encode_images`.

    Raises:
        UserError: the stream gave no image.
    """
    parts: list[dict[str, Tensor]] = []
    shard = held = seen = 0
    for batch in _loader(dataset, config, autoencoder, batch_size=config.batch_size):
        describe = f"image {{}} after {seen} of the stream".format
        part = _encoded(autoencoder, dataset, batch, config, describe)
        parts.append({name: rows.cpu() for name, rows in part.items()})
        held += len(part["labels"])
        seen += len(part["labels"])
        advance(len(part["labels"]), "")
        if held >= config.shard_size:
            _write_shard(folder / shard_name(rank, shard), held, fingerprint, parts)
            parts, held, shard = [], 0, shard + 1
    if parts:
        _write_shard(folder / shard_name(rank, shard), held, fingerprint, parts)
    elif not shard:
        raise UserError("the stream gave no image to encode; check its address")


def _loader(dataset: Dataset[Any], config: LatentsConfig, model: Any, **batches: Any) -> DataLoader[Any]:
    pinned = placement(model)[0].type == "cuda"
    return DataLoader(dataset, num_workers=config.num_workers, pin_memory=pinned, **batches)


def _write_shard(
    path: Path,
    count: int,
    fingerprint: str,
    parts: Iterable[dict[str, Tensor]],
    advance: Callable[[int, str], None] = lambda n, note: None,
) -> None:
    """Writes a safetensors file batch by batch in a thread, while the device computes the next batch.

    The batches are on any device, in order; the file of `count` images appears once it is whole.
    """
    done, pending = 0, collections.deque[Future[None]]()
    with atomic_path(path) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(1) as pool:
        places: dict[str, int] = {}
        for part in parts:
            if not places:
                places = _write_head(file, part, count, fingerprint)
            pending.append(pool.submit(_write_rows, file, places, done, part))
            if len(pending) > 2:  # batches that wait take memory
                pending.popleft().result()
            done += len(part["labels"])
            advance(len(part["labels"]), "")
        for written in pending:
            written.result()
        assert done == count, f"{done} of {count} rows"


def _write_head(file: BinaryIO, part: dict[str, Tensor], count: int, fingerprint: str) -> dict[str, int]:
    """Writes the head of a safetensors file for `count` rows such as `part` has; returns offsets by name."""
    head: dict[str, Any] = {"__metadata__": {"fingerprint": fingerprint, "format": "pt"}}
    places, end = {}, 0
    # the widest first, so that all are aligned, as the library writes them
    for name in sorted(part, key=lambda name: (-part[name].element_size(), name)):
        rows, begin = part[name], end
        end += count * rows[0].numel() * rows.element_size()
        shape = [count, *rows.shape[1:]]
        head[name] = {"dtype": _CODES[rows.dtype], "shape": shape, "data_offsets": [begin, end]}
        places[name] = begin
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + begin for name, begin in places.items()}


_CODES = {torch.int64: "I64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _write_rows(file: BinaryIO, places: dict[str, int], done: int, part: dict[str, Tensor]) -> None:
    for name, rows in part.items():
        stored = rows.cpu().contiguous()  # waits for the device here, in the writing thread
        file.seek(places[name] + done * stored[0].nbytes)
        file.write(stored.view(torch.uint8).numpy().data)


def _names(dataset: Any, places: Sequence[int]) -> Callable[[int], str]:
    """Returns what an error message calls an image, by its row in the batch."""
    describe = dataset.source.describe if hasattr(dataset, "source") else "image {}".format
    return lambda row: describe(places[row])


def _encoded(
    autoencoder: Any,
    dataset: Any,
    batch: dict[str, Tensor],
    config: LatentsConfig,
    describe: Callable[[int], str],
) -> dict[str, Tensor]:
    """Returns a batch as it is kept, the images once and once mirrored."""
    batch = finished(dataset, batch, placement(autoencoder)[0])
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
    stored = keep.to(getattr(torch, config.dtype))
    if not stored.isfinite().all() and keep.isfinite().all():
        raise UserError(
            f"latents of up to {keep.abs().max().item():.3g} do not fit latents.dtype={config.dtype}; give "
            "latents.dtype=float32"
        )
    return stored
