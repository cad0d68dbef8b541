"""From a picture file to a tensor: the one preprocessing that training, extraction and evaluation share."""

# H W image height and width in pixels

import io
import math
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmae.core.errors import reason_of
from ldmae.core.files import fingerprint

_PREPROCESSING_VERSION = "1"
"""Counts up whenever a pixel that `to_rgb`, `center_crop` or `to_tensor` returns changes."""


def preprocessing_fingerprint(size: int) -> str:
    """Returns a short hash that changes whenever images of `size` pixels would come out different."""
    return fingerprint(("preprocessing", _PREPROCESSING_VERSION, "center_crop", str(size)))


# ---- as a viewer shows it

_UPRIGHT = {  # EXIF 0x0112: what undoes how the camera was held
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadablePictureError(OSError):
    """A picture file that cannot be decoded; the message is one short line."""


_MAX_PIXELS = 2**27
"""Of a picture: 134 million, which take a gigabyte to decode at most."""
_ALWAYS_PIXELS, _PIXELS_A_BYTE = 2**24, 2000
"""A larger picture has a byte for so many pixels at least, or its size is a lie: no codec packs it denser."""


def open_picture(content: bytes) -> Image.Image:
    """Returns a picture file's image, undecoded as yet.

    Raises:
        UnreadablePictureError: the bytes are of no format that Pillow knows, their head is broken, or it
            claims more than `_MAX_PIXELS`, or more than its bytes can hold.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise UnreadablePictureError(f"it claims more than {_MAX_PIXELS:,} pixels") from error
    except Exception as error:  # decoders raise whatever they like; and Pillow's message gives an address
        what = "an empty file" if not content else "not an image of a known format, or its header is damaged"
        raise UnreadablePictureError(what) from error
    check_pixels(image.size, content)
    return image


def check_pixels(size: tuple[int, int], content: bytes) -> None:
    """Raises an UnreadablePictureError for more pixels than are decoded, or than a file's bytes can hold."""
    pixels = size[0] * size[1]
    if pixels > _MAX_PIXELS or (pixels > _ALWAYS_PIXELS and pixels > _PIXELS_A_BYTE * len(content)):
        raise UnreadablePictureError(
            f"it claims {size[0]} x {size[1]} pixels in {len(content):,} bytes; expected at most "
            f"{_MAX_PIXELS:,}, and no more than its bytes can hold"
        )


def load_picture(image: Image.Image) -> None:
    """Decodes the first frame of a picture, in place.

    Raises:
        UnreadablePictureError: the file is truncated or broken.
    """
    try:
        if image.tell() != 0:  # an animation that somebody has already stepped through
            image.seek(0)
        image.load()
    except Exception as error:  # OSError, SyntaxError, EOFError, ValueError, struct.error, …
        raise UnreadablePictureError(reason_of(error)) from error


def to_rgb(image: Image.Image, span: tuple[float, float] | None = None) -> Image.Image:
    """Returns the picture as a viewer shows it: first frame, upright, 8-bit RGB, alpha composited on white.

    Handles every mode that Pillow decodes: palette (with or without transparency), grey of 1, 8, 16 and 32
    bits, float, CMYK, YCbCr, LA, RGBA and their premultiplied forms. Colour profiles are not applied.

    Args:
        image: the picture.
        span: values of grey deeper than 8 bits that become black and white; `span_of` the picture's own
            values if not given.

    Raises:
        UnreadablePictureError: the file is truncated or broken, or of a mode without a way to RGB.
    """
    load_picture(image)  # before getexif: Pillow turns TIFF upright itself, here
    orientation = _orientation(image)
    if is_deep(image):
        image = _deep_grey_to_8_bit(image, span)
    try:
        if image.has_transparency_data:
            image = _on_white(image)
        elif image.mode != "RGB":
            image = image.convert("RGB")
    except ValueError as error:
        raise UnreadablePictureError(f"cannot convert {image.mode} to RGB") from error
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return image


def is_deep(image: Image.Image) -> bool:
    """Returns whether a picture's grey has more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def value_range(image: Image.Image) -> tuple[float, float]:
    """Returns the smallest and the largest value of a picture of deep grey; NaN counts for nothing."""
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def span_of(low: float, high: float) -> tuple[float, float]:
    """Returns the values that become black and white where all lie between `low` and `high`.

    Black is 0, or the smallest where it is negative. White is the end of the usual depth that holds all: 1,
    255 (8 bits), 1023, 4095, 16383, 65535, and so on; below 16 the largest value itself.
    """
    black, white = min(0.0, low), max(high, 0.0)
    if white <= 1:
        return black, 1.0
    if white < 16:
        return black, white
    bits = next((bits for bits in (8, 10, 12, 14, 16) if white < 2**bits), math.ceil(math.log2(white + 1)))
    return black, float(2**bits - 1)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a viewer shows a picture whose EXIF block is broken, as it lies
        return 1


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied grey has no direct way to RGBA
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def _deep_grey_to_8_bit(image: Image.Image, span: tuple[float, float] | None) -> Image.Image:
    # Pillow's own convert("L") clips at 255 instead of scaling: a 16-bit photograph would come out white.
    black, white = span or span_of(*value_range(image))
    values = np.asarray(image).astype(np.float32)  # enough for 8 bits of 16, at half the memory
    transparent = image.info.get("transparency")
    opaque = (values != transparent) * np.uint8(255) if isinstance(transparent, int) else None
    values -= black
    values *= 255.0 / (white - black)
    np.nan_to_num(values, copy=False)
    grey = values.round(out=values).clip(0, 255, out=values).astype(np.uint8)
    if opaque is not None:  # PNG's one grey value that stands for nothing
        return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(opaque)))
    return Image.fromarray(grey)


# ---- sizes


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Returns the centred square of `size` pixels by ADM's rule (METHOD: Latents, preparation).

    The image is halved with a box filter while its shorter side is at least twice `size`, then brought to
    `size` bicubically, then cropped. Smaller images are enlarged. Of a strip, longer than four times its
    shorter side, only the middle is enlarged, or a line of pixels would unfold to gigabytes.
    """
    longest = 4 * min(image.size)
    if max(image.size) > longest:
        width, height = (min(side, longest) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if width == height == size:
        return image
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> Tensor:
    """Returns an RGB image as (3, H, W) float32 in [-1, 1]."""
    assert image.mode == "RGB", f"to_tensor takes RGB, got {image.mode}; call to_rgb first"
    return to_unit_range(torch.from_numpy(np.array(image)))


def to_unit_range(pixels: Tensor) -> Tensor:
    """Returns pixels (…, H, W, 3) uint8 as (…, 3, H, W) float32 in [-1, 1], on their device."""
    planes = pixels.movedim(-1, -3).contiguous()  # as bytes, a quarter of the memory to reorder
    return planes.float().div_(127.5).sub_(1.0)
