import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ldmae.app.uploads import Limits, decode_picture, squared
from ldmae.core.errors import UserError
from ldmae.images.transforms import center_crop, to_rgb, to_tensor

from ..pictures import encoded
from .conftest import photo

LIMITS = Limits(bytes=200_000, pixels=10_000)


def png_head(width: int, height: int) -> bytes:
    """Returns a PNG that says it is as large as that, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


TURNED = Image.Exif()
TURNED[0x0112] = 6
PICTURES = {
    "png": encoded(photo()),
    "jpeg": encoded(photo(), "JPEG", quality=90),
    "turned": encoded(photo(), "JPEG", exif=TURNED.tobytes()),
    "cmyk": encoded(photo().convert("CMYK"), "JPEG"),
    "webp": encoded(photo(), "WEBP"),
    "bmp": encoded(photo(), "BMP"),
    "gif": encoded(photo(), "GIF", save_all=True, append_images=[photo(seed=1)]),
    "tiff": encoded(photo(), "TIFF"),
    "palette": encoded(photo().quantize(16)),
    "grey": encoded(photo().convert("L")),
    "grey 16 bits": encoded(Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50) * 30)),
    "transparent": encoded(Image.new("RGBA", (50, 40), (0, 0, 0, 0))),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_format_is_decoded_as_training_images_are(kind):
    decoded = decode_picture(PICTURES[kind], LIMITS)
    assert decoded.mode == "RGB"
    assert decoded.size == ((40, 50) if kind == "turned" else (50, 40))
    assert decoded.tobytes() == to_rgb(Image.open(io.BytesIO(PICTURES[kind]))).tobytes()


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match=r"3,000 × 3,000 pixels, and this page takes at most 0\.01 million"):
        decode_picture(png_head(3_000, 3_000), LIMITS)


def test_a_decompression_bomb_is_refused_at_once():
    began = time.monotonic()
    with pytest.raises(UserError, match="pixels"):
        decode_picture(png_head(60_000, 60_000), LIMITS)
    assert time.monotonic() - began < 1


def test_a_picture_of_as_many_pixels_as_allowed_is_taken():
    assert decode_picture(encoded(Image.new("RGB", (100, 100))), LIMITS).size == (100, 100)
    with pytest.raises(UserError, match="100 × 101"):
        decode_picture(encoded(Image.new("RGB", (100, 101))), LIMITS)


def test_a_file_of_too_many_bytes_is_refused():
    with pytest.raises(UserError, match=r"the file has 0\.2 MiB, and this page takes at most 0\.19\d+ MiB"):
        decode_picture(bytes(200_001), LIMITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"hello", "can't read the file as an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "can't read the file as an image"),
        (PICTURES["png"][:200], "the PNG image is damaged or incomplete"),
        (PICTURES["jpeg"][:-100], "the JPEG image is damaged or incomplete"),
    ],
)
def test_what_is_no_picture_is_told(content, message):
    with pytest.raises(UserError, match=message):
        decode_picture(content, LIMITS)


@pytest.mark.parametrize(("kind", "name"), [("ICO", "ICO"), ("EPS", "EPS"), ("PPM", "PPM")])
def test_formats_that_could_start_programs_or_hide_their_size_are_refused(kind, name):
    with pytest.raises(UserError, match=f"can't read {name} images"):
        decode_picture(encoded(photo(), kind), LIMITS)


def test_squared_prepares_an_image_as_for_training():
    image = photo(90, 70)
    assert squared(image, 32).shape == (1, 3, 32, 32)
    assert squared(image, 32)[0].equal(to_tensor(center_crop(image, 32)))


def test_a_tiff_whose_tile_size_is_no_number_is_told(monkeypatch):
    image = Image.open(io.BytesIO(encoded(photo(), "TIFF")))
    image.tag_v2[322] = "wide"
    monkeypatch.setattr("ldmae.app.uploads.open_picture", lambda _: image)
    with pytest.raises(UserError, match="can't read the file as an image"):
        decode_picture(encoded(photo(), "TIFF"), LIMITS)


def test_a_tiff_of_tiles_larger_than_it_is_refused(monkeypatch):
    content = encoded(photo(), "TIFF")
    image = Image.open(io.BytesIO(content))
    image.tag_v2[322], image.tag_v2[323] = 9000, 9000
    monkeypatch.setattr("ldmae.app.uploads.open_picture", lambda _: image)
    with pytest.raises(UserError, match="9,000 × 9,000 pixels, and this page"):
        decode_picture(content, LIMITS)
