"""One look at every image before training: what is unreadable, what is held out, what looks alike."""

# N images

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldmae.config.data import DataConfig
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError, reason_of
from ldmae.core.files import fingerprint, stamp_of
from ldmae.core.progress import console, progress_bar
from ldmae.core.threads import allowed_cores
from ldmae.images.base import Subset, content_hash, origin, root
from ldmae.images.cache import load_arrays, numbered, save_arrays
from ldmae.images.duplicates import group_near_duplicates
from ldmae.images.facts import label_facts, share_facts, summary
from ldmae.images.sources import held_out_share, open_source
from ldmae.images.split import open_held_out, seen_facts, split_by_group
from ldmae.images.transforms import is_deep, load_picture, open_picture, span_of, to_rgb, value_range

logger = logging.getLogger(__name__)

_INDEX_VERSION = "3"
_HASH_SIDE = 16
"""Side of the difference hash: 16 × 16 bits."""
_THUMB_SIDE = 8
"""Side of the colour thumbnail that a match of hashes is verified on."""
_NAMED = 5
"""How many unreadable images a message names."""


@dataclass(frozen=True)
class _Index:
    """What one look at every image of a source found; arrays only."""

    readable: np.ndarray
    """(N,) bool."""
    content: np.ndarray
    """(N,) uint64, hash of the file's bytes (0 where unreadable)."""
    group: np.ndarray
    """(N,) uint64, content hash of one of the image's near-duplicates; it decides the side."""
    span: tuple[float, float] | None
    """Smallest and largest value of grey deeper than 8 bits in all images; None where there is none."""
    broken: list[str]
    """The first few unreadable images, each with its reason."""


def is_held_out(hashed: int, share: float) -> bool:
    """Returns whether content with this hash is held out, where `share` of all is."""
    return hashed < share * 2**64


# ---- looking at one image


def _look(source: ImageSource, index: int) -> dict[str, Any]:
    """Returns what `_FOUND` names of an image."""
    source, index = origin(source, index)  # other labels: the file is the same
    read_bytes, span = getattr(source, "read_bytes", None), (np.nan, np.nan)
    if read_bytes is None:
        image = source.read(index)
        if not isinstance(image, Image.Image):
            raise TypeError(f"read() gave {type(image).__name__}, expected a PIL image")
        content = image.tobytes()
    else:
        content = read_bytes(index)
        image = open_picture(content)
        # JPEG decodes to an eighth several times as fast, and still reads to the file's end, so that a
        # truncated one is found
        image.draft("RGB", (4 * _HASH_SIDE, 4 * _HASH_SIDE))
        if is_deep(image):
            load_picture(image)
            span = value_range(image)
    image = to_rgb(image)
    brightness = image.convert("L")
    grey = brightness.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    values = np.asarray(grey).astype(np.int16)
    # a step of more than 2 levels, so that noise in flat areas sets no bits
    rising = values[:, 1:] - values[:, :-1] > 2
    falling = (values[:, :-1] - values[:, 1:] > 2)[:, ::-1]
    return {
        "readable": True,
        "content": content_hash(content),
        "hash": _pack(rising),
        "mirror": _pack(falling),
        "thumb": np.asarray(image.resize((_THUMB_SIDE, _THUMB_SIDE), Image.Resampling.BOX)),
        "grey": _standardised(brightness),
        "span": span,
    }


def _standardised(brightness: Image.Image) -> np.ndarray:
    """Returns 16 × 16 cells of brightness, uint8: 128 at their mean, 32 more a standard deviation above."""
    # in float, for it may vary by less than a level
    cells = np.asarray(brightness.convert("F").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX))
    deviation = max(float(cells.std()), 1e-3)
    return (128 + 32 * (cells - cells.mean()) / deviation).round().clip(0, 255).astype(np.uint8)


