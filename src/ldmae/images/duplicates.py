"""Which images look alike, mirrored or not, so that all of them stay on one side of the split."""

# N images, S signatures (each image's and its mirror image's)

from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ldmae.core.progress import progress_bar

_MAX_HAMMING = 20
"""Bits of 256 in which near-duplicates may differ: most pictures saved again as JPEG of quality 60, or made
smaller by a third, stay below; pictures that are not alike differ in a hundred."""
_MAX_THUMB_MEAN = 3.5
_MAX_THUMB_PEAK = 20.0
"""Grey levels by which two thumbnails may differ, on average and anywhere: a mouth is a local difference."""
_MIN_CORRELATION = 0.8
"""Of the brightness of near-duplicates, 16 × 16 cells each; of pictures that are not alike it is near 0."""
_NEIGHBOURS = 6
"""How many followers in a sorted band each signature is compared with: the cost stays linear in N."""
_BANDS = 8
"""Of 32 bits each: images that look alike share one of them."""


def group_near_duplicates(found: dict[str, np.ndarray], progress: bool = False) -> np.ndarray:
    """Returns for every image the content hash of one of its near-duplicates (and theirs), the same for all.

    It is that of the image whose hash is the smallest read from its other end, so that it is a uniform draw
    however large the group is: the smallest of k hashes falls below a limit k times as often. An image
    without near-duplicates keeps its own.

    Args:
        found: of each image `readable` (N,) bool, `content` (N,) uint64, its file's hash, `hash` and
            `mirror` (N, 32) uint8, difference hashes of 256 bits of the image and of its mirror image,
            `thumb` (N, 8, 8, 3) uint8, and `grey` (N, 16, 16) uint8, brightness by its mean and deviation.
        progress: show a bar.

    Returns:
        (N,) uint64.
    """
    readable = np.flatnonzero(found["readable"])
    group = found["content"].copy()
    if len(readable) < 2:
        return group
    content = found["content"][readable]
    thumbs, greys = found["thumb"][readable], found["grey"][readable]
    brighter, turned = (
        np.packbits((seen > 128).reshape(len(seen), -1), axis=1) for seen in (greys, greys[:, :, ::-1])
    )
    with progress_bar("comparing images", 2 * _BANDS, "passes", show=progress) as advance:
        pairs = []
        # where it is brighter than on average finds pictures whose steps are too small to set bits
        steps = found["hash"][readable], found["mirror"][readable]
        for hashes, mirrors in (steps, (brighter, turned)):
            for of_band in _near_pairs(hashes, mirrors, thumbs, greys):
                pairs += of_band
                advance(1, "")
    order = np.argsort(content, kind="stable")
    same = content[order[:-1]] == content[order[1:]]  # exact duplicates, whatever the hashes' neighbours were
    pairs.append((order[:-1][same], order[1:][same]))
    left = np.concatenate([pair[0] for pair in pairs])
    right = np.concatenate([pair[1] for pair in pairs])
    edges = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(len(readable), len(readable)))
    parts, member = connected_components(edges, directed=False)
    order = np.lexsort((content.byteswap(), member))
    first = order[np.searchsorted(member[order], np.arange(parts))]  # of each group
    group[readable] = content[first][member]
    return group


def _near_pairs(
    hashes: np.ndarray, mirrors: np.ndarray, thumbs: np.ndarray, greys: np.ndarray
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Yields pairs of images that look alike, mirrored or not, band by band of their hashes.

    Locality-sensitive hashing with eight bands of 32 bits; images that share a band lie side by side once
    the signatures are sorted by it, so each is compared with its next few followers only.
    """
    count = len(hashes)
    signatures = np.concatenate([hashes, mirrors])  # (S, 32); row k and row k + N are image k
    for band in range(_BANDS):
        pairs = []
        rotated = np.ascontiguousarray(np.roll(signatures, -4 * band, axis=1))
        order = np.argsort(rotated.view(f"S{rotated.shape[1]}").ravel(), kind="stable")
        # one side mirrored at the most: two mirrored images are no other pair than the two as they lie
        for step in range(1, _NEIGHBOURS + 1):
            left, right = order[:-step], order[step:]
            keep = (rotated[left, :4] == rotated[right, :4]).all(axis=1) & ((left < count) | (right < count))
            left, right = left[keep], right[keep]
            distance = _BITS[signatures[left] ^ signatures[right]].sum(axis=1, dtype=np.int64)
            keep = distance <= _MAX_HAMMING
            left, right = left[keep], right[keep]
            for pictures, agree in ((thumbs, _thumbs_agree), (greys, _greys_agree)):
                keep = _agreeing(pictures, left, right, agree)
                left, right = left[keep], right[keep]
            pairs.append((left % count, right % count))
        yield pairs


_BITS = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


def _as_seen(pictures: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the pictures of some signatures, mirrored where the signature is, (pairs, values) float32."""
    count = len(pictures)
    seen = pictures[rows % count].astype(np.float32)  # (pairs, H, W, ...)
    seen[rows >= count] = seen[rows >= count][:, :, ::-1]
    return seen.reshape(len(rows), -1)


def _agreeing(
    pictures: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    agree: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Says of pairs of signatures whether their pictures agree; in pieces, which bounds the memory."""
    found = np.zeros(len(left), bool)
    for start in range(0, len(left), 65536):
        part = slice(start, start + 65536)
        found[part] = agree(_as_seen(pictures, left[part]), _as_seen(pictures, right[part]))
    return found


def _thumbs_agree(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    difference = np.abs(one - other)
    return (difference.mean(axis=1) <= _MAX_THUMB_MEAN) & (difference.max(axis=1) <= _MAX_THUMB_PEAK)


def _greys_agree(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Says where brightness goes up and down alike, however little of it there is.

    Pictures with little in them, as dots on black or lines of text, have few bits set and thumbnails that
    are alike; it is where their brightness varies that tells them apart.
    """
    one, other = one - 128, other - 128
    size = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return (one * other).sum(axis=1) >= _MIN_CORRELATION * size  # two without any variation are alike
