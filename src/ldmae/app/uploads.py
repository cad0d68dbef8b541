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

from ldmae.core.errors import UserError, reason_of
from ldmae.images.transforms import center_crop, open_picture, to_rgb, to_tensor

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF")
"""What browsers and cameras save, by Pillow's names. Others are not decoded for visitors: Pillow would start
Ghostscript for EPS, and ICO and ICNS may hold larger pictures than they say."""

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

    Raises:
        UserError: it is too large, no picture, of another format, or broken.
    """
    if len(content) > limits.bytes:
        raise too_large(len(content), limits)
    move = "upload a PNG, JPEG, WebP, BMP, GIF or TIFF"
    try:
        image = open_picture(content)
        tags: Any = getattr(image, "tag_v2", {})  # of a TIFF, each of whose tiles is decoded whole
        tile = int(tags.get(_TIFF_TILE_WIDTH, 0)), int(tags.get(_TIFF_TILE_HEIGHT, 0))
    except Exception as error:  # decoders raise whatever they like
        raise UserError(f"this page can't read the file as an image ({reason_of(error)}); {move}") from error
    if image.format not in _FORMATS:
        raise UserError(f"this page can't read {image.format} images; {move}")
    for width, height in (image.size, tile):
        if width * height > limits.pixels:
            raise UserError(
                f"the image has {width:,} × {height:,} pixels, and this page takes at most "
                f"{limits.pixels / 1e6:g} million; upload a smaller one"
            )
    try:
        with _DECODING:
            return to_rgb(image)
    except Exception as error:  # as above
        raise UserError(
            f"the {image.format} image is damaged or incomplete ({reason_of(error)}); upload it again"
        ) from error


def squared(image: Image.Image, size: int) -> Tensor:
    """Returns the centred square of an RGB image as (1, 3, S, S) in [-1, 1], as training images are."""
    return to_tensor(center_crop(image, size))[None]
