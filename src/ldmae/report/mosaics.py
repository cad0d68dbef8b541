"""The same images through each autoencoder, a row each: reconstructions, components, samples."""

# n images, S pixels along a side, P pairs, F columns of an interpolation

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ldmae.report import grids
from ldmae.report.data import UnitResults, VariantResults, cut, evenly, read_arrays

_COLUMNS, _COMPONENTS, _CLASSES, _PER_CLASS, _PAIRS = 4, 6, 6, 2, 2
"""Of every autoencoder: images with their details, components, classes of samples and samples of each,
interpolations."""
_OUTLINE = ("black", "white")
"""Of a box: outside and inside, so that it shows on any image."""
_SHAPES = {"originals": 4, "reconstructions": 4, "components": 4, "interpolation": 5, "samples": 4}
"""Arrays of images in a unit's `images.npz`, and their dimensions."""

_Rows = dict[str, np.ndarray]
"""Images by the title of the row that they are shown in."""


def make_mosaics(
    variants: Sequence[VariantResults], problems: list[str]
) -> tuple[dict[str, Image.Image | None], int | None]:
    """Lays out the images of the autoencoders at one seed, that which most of them have.

    Returns:
        `reconstructions`, `components`, `interpolation` and `samples`, each None where there is nothing, and
        the seed. `problems` takes a sentence for each image that is left out.
    """
    seeds = [unit.seed for variant in variants for unit in variant.units]
    seed = max(sorted(set(seeds)), key=seeds.count, default=None)
    units = {v.title: unit for v in variants for unit in v.units if unit.seed == seed}
    sizes = [unit.image_size for unit in units.values()]
    size = max(sorted(set(sizes)), key=sizes.count, default=0)
    arrays = {title: _read(unit, size, problems) for title, unit in units.items()}
    arrays = _of_same_originals(arrays, units, problems)

    def rows(name: str) -> _Rows:
        return {title: of[name] for title, of in arrays.items() if name in of}

    def first(name: str) -> np.ndarray:
        return next(iter(rows(name).values()), np.zeros(0))

    above = {"original": first("originals")} if rows("originals") else {}
    names = [str(entry.get("name", "")) for unit in units.values() for entry in unit.classes]
    pictures = {
        "reconstructions": _reconstructions(above, rows("reconstructions")),
        "components": _components(above, rows("components")),
        "interpolation": _interpolation(rows("interpolation"), first("fractions")),
        "samples": _samples(rows("samples"), first("labels"), list(dict.fromkeys(names)), above),
    }
    return pictures, seed


def _name(unit: UnitResults) -> str:
    return f"{unit.variant}/seed-{unit.seed}"


def _read(unit: UnitResults, size: int, problems: list[str]) -> _Rows:
    """Returns the arrays of a unit's `images.npz` that are images of the size, and the others."""
    arrays = read_arrays(unit.folder / "images.npz", problems, f"{_name(unit)}: images.npz")
    if unit.image_size != size or size < 1:
        of = f"because its image_size is {unit.image_size} px"
        problems.append(f"{_name(unit)}: its images are left out {of}")
        return {}
    for name, dimensions in _SHAPES.items():
        found, wanted = arrays.get(name), (np.uint8, dimensions, size, size, 3)
        if found is not None and (found.dtype, found.ndim, *found.shape[-3:]) != wanted:
            problems.append(f"{_name(unit)}: {name} are no images of {size} px but {found.shape}")
            del arrays[name]
    for name, kind in (("labels", "i"), ("fractions", "f")):
        if name in arrays and (arrays[name].dtype.kind, arrays[name].ndim) != (kind, 1):
            problems.append(f"{_name(unit)}: {name} of the type {arrays[name].dtype} are left out")
            del arrays[name]
    return arrays


def _of_same_originals(
    arrays: dict[str, _Rows], units: dict[str, UnitResults], problems: list[str]
) -> dict[str, _Rows]:
    """Returns the arrays of the autoencoders that were shown the images that most of them were."""
    known = [of["originals"] for of in arrays.values() if "originals" in of]
    if not known:
        return arrays
    votes = [sum(np.array_equal(own, other) for other in known) for own in known]
    chosen = known[votes.index(max(votes))]
    same = {}
    for title, of in arrays.items():
        if "originals" in of and not np.array_equal(of["originals"], chosen):
            name = _name(units[title])
            problems.append(f"{name}: its images are left out because they are of other images")
        else:
            same[title] = of
    return same


