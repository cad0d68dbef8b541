"""Which thing every pixel, and so every latent cell, belongs to: the object, part or pattern it shows.

A label map holds an integer for each pixel; equal integers of ONE image are one group, -1 is no group. What
an integer means in another image plays no part. Every grouping is deterministic and looks at one image alone.
"""

# H W image, h w latent grid, K groups of an image

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import ImageSource
from ldmae.evaluation.masks import NO_GROUP, open_masks
from ldmae.images.base import origin, root
from ldmae.images.builtin import EmojiSource

LabelMap = Callable[[int, np.ndarray], np.ndarray]
"""From an image's index and its pixels as the autoencoder sees them (H, W, 3) to its groups (H, W)."""

_FLAT_TOLERANCE = 12
"""How far neighbouring pixels of one flat part may differ in a channel, of 255."""

_SMALLEST_PART = 0.002
"""Flat parts that cover a smaller share of the picture are no group; antialiased outlines fall under it."""


# ---- every level of a source


def level_maps(
    source: ImageSource, indices: Sequence[int], size: int, config: EvaluationConfig
) -> dict[str, LabelMap]:
    """Returns for each level at which groups are known what finds them.

    Parts of any picture are found by felzenszwalb, patterns by SLIC; an emoji's object by its opacity and its
    parts by flat colours. Masks take the place of the level that they stand for; they are looked for, and
    compared in size, for the images of `indices` alone.

    Raises:
        UserError: the masks do not match the images.
    """
    maps: dict[str, LabelMap] = {
        "part": lambda _, pixels: _parts_by_felzenszwalb(pixels),
        "pattern": lambda _, pixels: _patterns_by_slic(pixels),
    }
    if isinstance(root(source), EmojiSource):
        maps["object"] = lambda index, _: _crop_labels(_objects_from_alpha(_alpha(source, index)), size)
        maps["part"] = lambda index, _: _crop_labels(_parts_from_flat_colours(_alpha(source, index)), size)
    if config.masks is not None:
        read_mask = open_masks(source, indices, config)
        maps[config.mask_level] = lambda index, _: _crop_labels(read_mask(index), size)
    return {level: maps[level] for level in ("object", "part", "pattern") if level in maps}


def _alpha(source: ImageSource, index: int) -> np.ndarray:
    emoji, place = origin(source, index)
    return np.asarray(emoji.read_alpha(place))


# ---- from a picture to a label map


def _objects_from_alpha(picture: np.ndarray) -> np.ndarray:
    """Separates an object (1) from its transparent background (0): (H, W, 4) uint8 to (H, W) int64.

    The object begins at half opacity.
    """
    _check_picture(picture, channels=(4,))
    return (picture[..., 3] >= 128).astype(np.int64)


