"""Decodes image files to RGB pixels: JPEG and PNG by the fastest decoder for each, all else by Pillow.

`benchmarks/loading.py` times the choice. The decoders agree with Pillow bit for bit.
"""

# H W image height and width in pixels

import kornia_rs
import numpy as np
import simplejpeg
from PIL import Image

from ldmae.images.transforms import check_pixels, open_picture, to_rgb

_HARMLESS_CHUNKS = b"IHDR PLTE IDAT IEND gAMA cHRM sRGB iCCP pHYs tIME bKGD sBIT hIST tEXt zTXt iTXt".split()


class Picture:
    """An image as a viewer shows it, decoded when its pixels are asked for.

    Which decoder reads a file depends on its bytes alone, so that every epoch and every resumed run sees the
    same pixels. A file that a fast decoder refuses is Pillow's to judge.

    Args:
        content: the bytes of an image file, or an image that is decoded already.
        span: of grey deeper than 8 bits (see `to_rgb`).

    Raises:
        UnreadablePictureError: the bytes are of no format that Pillow knows, broken, or of too many pixels.
    """

    def __init__(self, content: bytes | Image.Image, span: tuple[float, float] | None = None) -> None:
        self.content, self.format, self._span = b"", "", span
        """The file's bytes, and `JPEG` or `PNG` where a fast decoder reads them; else empty."""
        self._image: Image.Image | None = None
        if isinstance(content, Image.Image):
            self._image = to_rgb(content)
            self.size = self._image.size
            return
        self.content = content
        for format, size_of in (("JPEG", _plain_jpeg_size), ("PNG", _plain_png_size)):
            if (size := size_of(content)) is not None:
                check_pixels(size, content)
                self.format, self.size = format, size
                return
        self._read_by_pillow()

    def _read_by_pillow(self) -> Image.Image:
        self._image, self.format = to_rgb(open_picture(self.content), self._span), ""
        self.size = self._image.size
        return self._image

    def pixels(self, shrink: int = 1) -> tuple[np.ndarray, int]:
        """Decodes the image.

        Args:
            shrink: 1, 2, 4 or 8. JPEG is decoded to one `shrink`th of its width and height (rounded up), in
                the cosine transform: the mean of `shrink` × `shrink` pixels to within a few levels.

        Returns:
            (H, W, 3) uint8, and by how much it is reduced: `shrink`, or 1 where the format cannot.

        Raises:
            UnreadablePictureError: the file is truncated or broken.
        """
        width, height = self.size
        try:
            if self.format == "JPEG":
                pixels = simplejpeg.decode_jpeg(
                    self.content,
                    min_height=-(-height // shrink),
                    min_width=-(-width // shrink),
                    min_factor=shrink,
                )
                return pixels, shrink
            if self.format == "PNG":
                return kornia_rs.io.decode_image_png_u8(self.content, (height, width), "rgb"), 1
        except Exception:  # they raise whatever they like; Pillow reads more, or says what is wrong
            self._read_by_pillow()
        return np.array(self._image), 1

    def image(self) -> Image.Image:
        """Returns the whole image, RGB."""
        return Image.fromarray(self.pixels()[0]) if self._image is None else self._image


def _plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Returns width and height of a JPEG file of colours or greys; None where EXIF might turn it."""
    if not content.startswith(b"\xff\xd8\xff") or _may_hold_exif(content):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return (int(width), int(height)) if colours in ("YCbCr", "RGB", "Gray") else None


def _may_hold_exif(content: bytes) -> bool:
    """Returns whether a JPEG file has an EXIF or XMP block (APP1) before its scan, or is not well-formed."""
    place = 2
    while content[place : place + 1] == b"\xff":
        marker = content[place + 1 : place + 2]
        if marker == b"\xda":  # start of scan
            return False
        if marker == b"\xe1":
            return True
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return True


def _plain_png_size(content: bytes) -> tuple[int, int] | None:
    """Returns width and height of a PNG file of 8-bit RGB in which no chunk makes transparent or turns."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or content[24:26] != b"\x08\x02":  # bits, colours
        return None
    start = 8
    while start + 8 <= len(content):
        length, kind = int.from_bytes(content[start : start + 4], "big"), content[start + 4 : start + 8]
        turned = content.startswith((b"Raw profile", b"XML:com.adobe.xmp"), start + 8)  # EXIF in text
        if kind not in _HARMLESS_CHUNKS or turned:
            return None
        start += length + 12
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
