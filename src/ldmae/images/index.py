"""One look at every image before training: what is unreadable, what is held out, what looks alike."""

# N images, S signatures (each image's and its mirror image's)

import hashlib
import io
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.core.files import atomic_path, fingerprint
from ldmae.images.base import Subset, with_classes
from ldmae.images.sources import DataConfig, held_out_share, open_source
from ldmae.images.transforms import to_rgb

logger = logging.getLogger(__name__)

INDEX_VERSION = "1"
HASH_SIDE = 16
"""Side of the difference hash: 16 × 16 bits."""
THUMB_SIDE = 8
"""Side of the colour thumbnail that a match of hashes is verified on."""
MAX_HAMMING = 20
"""Bits of 256 in which near-duplicates may differ: most pictures saved again as JPEG of quality 60, or made
smaller by a third, stay below; pictures that are not alike differ in a hundred."""
MAX_THUMB_MEAN = 3.5
MAX_THUMB_PEAK = 20.0
"""Grey levels by which two thumbnails may differ, on average and anywhere: a mouth is a local difference."""
NEIGHBOURS = 6
"""How many followers in a sorted band each signature is compared with: the cost stays linear in N."""
NAMED = 5
"""How many unreadable images a message names."""
CHUNK = 32


@dataclass(frozen=True)
class Index:
    """What one look at every image of a source found; arrays only."""

    readable: np.ndarray
    """(N,) bool."""
    content: np.ndarray
    """(N,) uint64, hash of the file's bytes (0 where unreadable)."""
    group: np.ndarray
    """(N,) uint64, smallest content hash among the image's near-duplicates; it decides the side."""
    broken: list[str]
    """The first few unreadable images, each with its reason."""


def content_hash(content: bytes) -> int:
    """Returns a file's 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def is_held_out(hashed: int, share: float) -> bool:
    """Returns whether content with this hash is held out, where `share` of all is."""
    return hashed < share * 2**64


# ---- looking at one image


def _look(source: ImageSource, index: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Returns content hash, difference hash (32,) uint8, the mirror image's, thumbnail (8, 8, 3) uint8."""
    read_bytes = getattr(source, "read_bytes", None)
    if read_bytes is None:
        image = source.read(index)
        content = image.tobytes()
    else:
        content = read_bytes(index)
        image = Image.open(io.BytesIO(content))
        # JPEG decodes to an eighth several times as fast, and still reads to the file's end, so that a
        # truncated one is found
        image.draft("RGB", (4 * HASH_SIDE, 4 * HASH_SIDE))
        image = to_rgb(image)
    thumb = np.asarray(image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX))
    grey = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    values = np.asarray(grey).astype(np.int16)
    # a step of more than 2 levels, so that noise in flat areas sets no bits
    rising = values[:, 1:] - values[:, :-1] > 2
    falling = (values[:, :-1] - values[:, 1:] > 2)[:, ::-1]
    return content_hash(content), _pack(rising), _pack(falling), thumb


_ORDER = (
    np.arange(HASH_SIDE * HASH_SIDE).reshape(8, -1).T.ravel()
)  # each band takes bits from all over the picture


def _pack(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.ravel()[_ORDER])


def _look_at_chunk(source: ImageSource, start: int, stop: int, out: dict[str, np.ndarray]) -> list[str]:
    broken = []
    for k in range(start, stop):
        try:
            found = _look(source, k)
        except Exception as error:  # decoders raise whatever they like on broken files
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            broken.append(f"{source.describe(k)} ({reason})")
            continue
        out["content"][k], out["hash"][k], out["mirror"][k], out["thumb"][k] = found
        out["readable"][k] = True
    return broken


