"""Grids of images with labels, and images inside a page."""

# n images, H W their height and width

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from ldmae.core.files import atomic_path

_INK = (34, 34, 34)
_PAPER = (255, 255, 255)
_SMALLEST_TILE, _LARGEST_TILE = 96, 256
_LABEL_WIDTH, _CAPTION_WIDTH = 200, 800
"""Pixels that a row's label and a grid's caption may take; a longer one is cut with an ellipsis."""


@dataclass(frozen=True)
class GridLayout:
    """Where the tiles of a grid are, in pixels."""

    columns: int
    rows: int
    tile: tuple[int, int]
    """Width and height of a tile."""
    left: int
    """Width of the labels' column."""
    top: int
    """Height of the labels' row."""
    bottom: int
    """Height of the caption."""
    padding: int
    least_width: int = 0
    """What the caption needs."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture."""
        width = self.left + self.padding + self.columns * (self.tile[0] + self.padding)
        height = self.top + self.padding + self.rows * (self.tile[1] + self.padding) + self.bottom
        return max(width, self.least_width), height

    def origin(self, index: int) -> tuple[int, int]:
        """Returns the upper left corner of a tile; tiles are counted row by row."""
        row, column = divmod(index, self.columns)
        x = self.left + self.padding + column * (self.tile[0] + self.padding)
        y = self.top + self.padding + row * (self.tile[1] + self.padding)
        return x, y


