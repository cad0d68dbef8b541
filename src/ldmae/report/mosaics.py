"""The same images through each autoencoder, side by side: reconstructions, components, samples."""

# n tiles of a strip, S pixels along a side of a tile

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ldmae.report import figures
from ldmae.report.pictures import UNREADABLE
from ldmae.report.reading import cut, mapping, number, records
from ldmae.report.units import Unit, Variant

COLUMNS = 4
"""Images shown with their details."""
COMPONENTS = 6
CLASSES, PER_CLASS = 6, 3
"""Classes, and samples of each, that are shown of every autoencoder."""
PAIRS = 2
"""Interpolations that are shown of every autoencoder."""
GAP = 2
"""White pixels between the pictures of an interpolation strip."""
OUTLINE = ("black", "white")
"""Of a box: outside and inside, so that it shows on any image."""


@dataclass(frozen=True)
class Mosaics:
    """What there is to look at; None where there is nothing."""

    reconstructions: Image.Image | None
    components: Image.Image | None
    interpolation: Image.Image | None
    samples: Image.Image | None
    seed: int | None
    """The seed whose pictures these are."""


def make_mosaics(variants: Sequence[Variant], problems: list[str]) -> Mosaics:
    """Lays out the pictures of the autoencoders at one seed, that which most of them have.

    Args:
        variants: the rows.
        problems: takes a sentence for each picture that is left out.
    """
    counts: dict[int, int] = {}
    for variant in variants:
        for unit in variant.units:
            counts[unit.seed] = counts.get(unit.seed, 0) + 1
    if not counts:
        return Mosaics(None, None, None, None, None)
    seed = min(counts, key=lambda seed: (-counts[seed], seed))
    units = {v.title: unit for v in variants for unit in v.units if unit.seed == seed}
    sizes = [int(number(unit.record.get("image_size")) or 0) for unit in units.values()]
    size = max(sorted(set(sizes)), key=sizes.count)
    for (title, unit), own in zip(list(units.items()), sizes, strict=True):
        if own != size or size < 1:
            problems.append(f"{_name(unit)}: its images are left out because its image_size is {own} px")
            del units[title]
    originals, units = _same_originals(units, size, problems)
    return Mosaics(
        _reconstructions(originals, _strips(units, "reconstructions.png", size, problems)),
        _components(originals, _strips(units, "components.png", size, problems)),
        _interpolation(units, size, problems),
        _with_real(_samples(units, size, problems), originals),
        seed,
    )


def most_detailed_box(image: np.ndarray, side: int) -> tuple[int, int]:
    """Returns the upper left corner (x, y) of the box with the most total variation, the first of equals.

    Total variation counts edges, so that fine texture outweighs one strong edge.

    Args:
        image: (S, S, 3) uint8.
        side: pixels along a side of the box.
    """
    grey = image.astype(np.int64).sum(axis=2)  # integers: equal boxes have equal sums
    change = np.zeros_like(grey)
    change[:, 1:] += np.abs(np.diff(grey, axis=1))
    change[1:] += np.abs(np.diff(grey, axis=0))
    sums = _box_sums(change, side)
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(x), int(y)