def _look_at_all(source: ImageSource, progress: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    count = len(source)
    out = {
        "readable": np.zeros(count, bool),
        "content": np.zeros(count, np.uint64),
        "hash": np.zeros((count, HASH_SIDE * HASH_SIDE // 8), np.uint8),
        "mirror": np.zeros((count, HASH_SIDE * HASH_SIDE // 8), np.uint8),
        "thumb": np.zeros((count, THUMB_SIDE, THUMB_SIDE, 3), np.uint8),
    }
    broken: list[str] = []
    # threads, not processes: Pillow decodes and hashlib hashes without the interpreter's lock, and nothing
    # is copied or forked
    workers = min(16, _cores())
    with ThreadPoolExecutor(workers) as pool, _Bar("checking images", count, progress) as bar:
        pending = []
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            pending.append((stop - start, pool.submit(_look_at_chunk, source, start, stop, out)))
            if len(pending) > 2 * workers:
                done, future = pending.pop(0)
                broken = (broken + future.result())[:NAMED]
                bar.advance(done)
        for done, future in pending:
            broken = (broken + future.result())[:NAMED]
            bar.advance(done)
    return out, broken


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Bar:
    """A progress bar with rate and remaining time, shown once the work takes over a second."""

    def __init__(self, title: str, total: int, enabled: bool):
        self._title, self._total, self._enabled = title, total, enabled
        self._done, self._start, self._bar = 0, time.monotonic(), None

    def __enter__(self) -> "_Bar":
        return self

    def advance(self, count: int) -> None:
        """Counts `count` more images as done."""
        self._done += count
        if self._enabled and self._bar is None and time.monotonic() - self._start > 1:
            self._bar = self._open()
        if self._bar is not None:
            elapsed = max(time.monotonic() - self._start, 1e-9)
            self._bar.update(self._task, completed=self._done, rate=f"{self._done / elapsed:,.0f} images/s")

    def _open(self):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._task = bar.add_task(self._title, total=self._total, rate="")
        bar.start()
        return bar

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


# ---- near-duplicates


def _near_pairs(
    hashes: np.ndarray, mirrors: np.ndarray, thumbs: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs of images that look alike, mirrored or not, by bands of their sorted difference hashes.

    Locality-sensitive hashing with eight bands of 32 bits; images that share a band lie side by side once
    the signatures are sorted by it, so each is compared with its next few followers only.
    """
    count = len(hashes)
    signatures = np.concatenate([hashes, mirrors])  # (S, 32); row k and row k + N are image k
    for band in range(8):
        rotated = np.ascontiguousarray(np.roll(signatures, -4 * band, axis=1))
        order = np.argsort(rotated.view(f"S{rotated.shape[1]}").ravel(), kind="stable")
        # one side mirrored at the most: two mirrored images are no other pair than the two as they lie
        for step in range(1, NEIGHBOURS + 1):
            left, right = order[:-step], order[step:]
            keep = (rotated[left, :4] == rotated[right, :4]).all(axis=1) & ((left < count) | (right < count))
            left, right = left[keep], right[keep]
            keep = _hamming(signatures[left], signatures[right]) <= MAX_HAMMING
            left, right = left[keep], right[keep]
            keep = _thumbs_agree(thumbs, left, right, count)
            yield left[keep] % count, right[keep] % count


_BITS = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


def _hamming(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return _BITS[left ^ right].sum(axis=1, dtype=np.int64)


def _thumbs_agree(thumbs: np.ndarray, left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    def as_seen(rows: np.ndarray) -> np.ndarray:
        seen = thumbs[rows % count].astype(np.int16)  # (pairs, 8, 8, 3)
        return np.where((rows >= count)[:, None, None, None], seen[:, :, ::-1], seen)

    agree = np.zeros(len(left), bool)
    for start in range(0, len(left), 65536):
        part = slice(start, start + 65536)
        difference = np.abs(as_seen(left[part]) - as_seen(right[part])).reshape(len(left[part]), -1)
        agree[part] = (difference.mean(axis=1) <= MAX_THUMB_MEAN) & (difference.max(axis=1) <= MAX_THUMB_PEAK)
    return agree


def _group(found: dict[str, np.ndarray]) -> np.ndarray:
    """Returns for every image the smallest content hash among its near-duplicates (and theirs)."""
    readable = np.flatnonzero(found["readable"])
    group = found["content"].copy()
    if len(readable) < 2:
        return group
    content = found["content"][readable]
    pairs = list(_near_pairs(found["hash"][readable], found["mirror"][readable], found["thumb"][readable]))
    order = np.argsort(content, kind="stable")
    same = content[order[:-1]] == content[order[1:]]  # exact duplicates, whatever the hashes' neighbours were
    pairs.append((order[:-1][same], order[1:][same]))
    left = np.concatenate([pair[0] for pair in pairs])
    right = np.concatenate([pair[1] for pair in pairs])
    edges = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(len(readable), len(readable)))
    parts, member = connected_components(edges, directed=False)
    smallest = np.full(parts, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, member, content)
    group[readable] = smallest[member]
    return group


# ---- the index and the split


def build_index(source: ImageSource, cache_dir: Path | None, progress: bool = True) -> Index:
    """Looks at every image once; the result is kept in `cache_dir`, keyed by the source's fingerprint.

    Args:
        source: any source with random access.
        cache_dir: where the index is kept, or None.
        progress: show a bar where it takes over a second.
    """
    cache = None
    if cache_dir is not None:
        key = fingerprint(("index", INDEX_VERSION, source.fingerprint()))
        cache = Path(cache_dir) / f"images-{key}.npz"
        if cache.exists():
            with np.load(cache) as stored:
                return Index(
                    stored["readable"],
                    stored["content"],
                    stored["group"],
                    [str(line) for line in stored["broken"]],
                )
    found, broken = _look_at_all(source, progress)
    index = Index(found["readable"], found["content"], _group(found), broken)
    if cache is not None:
        with atomic_path(cache) as temporary:
            np.savez(
                temporary,
                allow_pickle=False,
                readable=index.readable,
                content=index.content,
                group=index.group,
                broken=np.array(index.broken, dtype=str),
            )
    return index


def split_by_group(group: np.ndarray, share: float) -> np.ndarray:
    """Returns which images are held out, (N,) bool: whole groups, at least one image on either side.

    Args:
        group: (N,) uint64 hashes that decide.
        share: share to hold out, in (0, 1).

    Raises:
        UserError: fewer than two groups.
    """
    if len(group) < 2:
        raise UserError(
            f"{len(group)} usable images are too few to hold some out: expected 2 or more; add images, or "
            f"name held-out ones "
            "with data.val=PATH"
        )
    lowest, highest = group.min(), group.max()
    if lowest == highest:
        raise UserError(
            f"all {len(group)} images are near-duplicates of one another, so none can be held out; add "
            f"different ones, or "
            "name held-out ones with data.val=PATH"
        )
    held_out = group < np.uint64(min(int(share * 2**64), 2**64 - 1))
    if not held_out.any():
        held_out = group == lowest
    elif held_out.all():
        held_out = group != highest
    return held_out


def open_images(
    config: DataConfig, cache_dir: Path, progress: bool = True
) -> tuple[ImageSource, ImageSource]:
    """Opens the training images and the held-out images that `config` names, without the unreadable ones.

    Every image is looked at once (the next start reads the result from `cache_dir`). A share is drawn by a
    hash of each file's content: independent of seed, order and names, so adding or renaming files moves no
    other file; exact duplicates and near-duplicates (saved again, resized, mirrored) stay on one side. A
    source that knows its own split, such as `photos`, keeps it.

    Args:
        config: which images.
        cache_dir: where indexes are kept.
        progress: show a bar where it takes over a second.

    Raises:
        UserError: nothing there, too many unreadable images, too few images, or held-out classes that
            training lacks.
    """
    share = held_out_share(config.val)
    source = open_source(config, cache_dir)
    index = build_index(source, cache_dir, progress)
    usable = _usable(source, index, config)
    if share is not None:
        own = getattr(source, "held_out", None)
        held_out = split_by_group(index.group[usable], share) if own is None else own[usable]
        train, unseen = Subset(source, usable[~held_out]), Subset(source, usable[held_out])
    else:
        other = _open_val(config, source, cache_dir)
        val_usable = _usable(other, build_index(other, cache_dir, progress), config)
        train, unseen = Subset(source, usable), Subset(other, val_usable)
    train.unreadable = len(source) - len(usable)
    return train, unseen


def open_all_images(config: DataConfig, cache_dir: Path, progress: bool = True) -> ImageSource:
    """Opens all images of `data.source`, without the unreadable ones; none is held out.

    Args:
        config: which images.
        cache_dir: where indexes are kept.
        progress: show a bar where it takes over a second.

    Raises:
        UserError: nothing there, or too many unreadable images.
    """
    source = open_source(config, cache_dir)
    return Subset(source, _usable(source, build_index(source, cache_dir, progress), config))


def _open_val(config: DataConfig, source: ImageSource, cache_dir: Path) -> ImageSource:
    if config.val.startswith("split:"):
        named = replace(config, split=config.val.removeprefix("split:"), val="0.5", classes=None)
        if named.split == config.split:
            raise UserError(f"data.val={config.val} is the split that training uses; name another one")
    else:
        named = replace(config, source=config.val, val="0.5", classes=None)
    other = open_source(named, cache_dir)
    if len(source.classes) == 1 and len(other.classes) == 1:  # flat folders are named after themselves
        return Subset(other, np.arange(len(other)), classes=source.classes)
    return with_classes(other, source.classes, strict=config.classes is None)


def _usable(source: ImageSource, index: Index, config: DataConfig) -> np.ndarray:
    usable = np.flatnonzero(index.readable)
    unreadable = len(source) - len(usable)
    if not unreadable:
        return usable
    listed = "; ".join(index.broken) + (
        f"; and {unreadable - len(index.broken)} more" if unreadable > NAMED else ""
    )
    if unreadable > config.max_unreadable * len(source) or not len(usable):
        raise UserError(
            f"{unreadable} of the {len(source)} images of {source.name} are unreadable, more than "
            f"data.max_unreadable={config.max_unreadable:g} allows: {listed}. Mend or remove them, or set "
            f"data.max_unreadable={min(1.0, np.ceil(1000 * unreadable / len(source)) / 1000):g}"
        )
    logger.warning("skipped %d unreadable of %d images: %s", unreadable, len(source), listed)
    return usable
