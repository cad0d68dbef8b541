"""Image files decoded by the fastest decoder for each, with Pillow's pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from skimage import data

from ldmae.images.decoding import Picture
from ldmae.images.transforms import open_picture, to_rgb


def photo() -> Image.Image:
    return Image.fromarray(data.chelsea())  # 451 x 300


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(to_rgb(open_picture(content)))


@pytest.mark.parametrize(
    ("extension", "options", "format"),
    [
        ("jpg", {"quality": 90}, "JPEG"),
        ("jpg", {"quality": 75, "subsampling": 0}, "JPEG"),
        ("jpg", {"quality": 95, "progressive": True}, "JPEG"),
        ("jpg", {"keep_rgb": True}, "JPEG"),
        ("png", {}, "PNG"),
        ("png", {"compress_level": 0}, "PNG"),
        ("webp", {"lossless": True}, ""),
    ],
)
def test_pixels_are_pillows_bit_for_bit(make, extension, options, format):
    content = make.encoded(photo(), extension, **options)
    picture = Picture(content)
    assert picture.format == format
    assert picture.size == (451, 300)
    assert np.array_equal(picture.pixels()[0], by_pillow(content))
    assert np.array_equal(np.asarray(picture.image()), by_pillow(content))


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_other_modes_have_pillows_pixels(make, mode, extension):
    if (mode, extension) == ("CMYK", "png"):
        pytest.skip("PNG has no CMYK")
    content = make.encoded(photo().convert(mode), extension)
    assert np.array_equal(Picture(content).pixels()[0], by_pillow(content))


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_an_image_that_was_turned_is_shown_upright(make, extension):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Picture(make.encoded(photo(), extension, exif=exif))
    assert picture.format == ""
    assert picture.size == (300, 451)
    assert picture.pixels(2)[0].shape == (451, 300, 3)
    for mode in ("L", "RGB"):  # as a user's own source opens them
        opened = Image.open(io.BytesIO(make.encoded(photo().convert(mode), extension, exif=exif)))
        assert Picture(opened).size == Picture(opened).image().size == (300, 451)


def test_an_exif_block_after_the_pixels_of_a_png_is_seen(make):
    whole = make.encoded(photo(), "png")
    exif = Image.Exif()
    exif[0x0112] = 3
    block = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    content = whole[:-12] + chunk + whole[-12:]
    assert np.array_equal(Picture(content).pixels()[0], by_pillow(content))
    assert np.array_equal(Picture(content).pixels()[0], np.asarray(photo())[::-1, ::-1])


def test_a_colour_that_stands_for_transparent_is_white(make):
    content = make.encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "png", transparency=(1, 2, 3))
    assert (Picture(content).pixels()[0] == 255).all()


def test_text_in_a_png_keeps_it_on_the_fast_path(make):
    text = PngImagePlugin.PngInfo()
    text.add_text("date:create", "2020-01-01")
    assert Picture(make.encoded(photo(), "png", pnginfo=text)).format == "PNG"


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_reduced_jpeg_is_the_mean_of_its_pixels_to_a_few_levels(make, shrink):
    content = make.encoded(photo(), "jpg", quality=90)
    pixels, shrunk = Picture(content).pixels(shrink)
    assert shrunk == shrink
    assert pixels.shape == (-(-300 // shrink), -(-451 // shrink), 3)
    height, width = 300 // shrink, 451 // shrink
    whole = by_pillow(content)[: height * shrink, : width * shrink].astype(np.float32)
    means = whole.reshape(height, shrink, width, shrink, 3).mean(axis=(1, 3))
    assert np.abs(pixels[:height, :width] - means).mean() < 1.5


def test_other_formats_are_never_reduced(make):
    for extension in ("png", "bmp"):
        pixels, shrunk = Picture(make.encoded(photo(), extension)).pixels(4)
        assert (shrunk, pixels.shape) == (1, (300, 451, 3))


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_a_truncated_file_raises_as_with_pillow(make, extension):
    content = make.encoded(photo(), extension)[:-5000]
    with pytest.raises(OSError, match=r"truncated|broken"):
        Picture(content).pixels()


def test_a_file_that_pillow_forgives_is_read_by_pillow(make):
    content = make.encoded(photo(), "jpg")
    content = content[:20000] + b"\0\0" + content[20000:]  # corrupt data, yet to its end
    assert np.array_equal(Picture(content).pixels()[0], by_pillow(content))


def test_the_marker_of_exif_within_a_comment_or_a_profile_keeps_a_jpeg_on_the_fast_path(make):
    content = make.encoded(photo(), "jpg", comment=b"about \xff\xe1 markers", icc_profile=b"\xff\xe1" * 9)
    picture = Picture(content)
    assert picture.format == "JPEG"
    assert np.array_equal(picture.pixels()[0], by_pillow(content))


def test_an_exif_block_behind_other_blocks_of_a_jpeg_is_seen(make):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = make.encoded(photo(), "jpg", exif=exif)
    comment = b"\xff\xfe" + struct.pack(">H", 9) + b"comment"
    picture = Picture(content[:2] + comment * 3 + content[2:])
    assert picture.size == (300, 451)