def image_grid(
    images: np.ndarray | Sequence[np.ndarray | Image.Image | None],
    columns: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: float | None = None,
    padding: int = 4,
    caption: str = "",
) -> Image.Image:
    """Lays images out in rows on white, each row and column with its label.

    Args:
        images: uint8 (n, H, W, 3) or (n, H, W), or Pillow images (smaller ones are centred in their tile);
            None leaves a tile empty.
        columns: tiles a row.
        row_labels: texts at the left of the rows; fewer than rows leave the rest bare.
        column_labels: texts above the columns.
        scale: factor from image to tile. None takes the smallest whole factor that makes the tile 96 px or
            more, and shrinks images above 256 px to that. Whole factors repeat pixels, others resample.
        padding: pixels between tiles and around the grid.
        caption: a line below the grid.

    Returns:
        The picture, RGB.
    """
    tiles = _as_tiles(images)
    layout = grid_layout(tiles, columns, row_labels, column_labels, scale, padding, caption)
    picture = Image.new("RGB", layout.size, _PAPER)
    largest = max((max(tile.size) for tile in tiles if tile), default=1)
    factor = scale or auto_scale(largest)
    for index, tile in enumerate(tiles):
        if tile is None:
            continue
        tile = resized(tile, factor)
        x, y = layout.origin(index)
        picture.paste(tile, (x + (layout.tile[0] - tile.width) // 2, y + (layout.tile[1] - tile.height) // 2))
    _draw_labels(picture, layout, row_labels or (), column_labels or (), caption)
    return picture


def grid_layout(
    images: np.ndarray | Sequence[np.ndarray | Image.Image | None],
    columns: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: float | None = None,
    padding: int = 4,
    caption: str = "",
) -> GridLayout:
    """Returns where `image_grid` with the same arguments puts its tiles."""
    assert columns > 0, columns
    assert padding >= 0, padding
    tiles = _as_tiles(images)
    widths, heights = zip(*[tile.size for tile in tiles if tile] or [(1, 1)], strict=True)
    factor = scale or auto_scale(max(*widths, *heights))
    tile = (max(1, round(max(widths) * factor)), max(1, round(max(heights) * factor)))
    size = _font_size(tile[1])
    left = max((math.ceil(_fit(label, _LABEL_WIDTH, size)[1]) for label in row_labels or ()), default=0)
    line = round(1.6 * size)
    return GridLayout(
        columns=columns,
        rows=max(1, math.ceil(len(tiles) / columns)),
        tile=tile,
        left=left + 8 + padding if left else 0,
        top=line if column_labels else 0,
        bottom=line if caption else 0,
        padding=padding,
        least_width=math.ceil(_fit(caption, _CAPTION_WIDTH, size)[1]) + 2 * padding if caption else 0,
    )


def auto_scale(side: int) -> float:
    """Returns the factor that makes a `side` pixels long image easy to see: whole where it grows."""
    if side > _LARGEST_TILE:
        return _LARGEST_TILE / side
    return float(max(1, math.ceil(_SMALLEST_TILE / side)))


def class_grid(
    images: np.ndarray | Sequence[Image.Image],
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    per_class: int = 8,
    max_rows: int = 24,
    scale: float | None = None,
) -> Image.Image:
    """Lays images out with a row a class and the class's name at its left.

    Where there are more classes than `max_rows`, rows are spread evenly over them and a caption says so.
    A single class fills up to 8 rows.

    Args:
        images: uint8 (n, H, W, 3), or Pillow images.
        labels: (n,) indices into `class_names`.
        class_names: the classes' names.
        per_class: images a row.
        max_rows: rows at most.
        scale: see `image_grid`.

    Returns:
        The picture, RGB.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(int(label), []).append(index)
    present = sorted(by_class)
    caption = ""
    if len(present) == 1:
        shown = by_class[present[0]][: per_class * min(8, max_rows)]
        row_labels = [_class_name(present[0], class_names)] if class_names else []
        cells: list[int | None] = list(shown)
        per_class = max(1, min(per_class, len(cells)))
    else:
        if len(present) > max_rows:
            caption = f"{max_rows:,} of {len(present):,} classes shown"
            spread = np.linspace(0, len(present) - 1, max_rows).round().astype(int)
            present = [present[i] for i in spread]
        row_labels = [_class_name(label, class_names) for label in present]
        per_class = max([1, *(min(per_class, len(by_class[label])) for label in present)])
        cells = []
        for label in present:
            row = by_class[label][:per_class]
            cells += [*row, *[None] * (per_class - len(row))]
    tiles = [None if cell is None else _as_image(images[cell]) for cell in cells]
    return image_grid(tiles, per_class, row_labels=row_labels, scale=scale, caption=caption)


def image_rows(rows: Mapping[str, Sequence[Any] | np.ndarray], columns: int, **options: Any) -> Image.Image:
    """Lays rows of images out below each other, each with its label.

    Args:
        rows: by label, uint8 (n, H, W, 3) or Pillow images.
        columns: of a row, at most: the first ones are shown.
        options: further arguments of `image_grid`.
    """
    columns = max(1, min([columns, *(len(row) for row in rows.values())]))
    tiles = [image for row in rows.values() for image in _as_tiles(row[:columns])]
    return image_grid(tiles, columns, row_labels=list(rows), **options)


def reconstruction_rows(originals: np.ndarray, reconstructions: np.ndarray) -> dict[str, np.ndarray]:
    """Returns originals, reconstructions (n, H, W, 3) uint8 and, four times as strong, what differs."""
    gap = np.abs(originals.astype(np.int16) - reconstructions.astype(np.int16)) * 4
    difference = gap.clip(0, 255).astype(np.uint8)
    return {"original": originals, "reconstruction": reconstructions, "difference × 4": difference}


def save_png(image: Image.Image, path: Path | str) -> None:
    """Writes a PNG atomically, as small as Pillow makes it."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def _as_image(image: np.ndarray | Image.Image) -> Image.Image:
    if isinstance(image, np.ndarray):
        assert image.dtype == np.uint8, image.dtype
        return Image.fromarray(np.ascontiguousarray(image.squeeze(-1) if image.shape[2:] == (1,) else image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*_PAPER, 255)), rgba).convert("RGB")
    return image


def _as_tiles(images: Any) -> list[Image.Image | None]:
    return [None if image is None else _as_image(image).convert("RGB") for image in images]


def resized(image: Image.Image, factor: float) -> Image.Image:
    """Resizes an image as grids do: whole factors repeat pixels, others resample."""
    if factor == 1:
        return image.copy()
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    whole = factor > 1 and float(factor).is_integer()
    return image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _class_name(label: int, class_names: Sequence[str]) -> str:
    return str(class_names[label]) if 0 <= label < len(class_names) else f"class {label}"


def _font_size(tile_height: int) -> int:
    return min(18, max(12, tile_height // 6))


@functools.lru_cache(maxsize=64)
def _font(characters: frozenset[str], size: int) -> ImageFont.FreeTypeFont:
    """Returns DejaVu Sans, which comes with matplotlib, or an installed font where that lacks a character."""
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    needed = {ord(character) for character in characters if not character.isspace()}
    best, fewest = str(dejavu), len(needed - FT2Font(str(dejavu)).get_charmap().keys())
    if fewest:
        for path in sorted(font_manager.findSystemFonts()):
            try:
                missing = len(needed - FT2Font(path).get_charmap().keys())
            except (OSError, RuntimeError):
                continue
            if missing < fewest:
                best, fewest = path, missing
    return ImageFont.truetype(best, size)


def _fit(text: str, width: int, size: int) -> tuple[str, float]:
    """Returns the text on one line, cut to the width where it is longer, and its width."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)[:500]).split())
    font = _font(frozenset(text + "…"), size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text, font.getlength(text)


def _draw_labels(
    picture: Image.Image, layout: GridLayout, rows: Sequence[str], columns: Sequence[str], caption: str
) -> None:
    draw = ImageDraw.Draw(picture)
    size = _font_size(layout.tile[1])

    def write(text: str, x: float, y: float, anchor: str, width: int) -> None:
        text, _ = _fit(text, width, size)
        if text:
            draw.text((x, y), text, fill=_INK, font=_font(frozenset(text + "…"), size), anchor=anchor)

    for row, label in enumerate(rows[: layout.rows]):
        _, y = layout.origin(row * layout.columns)
        write(label, layout.left - 4, y + layout.tile[1] / 2, "rm", _LABEL_WIDTH)
    for column, label in enumerate(columns[: layout.columns]):
        x, _ = layout.origin(column)
        write(label, x + layout.tile[0] / 2, layout.top / 2, "mm", layout.tile[0])
    write(
        caption, layout.padding, layout.size[1] - layout.bottom / 2 - layout.padding / 2, "lm", _CAPTION_WIDTH
    )


# ---- inside a page


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    uri: str
    width: int
    height: int


def encode_picture(image: Image.Image, budget: int, longest: int = 6000) -> Picture:
    """Encodes a picture into the page in at most about `budget` bytes: without loss if it fits, else smaller.

    Args:
        image: RGB.
        budget: bytes before base64.
        longest: pixels of the longer side at most.
    """
    image = image.copy()
    image.thumbnail((min(1600, longest), longest))
    best = b""
    if image.width * image.height < 4_000_000:
        best = _encoded(image, lossless=True)
    while not best or len(best) > budget:
        best = _encoded(image, quality=85)
        if max(image.size) <= 16:
            break
        if len(best) > budget:
            factor = 0.95 * (budget / len(best)) ** 0.5
            image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))
    return Picture(data_uri(best, "image/webp"), image.width, image.height)


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", **options)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Returns a file's content as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