def _most_detailed_box(image: np.ndarray, side: int) -> tuple[int, int]:
    """Returns the upper left corner (x, y) of the box with the most total variation, the first of equals.

    It counts edges, so that fine texture outweighs one strong edge.
    """
    grey = image.astype(np.int64).sum(axis=2)  # integers: equal boxes have equal sums
    change = np.zeros_like(grey)
    change[:, 1:] += np.abs(np.diff(grey, axis=1))
    change[1:] += np.abs(np.diff(grey, axis=0))
    total = np.pad(change, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(x), int(y)


def _most_structured(images: np.ndarray, count: int) -> list[int]:
    """Returns the places of the images (n, S, S, 3) with the strongest coarse edges: a reader knows these."""
    step = max(1, images.shape[1] // 8)
    side = images.shape[1] // step * step
    blocks = images[:, :side, :side].reshape(len(images), side // step, step, side // step, step, 3)
    coarse = blocks.mean(axis=(2, 4))
    edges = [np.abs(np.diff(coarse, axis=axis)).sum(axis=(1, 2, 3)) for axis in (1, 2)]
    best = np.argsort(-(edges[0] + edges[1]), kind="stable")[:count]
    return sorted(int(i) for i in best)


def _reconstructions(originals: _Rows, rows: _Rows) -> Image.Image | None:
    """Lays out images and their most detailed box magnified beside them, a row an autoencoder."""
    if not rows or not originals:
        return None
    rows = originals | rows
    first = next(iter(originals.values()))
    chosen = _most_structured(first[: min(map(len, rows.values()))], _COLUMNS)
    size = first.shape[1]
    side, scale = max(1, size // 4), grids.auto_scale(size)
    boxes = {i: _most_detailed_box(first[i], side) for i in chosen}
    tiles: dict[str, list[Image.Image]] = {}
    for title, row in rows.items():
        tiles[title] = []
        for i, (x, y) in boxes.items():
            tile = grids.resized(Image.fromarray(row[i]), scale)
            left, top, right, bottom = (round(place * scale) for place in (x, y, x + side, y + side))
            line = max(1, round(scale))
            for outline, out in zip(_OUTLINE, (2 * line, line), strict=True):  # around what is magnified
                box = (left - out, top - out, right + out - 1, bottom + out - 1)
                ImageDraw.Draw(tile).rectangle(box, outline=outline, width=line)
            detail = Image.fromarray(row[i][y : y + side, x : x + side])
            tiles[title] += [tile, detail.resize(tile.size, Image.Resampling.NEAREST)]
    return grids.image_rows(tiles, 2 * len(boxes), scale=1)


def _components(originals: _Rows, rows: _Rows) -> Image.Image | None:
    if not rows:
        return None
    rows = originals | rows
    first = next(iter(rows.values()))
    chosen = _most_structured(first[: min(map(len, rows.values()))], _COMPONENTS)
    return grids.image_rows({title: row[chosen] for title, row in rows.items()}, len(chosen))


def _interpolation(rows: _Rows, fractions: np.ndarray) -> Image.Image | None:
    """Lays out the first pairs: of each pair a row an autoencoder."""
    lengths = {of.shape[1] for of in rows.values()}
    if len(lengths) != 1:
        return None
    pairs = min([_PAIRS, *map(len, rows.values())])
    tiles = [tile for k in range(pairs) for of in rows.values() for tile in of[k]]
    return grids.interpolation_grid(tiles, fractions, lengths.pop(), row_labels=[*rows] * pairs)


def _samples(rows: _Rows, labels: np.ndarray, names: list[str], originals: _Rows) -> Image.Image | None:
    """Lays out the first samples of the same classes, a row an autoencoder, below them held-out images."""
    whole = {title: of for title, of in rows.items() if len(of) == len(labels) > 0}
    if not whole:
        return None
    present = np.unique(labels)
    classes = present[evenly(len(present), _CLASSES)]
    per_class = _PER_CLASS if len(classes) > 1 else _CLASSES * _PER_CLASS
    places = [np.flatnonzero(labels == label)[:per_class] for label in classes]
    chosen = np.concatenate(places)
    titles = [
        cut(names[label], 100) if k == 0 and 0 <= label < len(names) else ""
        for label, of in zip(classes, places, strict=True)
        for k in range(len(of))
    ]
    shown: dict[str, list[np.ndarray | None]] = {title: list(of[chosen]) for title, of in whole.items()}
    for real in originals.values():
        below = list(real[: len(chosen)])
        shown["held out, any class"] = below + [None] * (len(chosen) - len(below))
    return grids.image_rows(shown, len(chosen), column_labels=titles)