def _parts_from_flat_colours(picture: np.ndarray, smallest: float = _SMALLEST_PART) -> np.ndarray:
    """Finds the connected regions of near-flat colour that drawings such as emoji are made of.

    Neighbouring pixels (left, right, above, below) belong together where no channel differs by more than
    `_FLAT_TOLERANCE`; so a region may be shaded smoothly, and an antialiased outline, which goes from one
    colour to the other in a few steep steps, belongs to neither side. All that is transparent is one
    background, even where the object cuts it apart.

    Args:
        picture: (H, W, 3) or (H, W, 4) uint8; of transparent pixels the colour does not count.
        smallest: regions of a smaller share of the picture are no group.

    Returns:
        (H, W) int64, the regions numbered from 0 by their first pixel; -1 for small ones.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _check_picture(picture, channels=(3, 4))
    values = picture.astype(np.float64)
    if values.shape[-1] == 4:
        values[..., :3] *= values[..., 3:] / 255
    pixels = np.arange(values.shape[0] * values.shape[1]).reshape(values.shape[:2])
    across = np.abs(values[:, 1:] - values[:, :-1]).max(axis=-1) <= _FLAT_TOLERANCE
    down = np.abs(values[1:] - values[:-1]).max(axis=-1) <= _FLAT_TOLERANCE
    starts = np.concatenate([pixels[:, :-1][across], pixels[:-1][down]])
    ends = np.concatenate([pixels[:, 1:][across], pixels[1:][down]])
    edges = coo_array((np.ones(len(starts), np.int8), (starts, ends)), shape=(pixels.size, pixels.size))
    _, regions = connected_components(edges, directed=False)
    if values.shape[-1] == 4:
        background = np.unique(regions[(values[..., 3] == 0).ravel()])
        regions[np.isin(regions, background)] = regions.max() + 1
    sizes = np.bincount(regions)
    kept = np.where(sizes[regions] >= smallest * pixels.size, regions, NO_GROUP)
    return _numbered(kept.reshape(pixels.shape))


def _parts_by_felzenszwalb(picture: np.ndarray) -> np.ndarray:
    """Segments any picture by its colours (Felzenszwalb and Huttenlocher, IJCV 2004; scikit-image).

    The settings were chosen by eye on photographs of 64 to 256 pixels, which fall into some ten to twenty
    parts. These are numbered from 0 by their first pixel: (H, W, 3) uint8 to (H, W) int64.
    """
    from skimage.segmentation import felzenszwalb

    _check_picture(picture, channels=(3,))
    area = picture.shape[0] * picture.shape[1]
    scale = 150.0 * (area / 64**2) ** 0.25  # grows with the root of the side: about as many parts
    return _numbered(felzenszwalb(picture, scale, sigma=0.8, min_size=max(1, round(0.015 * area))))


def _patterns_by_slic(picture: np.ndarray, alike: float = 10.0) -> np.ndarray:
    """Divides any picture into small patches and joins like ones (SLIC; Achanta et al., PAMI 2012).

    SLIC (scikit-image's) also divides an even surface, by place; that latents of its pieces are the same, as
    they ought to be, would then count against the autoencoder. So patches whose mean colours lie within
    `alike` are one pattern, wherever in the picture they are: stripes of a kind, or both eyes.

    Args:
        picture: (H, W, 3) uint8.
        alike: largest distance in CIELAB of two patches of a pattern; 0 keeps every patch apart. Just visible
            is 2.3; the default was chosen by eye on photographs and emoji.

    Returns:
        (H, W) int64, patterns numbered from 0 by their first pixel.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    _check_picture(picture, channels=(3,))
    patches = slic(
        picture,
        n_segments=32,  # about; it does not grow with the picture
        compactness=15.0,  # how much nearness counts beside colour
        sigma=0.5,
        min_size_factor=0.2,  # its default, 0.5, joins small patches with neighbours of any colour
        start_label=0,
    )
    patches = _numbered(patches)
    if alike > 0 and patches.any():
        sizes = np.bincount(patches.ravel())
        lab = rgb2lab(picture).reshape(-1, 3)
        colours = np.stack([np.bincount(patches.ravel(), channel) / sizes for channel in lab.T], axis=1)
        # complete linkage: no two patches of a pattern lie further apart, so that gradients don't chain
        patterns = fcluster(linkage(colours, "complete"), alike, "distance")
        patches = _numbered(patterns[patches])
    return patches


def _check_picture(picture: np.ndarray, channels: tuple[int, ...]) -> None:
    assert picture.dtype == np.uint8, f"expected uint8, got {picture.dtype}"
    assert picture.ndim == 3, f"expected (H, W, C), got {picture.shape}"
    assert picture.shape[2] in channels, f"expected C in {channels}, got {picture.shape}"


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Numbers the groups from 0 in the order of their first pixels; -1 stays."""
    numbers = np.full(labels.shape, NO_GROUP, np.int64)
    grouped = labels != NO_GROUP
    numbers[grouped] = pd.factorize(labels[grouped])[0]
    return numbers


# ---- the way to the latent grid


def _crop_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Crops a label map as images are cropped: ADM's centre crop (METHOD: Latents, preparation).

    Every label of the result is that of the pixel under its centre, so that no new labels come into being.

    Args:
        labels: (H, W) of the whole image.
        size: pixels of the result's side.

    Returns:
        (size, size) of the same type.
    """
    height, width = halved = labels.shape
    while min(halved) >= 2 * size:
        halved = halved[0] // 2, halved[1] // 2
    scale = size / min(halved)
    rows, columns = round(halved[0] * scale), round(halved[1] * scale)  # of the resized, uncropped map
    top, left = (rows - size) // 2, (columns - size) // 2
    chosen_rows = _under_centres(rows, height)[top : top + size]
    chosen_columns = _under_centres(columns, width)[left : left + size]
    return labels[chosen_rows[:, None], chosen_columns]


def enlarged(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges (N, h, w, ...) to (N, H, W, ...) by taking the nearest cell."""
    rows = _under_centres(size[0], pictures.shape[1])
    return pictures[:, rows[:, None], _under_centres(size[1], pictures.shape[2])]


def cell_groups(labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Gives every latent cell the group that covers most of its pixels.

    Args:
        labels: (H, W) integers, -1 for no group.
        grid: height and width (h, w) of the latents, at most the map's. A pixel belongs to the cell that its
            centre lies in.

    Returns:
        (h, w) int64: of groups that cover equally much the smallest, and -1 where more pixels have no group
        than belong to any one group.
    """
    assert labels.ndim == 2, f"expected (H, W), got {labels.shape}"
    assert all(n <= m for n, m in zip(grid, labels.shape, strict=True)), (
        f"{grid} cells, {labels.shape} pixels"
    )
    rows, columns = (_under_centres(m, n) for m, n in zip(labels.shape, grid, strict=True))
    cells = rows[:, None] * grid[1] + columns  # (H, W)
    present, inverse = np.unique(labels, return_inverse=True)  # (K,), ascending
    order = np.argsort(present == NO_GROUP, kind="stable")  # -1 last: argmax takes the first of equals
    column_of = np.empty(len(present), np.int64)
    column_of[order] = np.arange(len(present))
    votes = np.bincount(
        (cells * len(present) + column_of[inverse].reshape(cells.shape)).ravel(),
        minlength=grid[0] * grid[1] * len(present),
    ).reshape(*grid, len(present))
    return present[order][votes.argmax(axis=-1)].astype(np.int64)


def _under_centres(fine: int, coarse: int) -> np.ndarray:
    """Returns, for each of `fine` equal intervals of a line, which of `coarse` ones its centre lies in."""
    return (2 * np.arange(fine) + 1) * coarse // (2 * fine)