_ORDER = (
    np.arange(_HASH_SIDE * _HASH_SIDE).reshape(8, -1).T.ravel()
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
            broken[k] = reason_of(error)
            continue
        for name, value in found.items():
            out[name][k] = value
    return broken


def _look_at(
    source: ImageSource, wanted: np.ndarray, out: dict[str, np.ndarray], progress: bool
) -> dict[int, str]:
    """Looks at the images whose indices are wanted, fills `out` and returns why some cannot be read."""
    broken: dict[int, str] = {}
    # threads, not processes: Pillow decodes and hashlib hashes without the interpreter's lock, and nothing
    # is copied or forked
    size = max(32, len(wanted) // 8192)  # of a chunk: a future of each is held
    chunks = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    bar = progress_bar("checking images", len(wanted), "images", show=progress)
    with ThreadPoolExecutor(min(16, allowed_cores())) as pool, bar as advance:
        looked = pool.map(lambda chunk: _look_at_chunk(source, chunk, out), chunks)
        for chunk, reasons in zip(chunks, looked, strict=True):
            broken |= reasons
            advance(len(chunk), "")
    return broken


# ---- the index and the split


def build_index(
    source: ImageSource, cache_dir: Path | None, progress: bool = True, max_unreadable: float = 1.0
) -> _Index:
    """Looks at every image once; what was found is kept in `cache_dir`, by the stamps of the files.

    The next call reads only files of another path, size or time of modification than before. With a larger
    share of unreadable images than `max_unreadable` no training can have begun: these are looked at again.
    """
    count, stamps = len(source), _stamps(source)
    cache = None if cache_dir is None else _looks_of(source, Path(cache_dir))
    kept = _load(cache, "stamps", "readable", "content", "span", "group", "reasons")
    known, before = _known(kept, stamps, max_unreadable)
    if kept is not None and known.all() and count == len(kept["stamps"]):
        group = kept["group"][before]
        found = {name: kept[name][before] for name in ("readable", "content", "span")}
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
) -> _Index:
    broken = [f"{source.describe(k)} ({reasons[k]})" for k in sorted(reasons)[:_NAMED]]
    deep = found["span"][found["readable"] & np.isfinite(found["span"]).all(axis=1)]
    span = (float(deep[:, 0].min()), float(deep[:, 1].max())) if len(deep) else None
    return _Index(found["readable"], found["content"], group, span, broken)


_FOUND = {
    "readable": (bool, ()),
    "content": (np.uint64, ()),
    "hash": (np.uint8, (_HASH_SIDE * _HASH_SIDE // 8,)),
    "mirror": (np.uint8, (_HASH_SIDE * _HASH_SIDE // 8,)),
    "thumb": (np.uint8, (_THUMB_SIDE, _THUMB_SIDE, 3)),
    "grey": (np.uint8, (_HASH_SIDE, _HASH_SIDE)),
    "span": (np.float64, (2,)),
}
"""What a look finds of an image: type and shape of each."""


def _stamps(source: ImageSource) -> np.ndarray:
    """Returns what tells each image's file from its earlier states, (N,) uint64."""
    if isinstance(source, Subset):
        return _stamps(source.source)[source.indices]
    own = getattr(source, "stamps", None)
    if own is not None:
        return own()
    return numbered(stamp_of(source.fingerprint()), np.arange(len(source)))  # as they are in memory


def _place(source: ImageSource) -> str:
    """Returns a name for where the images are, whatever they are now."""
    source = root(source)
    return fingerprint(
        ("index", _INDEX_VERSION, type(source).__name__, getattr(source, "place", source.name))
    )


def _looks_of(source: ImageSource, cache_dir: Path) -> Path:
    return cache_dir / f"images-{_place(source)}.npz"


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


def open_images(
    config: DataConfig, cache_dir: Path, progress: bool = True
) -> tuple[ImageSource, ImageSource]:
    """Opens the training images and the held-out images that `config` names, without the unreadable ones.

    Every image is looked at once (the next start reads the result from `cache_dir`). A share is drawn by a
    hash of each file's content: independent of seed, order and names, so adding or renaming files moves no
    other file; exact duplicates and near-duplicates (saved again, resized, mirrored) stay on one side. A
    source that knows its own split, such as `photos`, keeps it.

    Raises:
        UserError: nothing there, too many unreadable images, too few images, or held-out classes that
            training lacks.
    """
    share, of_others = held_out_share(config.val), []
    source = open_source(config, cache_dir)
    usable, index = _usable(source, config, cache_dir, progress)
    if share is not None:
        own = getattr(source, "held_out", None)
        if progress and own is not None and config.val != DataConfig().val:
            console.print(
                f"{source.name} has its own held-out images: data.val={config.val} is ignored", markup=False
            )
        labels = np.asarray(root(source).labels)[usable]  # whatever data.classes leaves of them
        held_out = split_by_group(index.group[usable], share, labels) if own is None else own[usable]
        train, unseen = _subset(source, usable[~held_out], index), _subset(source, usable[held_out], index)
        share = share if own is None else None
    else:
        other = open_held_out(config, source, cache_dir)
        if (span := getattr(root(source), "span", None)) is not None:
            root(other).span = span
        train = _subset(source, usable, index)
        usable, index_of_others = _usable(other, config, cache_dir, progress)
        unseen = _subset(other, usable, index_of_others)
        _group_together(train, unseen, cache_dir, progress)
        of_others = [*seen_facts(train, unseen, config), *_facts(other, index_of_others, unseen, "image")]
    train.unreadable = int(np.count_nonzero(~index.readable))
    train.facts = _facts(source, index, train, "training image")
    train.facts += [f"held out: {fact}" for fact in of_others if fact not in train.facts]
    if share is not None:
        train.facts += share_facts(len(train), len(unseen), share)
    if progress:
        console.print(summary(train, unseen, share), markup=False, soft_wrap=True)
    return train, unseen


def open_all_images(config: DataConfig, cache_dir: Path, progress: bool = True) -> ImageSource:
    """Opens all images of `data.source`, without the unreadable ones; none is held out.

    Raises:
        UserError: nothing there, or too many unreadable images.
    """
    source = open_source(config, cache_dir)
    usable, index = _usable(source, config, cache_dir, progress)
    images = _subset(source, usable, index)
    images.facts = _facts(source, index, images, "image")
    if progress:
        console.print(summary(images, None, None), markup=False, soft_wrap=True)
    return images


def _facts(source: ImageSource, index: _Index, images: Subset, what: str) -> list[str]:
    """Returns what is to be said about images that were opened."""
    facts = [*getattr(root(source), "facts", [])]
    if unreadable := int(np.count_nonzero(~index.readable)):
        facts.append(
            f"{unreadable:,} unreadable: {'; '.join(index.broken[:1])}{'; …' if unreadable > 1 else ''}"
        )
    if (span := getattr(root(source), "span", None)) is not None:
        facts.append(f"grey deeper than 8 bits is scaled: {span[0]:g} is black, {span[1]:g} white")
    return [*facts, *label_facts(images.labels, images.classes, what)]


def _subset(source: ImageSource, indices: np.ndarray, index: _Index) -> Subset:
    subset = Subset(source, indices)
    subset.content, subset.group = index.content[indices], index.group[indices]
    return subset


def _group_together(train: Subset, unseen: Subset, cache_dir: Path, progress: bool) -> None:
    """Gives near-duplicates of both sides one group, as where a share is held out; what was found is kept."""
    assert train.content is not None
    assert unseen.content is not None
    kept = cache_dir / f"groups-{fingerprint([train.content.tobytes(), unseen.content.tobytes()])}.npz"
    groups = load_arrays(kept, "train", "unseen")
    if groups is None:
        looks = [_load(_looks_of(side, cache_dir), *_FOUND) for side in (train, unseen)]
        if not all(looks):
            return  # nothing can be kept there, which was said
        found = {name: np.concatenate([look[name] for look in looks if look]) for name in _FOUND}
        if not np.isin(np.concatenate([train.content, unseen.content]), found["content"]).all():
            return  # two sources of one's own by the same name: what was found in the first is kept no more
        group, order = group_near_duplicates(found, progress), np.argsort(found["content"])
        groups = {
            name: group[order[np.searchsorted(found["content"], content, sorter=order)]]
            for name, content in (("train", train.content), ("unseen", unseen.content))
        }
        save_arrays(kept, groups)
    train.group, unseen.group = groups["train"], groups["unseen"]


def _usable(
    source: ImageSource, config: DataConfig, cache_dir: Path, progress: bool
) -> tuple[np.ndarray, _Index]:
    """Returns the indices of the images that can be read, and what was found in all."""
    index = build_index(source, cache_dir, progress, config.max_unreadable)
    usable = np.flatnonzero(index.readable)
    if index.span is not None and root(source).span is None:  # deep grey is in files alone
        root(source).span = span_of(*index.span)
    unreadable = len(source) - len(usable)
    if not unreadable:
        return usable, index
    listed = "; ".join(index.broken) + (
        f"; and {unreadable - len(index.broken)} more" if unreadable > _NAMED else ""
    )
    if unreadable == len(source) or unreadable > config.max_unreadable * len(source):
        raise UserError(
            f"{unreadable} of the {len(source)} images of {source.name} are unreadable, more than "
            f"data.max_unreadable={config.max_unreadable:g} allows: {listed}. Fix or remove them, or set "
            f"data.max_unreadable={min(1.0, np.ceil(1000 * unreadable / len(source)) / 1000):g}"
        )
    logger.warning("skipped %d unreadable of %d images: %s", unreadable, len(source), listed)
    return usable, index
