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
from ldmae.report.data import evenly

_INK, _PAPER = (34, 34, 34), (255, 255, 255)
_SMALLEST_TILE, _LARGEST_TILE = 96, 256
_LABEL_WIDTH, _CAPTION_WIDTH = 200, 800
"""Pixels that a row's label and a grid's caption may take; a longer one is cut with an ellipsis."""
_MAX_CLASSES = 24
"""Rows of a class grid at most."""


class Grid:
    """Images in rows on white, each row and column with its label.

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
    """

    def __init__(
        self,
        images: np.ndarray | Sequence[np.ndarray | Image.Image | None],
        columns: int,
        row_labels: Sequence[str] = (),
        column_labels: Sequence[str] = (),
        scale: float | None = None,
        padding: int = 4,
        caption: str = "",
    ) -> None:
        assert columns > 0, columns
        assert padding >= 0, padding
        self.images = [None if image is None else _as_image(image).convert("RGB") for image in images]
        self.columns, self.padding = columns, padding
        self.row_labels, self.column_labels, self.caption = row_labels, column_labels, caption
        widths, heights = zip(*[image.size for image in self.images if image] or [(1, 1)], strict=True)
        self.scale = scale or auto_scale(max(*widths, *heights))
        self.tile = max(1, round(max(widths) * self.scale)), max(1, round(max(heights) * self.scale))
        self.rows = max(1, math.ceil(len(self.images) / columns))
        self._font_size = min(18, max(12, self.tile[1] // 6))
        line = round(1.6 * self._font_size)
        left = max((self._width(label, _LABEL_WIDTH) for label in row_labels), default=0)
        self.left = left + 8 + padding if left else 0
        self.top, self.bottom = line if column_labels else 0, line if caption else 0
        self.least_width = self._width(caption, _CAPTION_WIDTH) + 2 * padding if caption else 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture."""
        width, height = self.origin(self.rows * self.columns - 1)
        whole = width + self.tile[0] + self.padding, height + self.tile[1] + self.padding + self.bottom
        return max(whole[0], self.least_width), whole[1]

    def origin(self, index: int) -> tuple[int, int]:
        """Returns the upper left corner of a tile; tiles are counted row by row."""
        row, column = divmod(index, self.columns)
        x = self.left + self.padding + column * (self.tile[0] + self.padding)
        y = self.top + self.padding + row * (self.tile[1] + self.padding)
        return x, y

    def draw(self) -> Image.Image:
        """Returns the picture, RGB."""
        picture = Image.new("RGB", self.size, _PAPER)
        width, height = self.tile
        for index, image in enumerate(self.images):
            if image is not None:
                image, (x, y) = resized(image, self.scale), self.origin(index)
                picture.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
        pen = ImageDraw.Draw(picture)
        for row, label in enumerate(self.row_labels[: self.rows]):
            _, y = self.origin(row * self.columns)
            self._write(pen, label, self.left - 4, y + height / 2, "rm", _LABEL_WIDTH)
        for column, label in enumerate(self.column_labels[: self.columns]):
            x, _ = self.origin(column)
            self._write(pen, label, x + width / 2, self.top / 2, "mm", width)
        y = self.size[1] - self.bottom / 2 - self.padding / 2
        self._write(pen, self.caption, self.padding, y, "lm", _CAPTION_WIDTH)
        return picture

    def _width(self, text: str, most: int) -> int:
        text, font = _fit(text, most, self._font_size)
        return math.ceil(font.getlength(text))

    def _write(
        self, pen: ImageDraw.ImageDraw, text: str, x: float, y: float, anchor: str, width: int
    ) -> None:
        text, font = _fit(text, width, self._font_size)
        if text:
            pen.text((x, y), text, fill=_INK, font=font, anchor=anchor)


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
) -> Image.Image:
    """Lays images (uint8 (n, H, W, 3) or Pillow's) out with a row a class and the class's name at its left.

    Of more than 24 classes the rows are spread evenly over them and a caption says so; a single class fills
    up to 8 rows.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(int(label), []).append(index)
    present, caption = sorted(by_class), ""
    if len(present) > _MAX_CLASSES:
        caption = f"{_MAX_CLASSES:,} of {len(present):,} classes shown"
        present = [present[i] for i in evenly(len(present), _MAX_CLASSES)]
    names = [str(class_names[k]) if 0 <= k < len(class_names) else f"class {k}" for k in present]
    alone = len(present) == 1
    rows = [by_class[label][: per_class * 8 if alone else per_class] for label in present]
    columns = max([1, *(min(per_class, len(row)) for row in rows)])
    cells = [cell for row in rows for cell in [*row, *[None] * (-len(row) % columns)]]
    tiles = [None if cell is None else images[cell] for cell in cells]
    return Grid(tiles, columns, names if class_names or not alone else (), caption=caption).draw()


def image_rows(rows: Mapping[str, Sequence[Any] | np.ndarray], columns: int, **options: Any) -> Image.Image:
    """Lays rows of images (uint8 (n, H, W, 3) or Pillow's) out below each other, each with its label.

    The first `columns` of each row are shown; the options are those of `Grid`.
    """
    columns = max(1, min([columns, *(len(row) for row in rows.values())]))
    tiles = [image for row in rows.values() for image in row[:columns]]
    return Grid(tiles, columns, list(rows), **options).draw()


def interpolation_grid(
    images: np.ndarray | Sequence[Any], fractions: np.ndarray, columns: int, **options: Any
) -> Image.Image:
    """Lays rows out that turn from one image into another, with the originals at both ends.

    Columns are labelled by the fractions (F,) where they are F + 2; the options are those of `Grid`.
    """
    labels = ["image", *(f"t = {t:g}" for t in fractions), "image"]
    return Grid(images, columns, column_labels=labels if len(labels) == columns else (), **options).draw()


def difference(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """Returns |x - y|, `strength` times as strong and clipped; images (…, H, W, 3) uint8."""
    gap = np.abs(x.astype(np.int16) - y.astype(np.int16)) * strength
    return gap.clip(0, 255).round().astype(np.uint8)


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


def resized(image: Image.Image, factor: float) -> Image.Image:
    """Resizes an image as grids do: whole factors repeat pixels, others resample."""
    if factor == 1:
        return image.copy()
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    whole = factor > 1 and float(factor).is_integer()
    return image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


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


def _fit(text: str, width: int, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Returns the text on one line, cut to the width where it is longer, and its font."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)[:500]).split())
    font = _font(frozenset(text + "…"), size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text, _font(frozenset(text + "…"), size)


# ---- inside a page


@dataclass(frozen=True)
class _Picture:
    """A picture inside the page."""

    uri: str
    width: int
    height: int


def encode_picture(image: Image.Image, budget: int) -> _Picture:
    """Encodes an RGB picture into the page in at most about `budget` bytes before base64.

    Without loss if it fits, else with loss and, where that is not enough, smaller.
    """
    image = image.copy()
    image.thumbnail((1600, 6000))
    lossless = image.width * image.height < 4_000_000
    best = _encoded(image, lossless=True) if lossless else b""
    while not best or len(best) > budget:
        best = _encoded(image, quality=85)
        if max(image.size) <= 16:
            break
        if len(best) > budget:
            factor = 0.95 * (budget / len(best)) ** 0.5
            image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))
    return _Picture(data_uri(best, "image/webp"), image.width, image.height)


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", **options)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Returns a file's content as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