def _box_sums(values: np.ndarray, side: int) -> np.ndarray:
    """Sums over every box of `side` × `side` values."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]


def _most_structured(images: np.ndarray, count: int) -> list[int]:
    """Returns the places of the images (n, S, S, 3) with the strongest coarse edges: a reader knows these."""
    step = max(1, images.shape[1] // 8)
    side = images.shape[1] // step * step
    blocks = images[:, :side, :side].reshape(len(images), side // step, step, side // step, step, 3)
    coarse = blocks.mean(axis=(2, 4))
    edges = [np.abs(np.diff(coarse, axis=axis)).sum(axis=(1, 2, 3)) for axis in (1, 2)]
    best = np.argsort(-(edges[0] + edges[1]), kind="stable")[:count]
    return sorted(int(i) for i in best)


def _name(unit: Unit) -> str:
    return f"{unit.variant}/seed-{unit.seed}"


def _open(unit: Unit, file: str, problems: list[str]) -> np.ndarray | None:
    """Returns a picture as (H, W, 3) uint8."""
    path = unit.folder / file
    if not path.exists():
        return None
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UNREADABLE:
        problems.append(f"{_name(unit)}: {file} could not be read")
    return None


def _strip(unit: Unit, file: str, size: int, problems: list[str]) -> np.ndarray | None:
    """Returns the tiles (n, S, S, 3) of a horizontal strip."""
    picture = _open(unit, file, problems)
    if picture is None:
        return None
    height, width, _ = picture.shape
    if height != size or width % size or not width:
        problems.append(
            f"{_name(unit)}: {file} is not a strip of {size} px tiles, it is {width} × {height} px"
        )
        return None
    return np.stack(np.split(picture, width // size, axis=1))


def _strips(units: dict[str, Unit], file: str, size: int, problems: list[str]) -> dict[str, np.ndarray]:
    strips = {title: _strip(unit, file, size, problems) for title, unit in units.items()}
    return {title: strip for title, strip in strips.items() if strip is not None}


def _same_originals(
    units: dict[str, Unit], size: int, problems: list[str]
) -> tuple[np.ndarray | None, dict[str, Unit]]:
    """Returns the images that most autoencoders were shown, and the autoencoders that were shown these."""
    strips = _strips(units, "originals.png", size, problems)
    if not strips:
        return None, units
    known = list(strips.values())
    votes = [sum(np.array_equal(strip, other) for other in known) for strip in known]
    chosen = known[votes.index(max(votes))]
    for title, unit in list(units.items()):
        if title in strips and not np.array_equal(strips[title], chosen):
            problems.append(f"{_name(unit)}: its images are left out because they are of other images")
            del units[title]
    return chosen, units


def _reconstructions(originals: np.ndarray | None, strips: dict[str, np.ndarray]) -> Image.Image | None:
    """Lays out images and their most detailed box magnified beside them, a row an autoencoder."""
    if not strips or originals is None:
        return None
    rows = {"original": originals, **strips}
    count = min(len(row) for row in rows.values())
    chosen = _most_structured(originals[:count], COLUMNS)
    size = originals.shape[1]
    side = max(1, size // 4)
    boxes = {int(i): most_detailed_box(originals[i], side) for i in chosen}
    scale = figures.auto_scale(size)
    tiles: list[Image.Image | None] = []
    for row in rows.values():
        for i, (x, y) in boxes.items():
            tile = figures.resized(Image.fromarray(row[i]), scale)
            corners = [round(place * scale) for place in (x, y, x + side, y + side)]
            left, top, right, bottom = corners
            line = max(1, round(scale))
            for outline, out in zip(OUTLINE, (2 * line, line), strict=True):  # around what is magnified
                box = (left - out, top - out, right + out - 1, bottom + out - 1)
                ImageDraw.Draw(tile).rectangle(box, outline=outline, width=line)
            detail = Image.fromarray(row[i][y : y + side, x : x + side])
            tiles += [tile, detail.resize(tile.size, Image.Resampling.NEAREST)]
    return figures.image_grid(tiles, 2 * len(boxes), row_labels=list(rows), scale=1)


def _components(originals: np.ndarray | None, strips: dict[str, np.ndarray]) -> Image.Image | None:
    if not strips:
        return None
    rows = strips if originals is None else {"original": originals, **strips}
    count = min(len(row) for row in rows.values())
    chosen = _most_structured(
        (strips[next(iter(strips))] if originals is None else originals)[:count], COMPONENTS
    )
    tiles = [Image.fromarray(row[i]) for row in rows.values() for i in chosen]
    return figures.image_grid(tiles, len(chosen), row_labels=list(rows))


def _interpolation(units: dict[str, Unit], size: int, problems: list[str]) -> Image.Image | None:
    """Lays out the first pairs' strips: of each pair a row an autoencoder."""
    step = size + GAP
    cut_up: dict[str, list[list[Image.Image]]] = {}
    for title, unit in units.items():
        strip = _open(unit, "interpolation.png", problems)
        if strip is None:
            continue
        height, width, _ = strip.shape
        if (height + GAP) % step or (width + GAP) % step:
            problems.append(f"{_name(unit)}: interpolation.png is not a grid of {size} px tiles")
            continue
        cut_up[title] = [
            [Image.fromarray(strip[y : y + size, x : x + size]) for x in range(0, width, step)]
            for y in range(0, height, step)
        ]
    shown = min([PAIRS, *(len(pairs) for pairs in cut_up.values())])
    rows = [pairs[k] for k in range(shown) for pairs in cut_up.values()]
    titles = list(cut_up) * shown
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    tiles = [tile for row in rows for tile in row]
    times = [
        name[len("PSNR-first(") : -1]
        for kind, name in next(iter(units.values())).figures
        if kind == "interpolation" and name.startswith("PSNR-first(")
    ]
    labels = ["image", *(time.replace("=", " = ") for time in times), "image"]
    known = labels if len(labels) == len(rows[0]) else None
    return figures.image_grid(tiles, len(rows[0]), row_labels=titles, column_labels=known)


