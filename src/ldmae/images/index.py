"""One look at every image before training: what is unreadable, what is held out, what looks alike."""

# N images

import collections
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, stamp_of
from ldmae.core.progress import console, progress_bar
from ldmae.core.threads import allowed_cores
from ldmae.images.base import Subset, content_hash, with_classes
from ldmae.images.cache import load_arrays, numbered, save_arrays
from ldmae.images.duplicates import group_near_duplicates
from ldmae.images.settings import DataConfig
from ldmae.images.sources import FolderSource, held_out_share, open_source
from ldmae.images.transforms import open_picture, to_rgb

logger = logging.getLogger(__name__)

INDEX_VERSION = "3"
HASH_SIDE = 16
"""Side of the difference hash: 16 × 16 bits."""
THUMB_SIDE = 8
"""Side of the colour thumbnail that a match of hashes is verified on."""
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


def is_held_out(hashed: int, share: float) -> bool:
    """Returns whether content with this hash is held out, where `share` of all is."""
    return hashed < share * 2**64


# ---- looking at one image


def _look(source: ImageSource, index: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Returns content hash, difference hash (32,) uint8, the mirror image's, thumbnail (8, 8, 3) uint8."""
    if isinstance(source, Subset):  # other labels: the file is the same
        source, index = source.origin(index)
    read_bytes = getattr(source, "read_bytes", None)
    if read_bytes is None:
        image = source.read(index)
        content = image.tobytes()
    else:
        content = read_bytes(index)
        image = open_picture(content)
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


def _look_at_chunk(source: ImageSource, chunk: np.ndarray, out: dict[str, np.ndarray]) -> dict[int, str]:
    """Looks at some images, by index; returns why some of them cannot be read."""
    broken = {}
    for k in chunk.tolist():
        try:
            found = _look(source, k)
        except Exception as error:  # decoders raise whatever they like on broken files
            broken[k] = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
            continue
        out["content"][k], out["hash"][k], out["mirror"][k], out["thumb"][k] = found
        out["readable"][k] = True
    return broken


def _look_at(
    source: ImageSource, wanted: np.ndarray, out: dict[str, np.ndarray], progress: bool
) -> dict[int, str]:
    """Looks at the images whose indices are wanted, fills `out` and returns why some cannot be read."""
    broken: dict[int, str] = {}
    # threads, not processes: Pillow decodes and hashlib hashes without the interpreter's lock, and nothing
    # is copied or forked
    workers = min(16, allowed_cores())
    bar = progress_bar("checking images", len(wanted), "images", show=progress)
    with ThreadPoolExecutor(workers) as pool, bar as advance:
        pending = collections.deque()
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            pending.append((len(chunk), pool.submit(_look_at_chunk, source, chunk, out)))
            if len(pending) > 2 * workers:
                done, future = pending.popleft()
                broken |= future.result()
                advance(done, "")
        for done, future in pending:
            broken |= future.result()
            advance(done, "")
    return broken


# ---- the index and the split


def build_index(
    source: ImageSource, cache_dir: Path | None, progress: bool = True, max_unreadable: float = 1.0
) -> Index:
    """Looks at every image once; what was found is kept in `cache_dir`, by the stamps of the files.

    The next call reads only files of another path, size or time of modification than before.

    Args:
        source: any source with random access.
        cache_dir: where what was found is kept, or None.
        progress: show a bar where it takes over a second.
        max_unreadable: share of unreadable images that is accepted. With more, no training can have begun:
            the unreadable ones are looked at again.
    """
    count, stamps = len(source), _stamps(source)
    cache = None if cache_dir is None else Path(cache_dir) / f"images-{_place(source)}.npz"
    kept = _load(cache, "stamps", "readable", "content", "group", "reasons")
    known, before = _known(kept, stamps, max_unreadable)
    if kept is not None and known.all() and count == len(kept["stamps"]):
        group, found = kept["group"][before], {name: kept[name][before] for name in ("readable", "content")}
        return _index(source, found, group, _reasons(kept, known, before))
    found = {name: np.zeros((count, *shape), kind) for name, (kind, shape) in _FOUND.items()}
    looks = _load(cache, *_FOUND) if known.any() else None  # many bytes an image, and needed here alone
    if looks is None:
        known[:] = False
    else:
        for name, values in found.items():
            values[known] = looks[name][before[known]]
    reasons = {} if kept is None else _reasons(kept, known, before)
    reasons |= _look_at(source, np.flatnonzero(~known), found, progress)
    group = group_near_duplicates(found, progress)
    if cache is not None:
        told = np.array([reasons[k] for k in sorted(reasons)], dtype=str)
        save_arrays(cache, {**found, "stamps": stamps, "group": group, "reasons": told})
    return _index(source, found, group, reasons)


def _known(
    kept: dict[str, np.ndarray] | None, stamps: np.ndarray, max_unreadable: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which images are as they were at an earlier look, (N,) bool, and where they were in it."""
    if kept is None:
        return np.zeros(len(stamps), bool), np.zeros(len(stamps), np.int64)
    order = np.argsort(kept["stamps"], kind="stable")
    before = order[np.searchsorted(kept["stamps"], stamps, sorter=order).clip(max=len(order) - 1)]
    known = kept["stamps"][before] == stamps
    unreadable = int(np.count_nonzero(~kept["readable"][before[known]]))
    if unreadable == len(stamps) or unreadable > max_unreadable * len(stamps):
        known &= kept["readable"][before]
    return known, before


def _reasons(kept: dict[str, np.ndarray], known: np.ndarray, before: np.ndarray) -> dict[int, str]:
    """Returns why known images cannot be read, by index."""
    told = dict(zip(np.flatnonzero(~kept["readable"]).tolist(), kept["reasons"].tolist(), strict=True))
    return {int(k): told[int(before[k])] for k in np.flatnonzero(known & ~kept["readable"][before])}


def _index(
    source: ImageSource, found: dict[str, np.ndarray], group: np.ndarray, reasons: dict[int, str]
) -> Index:
    broken = [f"{source.describe(k)} ({reasons[k]})" for k in sorted(reasons)[:NAMED]]
    return Index(found["readable"], found["content"], group, broken)


_FOUND = {
    "readable": (bool, ()),
    "content": (np.uint64, ()),
    "hash": (np.uint8, (HASH_SIDE * HASH_SIDE // 8,)),
    "mirror": (np.uint8, (HASH_SIDE * HASH_SIDE // 8,)),
    "thumb": (np.uint8, (THUMB_SIDE, THUMB_SIDE, 3)),
}
"""What a look finds of an image: type and shape of each."""


def _stamps(source: ImageSource) -> np.ndarray:
    """Returns what tells each image's file from its earlier states, (N,) uint64."""
    own = getattr(source, "stamps", None)
    stamps = None if own is None else own()
    if stamps is None:  # no files: the images as they are in memory
        origin = source.source if isinstance(source, Subset) else source
        stamps = numbered(stamp_of(origin.fingerprint()), np.arange(len(source)))
    return stamps


def _place(source: ImageSource) -> str:
    """Returns a name for where the images are, whatever they are now."""
    while isinstance(source, Subset):
        source = source.source
    return fingerprint(("index", INDEX_VERSION, type(source).__name__, getattr(source, "place", source.name)))


def _load(cache: Path | None, *names: str) -> dict[str, np.ndarray] | None:
    """Returns what was found earlier; None where nothing is kept, or something of another shape."""
    kept = load_arrays(cache, *dict.fromkeys(("readable", *names)))
    if kept is None:
        return None
    shapes = _FOUND | dict.fromkeys(("stamps", "group"), (np.uint64, ()))
    count = kept["readable"].size
    told = kept.get("reasons", np.array([], str))
    whole = all(
        kept[name].dtype == shapes[name][0] and kept[name].shape == (count, *shapes[name][1])
        for name in shapes.keys() & kept.keys()
    ) and ("reasons" not in kept or (told.dtype.kind, told.shape) == ("U", (count - kept["readable"].sum(),)))
    return kept if whole and count else None


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
        progress: show a bar where it takes over a second, and what is to be said.

    Raises:
        UserError: nothing there, too many unreadable images, too few images, or held-out classes that
            training lacks.
    """
    share = held_out_share(config.val)
    source = open_source(config, cache_dir)
    usable, index = _usable(source, config, cache_dir, progress)
    if share is not None:
        own = getattr(source, "held_out", None)
        if progress and own is not None and config.val != DataConfig().val:
            console.print(
                f"{source.name} holds images out by itself: data.val={config.val} plays no part", markup=False
            )
        held_out = split_by_group(index.group[usable], share) if own is None else own[usable]
        train, unseen = _subset(source, usable[~held_out], index), _subset(source, usable[held_out], index)
    else:
        other = _open_val(config, source, cache_dir)
        train = _subset(source, usable, index)
        unseen = _subset(other, *_usable(other, config, cache_dir, progress))
        _refuse_seen(train, unseen, config)
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
    return _subset(source, *_usable(source, config, cache_dir, progress))


def _subset(source: ImageSource, indices: np.ndarray, index: Index) -> Subset:
    subset = Subset(source, indices)
    subset.content, subset.group = index.content[indices], index.group[indices]
    return subset


def _open_val(config: DataConfig, source: ImageSource, cache_dir: Path) -> ImageSource:
    if config.val.startswith("split:"):
        named = replace(config, split=config.val.removeprefix("split:"), val="0.5", classes=None)
        if named.split == config.split:
            raise UserError(f"data.val={config.val} is the split that training uses; name another one")
    else:
        if _same_place(config.val, config.source):
            raise UserError(
                f"data.val={config.val} are the training images themselves; name others, or hold a share of "
                "these out, such as data.val=0.05"
            )
        named = replace(config, source=config.val, val="0.5", classes=None)
    other = open_source(named, cache_dir)
    if isinstance(other, FolderSource) and other.flat and len(source.classes) > 1:
        raise UserError(
            f"the held-out images of data.val={config.val} lie in no subfolders, so that their classes are "
            "not known; put them into one subfolder a class, named as those of the training images"
        )
    if len(source.classes) == 1 and len(other.classes) == 1:  # flat folders are named after themselves
        return Subset(other, np.arange(len(other)), classes=source.classes)
    return with_classes(other, source.classes, strict=config.classes is None)


def _refuse_seen(train: Subset, unseen: Subset, config: DataConfig) -> None:
    """Raises where most held-out images are training images, as those of files that have no splits are."""
    assert train.content is not None
    assert unseen.content is not None
    seen = int(np.isin(unseen.content, train.content).sum())
    if 2 * seen > len(unseen):
        raise UserError(
            f"{seen} of the {len(unseen)} images that data.val={config.val} holds out are training images of "
            f"data.source={config.source}; name others, or hold a share of these out, such as data.val=0.05"
        )


def _same_place(one: str, other: str) -> bool:
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _usable(
    source: ImageSource, config: DataConfig, cache_dir: Path, progress: bool
) -> tuple[np.ndarray, Index]:
    """Returns the indices of the images that can be read, and what was found in all."""
    index = build_index(source, cache_dir, progress, config.max_unreadable)
    usable = np.flatnonzero(index.readable)
    unreadable = len(source) - len(usable)
    if not unreadable:
        return usable, index
    listed = "; ".join(index.broken) + (
        f"; and {unreadable - len(index.broken)} more" if unreadable > NAMED else ""
    )
    if unreadable == len(source) or unreadable > config.max_unreadable * len(source):
        raise UserError(
            f"{unreadable} of the {len(source)} images of {source.name} are unreadable, more than "
            f"data.max_unreadable={config.max_unreadable:g} allows: {listed}. Mend or remove them, or set "
            f"data.max_unreadable={min(1.0, np.ceil(1000 * unreadable / len(source)) / 1000):g}"
        )
    logger.warning("skipped %d unreadable of %d images: %s", unreadable, len(source), listed)
    return usable, index
