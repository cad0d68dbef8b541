"""Pictures that visitors send: looked at before they are decoded, then decoded as training images are."""

# H W image height and width in pixels, S side of the square that a model gets

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ldmae.core.errors import UserError
from ldmae.images.transforms import center_crop, open_picture, to_rgb, to_tensor

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF")
"""What `ldmae.images` reads from folders, by Pillow's names. Others are not decoded for visitors: Pillow
would start Ghostscript for EPS, and ICO and ICNS may hold larger pictures than they say."""

_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323  # tags

MIB = 1 << 20

KEPT_FOR, CLEANED_EVERY = 300, 60
"""Seconds: after how long files that visitors sent are deleted, and how often that is looked for. Not at
once: a file that two visitors send lies in one place."""

_DECODING = threading.Semaphore(2)
"""Pictures that are decoded at once: a large one takes hundreds of megabytes."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a visitor may send."""

    bytes: int = 10 * MIB
    """Size of a file at most."""
    pixels: int = 50_000_000
    """Height times width of a picture at most, as its head says: decoded it takes up to 16 bytes a pixel."""

    def __post_init__(self) -> None:
        if self.bytes < 1 or self.pixels < 1:
            raise UserError(
                f"upload limits must be at least 1 byte and 1 pixel, got {self.bytes} and {self.pixels}; "
                "use a positive --max-upload-mb and --max-megapixels"
            )


def upload_folder() -> Path:
    """Returns the folder in which Gradio keeps what visitors send; `serve` makes one for each page."""
    default = Path(tempfile.gettempdir()) / "gradio"
    return Path(os.environ.get("GRADIO_TEMP_DIR") or default).resolve()


def too_large(size: int, limits: Limits) -> UserError:
    """Returns the error for a file of more bytes than a visitor may send."""
    return UserError(
        f"the file has {size / MIB:.1f} MiB, and this page takes at most {limits.bytes / MIB:g} MiB; "
        "upload a smaller one"
    )


def decode_picture(content: bytes, limits: Limits) -> Image.Image:
    """Decodes a picture as a viewer shows it: first frame, upright, 8-bit RGB, alpha on white.

    Its format and its height and width are read first and refused where they are too large, so that a few
    kilobytes that unfold to gigabytes (a decompression bomb) are never decoded.

    Args:
        content: the file.
        limits: how large it may be.

    Raises:
        UserError: it is too large, no picture, of another format, or broken.
    """
    image, tile = _opened(content, limits)
    for width, height in (image.size, tile):
        if width * height > limits.pixels:
            raise UserError(
                f"the image has {width:,} × {height:,} pixels, and this page takes at most "
                f"{limits.pixels / 1e6:g} million; upload a smaller one"
            )
    try:
        with _DECODING:
            return to_rgb(image)
    except Exception as error:  # decoders raise whatever they like on broken files
        raise UserError(
            f"the {image.format} image is damaged or incomplete ({_first_line(error)}); upload it again"
        ) from error


def _tile(image: Image.Image) -> tuple[int, int]:
    """Returns the size of the tiles that a TIFF is made of, each of which is decoded whole."""
    tags: Any = getattr(image, "tag_v2", {})
    return int(tags.get(_TIFF_TILE_WIDTH, 0)), int(tags.get(_TIFF_TILE_HEIGHT, 0))


def _opened(content: bytes, limits: Limits) -> tuple[Image.Image, tuple[int, int]]:
    """Returns a picture of which only the head was read, and the size of its tiles."""
    if len(content) > limits.bytes:
        raise too_large(len(content), limits)
    try:
        image = open_picture(content)
        tile = _tile(image)
    except Image.DecompressionBombError as error:
        raise UserError("the image has more pixels than this page takes; upload a smaller one") from error
    except Exception as error:  # as above
        raise UserError(
            f"this page can't read the file as an image ({_first_line(error)}); upload a PNG, JPEG, WebP, "
            "BMP, GIF or TIFF"
        ) from error
    if image.format not in _FORMATS:
        raise UserError(
            f"this page can't read {image.format} images; upload a PNG, JPEG, WebP, BMP, GIF or TIFF"
        )
    return image, tile


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def squared(image: Image.Image, size: int) -> Tensor:
    """Returns the centred square of an RGB image as (1, 3, S, S) in [-1, 1], as training images are."""
    return to_tensor(center_crop(image, size))[None]