def _samples(units: dict[str, Unit], size: int, problems: list[str]) -> Image.Image | None:
    """Cuts the same classes and places out of every grid of samples and lays them side by side."""
    blocks = {}
    for title, unit in units.items():
        grid = _open(unit, "samples.png", problems)
        if grid is None:
            continue
        names = [
            str(entry.get("name", "")) for entry in records(mapping(unit.record.get("data")).get("classes"))
        ]
        blocks[title] = _cut_grid(grid, size, names)
    cut_out = {title: block for title, block in blocks.items() if isinstance(block, _Block)}
    if not blocks:
        return None
    if len(cut_out) < len(blocks) or len({tuple(block.names) for block in cut_out.values()}) > 1:
        grids = [Image.fromarray(grid.grid) for grid in blocks.values()]  # laid out otherwise: as they are
        return figures.beside(grids, list(blocks))
    columns = min(PER_CLASS, *(len(block.rows[0]) for block in cut_out.values()), 99)
    pictures = []
    for i, block in enumerate(cut_out.values()):
        tiles = [tile for row in block.rows for tile in row[:columns]]
        labels = [cut(name, 100) for name in block.names] if i == 0 else None
        pictures.append(figures.image_grid(tiles, columns, row_labels=labels, scale=1))
    return figures.beside(pictures, list(cut_out))


def _with_real(samples: Image.Image | None, originals: np.ndarray | None) -> Image.Image | None:
    """Puts a row of real images below the samples."""
    if samples is None or originals is None:
        return samples
    scale = figures.auto_scale(originals.shape[1])
    tile = round(originals.shape[1] * scale) + 4
    columns = max(1, min(len(originals), (samples.width - 80) // tile))
    real = figures.image_grid(originals[:columns], columns, row_labels=["real"], scale=scale)
    whole = Image.new("RGB", (max(samples.width, real.width), samples.height + 12 + real.height), "white")
    whole.paste(samples, (0, 0))
    whole.paste(real, (0, samples.height + 12))
    return whole


@dataclass(frozen=True)
class _Uncut:
    grid: np.ndarray


@dataclass(frozen=True)
class _Block(_Uncut):
    names: list[str]
    rows: list[list[Image.Image]]


def _cut_grid(grid: np.ndarray, size: int, names: list[str]) -> _Uncut:
    """Cuts some classes out of what `figures.class_grid` laid out, or returns it uncut if it was not that."""
    height, width, _ = grid.shape
    tile, padding = round(size * figures.auto_scale(size)), 4
    rows = min((height - padding) // (tile + padding), len(names))
    if rows < 1:
        return _Uncut(grid)
    shown = [names[i] for i in np.linspace(0, len(names) - 1, rows).round().astype(int)]
    layout = figures.grid_layout(
        [Image.new("RGB", (size, size))] * rows, 1, row_labels=shown, padding=padding
    )
    columns, rest = divmod(width - layout.left - padding, tile + padding)
    bottom = height - padding - rows * (tile + padding)
    if rest or columns < 1 or bottom < 0 or (bottom and rows == len(names)):
        return _Uncut(grid)
    chosen = np.unique(np.linspace(0, rows - 1, min(CLASSES, rows)).round().astype(int))
    cells = []
    for row in chosen:
        y = padding + int(row) * (tile + padding)
        places = [layout.left + padding + column * (tile + padding) for column in range(columns)]
        cells.append([Image.fromarray(grid[y : y + tile, x : x + tile]) for x in places])
    return _Block(grid, [shown[i] for i in chosen], cells)


def save_mosaics(mosaics: Mosaics, folder: Path) -> list[str]:
    """Writes the mosaics that there are as PNG and returns their names; others' old files are removed."""
    written = []
    for name in ("reconstructions", "components", "interpolation", "samples"):
        picture, path = getattr(mosaics, name), folder / f"{name}.png"
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            figures.save_png(picture, path)
            written.append(path.name)
    return written
