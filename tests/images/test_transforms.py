import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldmae.images.transforms import (
    UnreadablePictureError,
    center_crop,
    open_picture,
    preprocessing_fingerprint,
    to_rgb,
    to_tensor,
    to_unit_range,
)

from ..pictures import encoded, png_of_short_data

WHITE, RED = (255, 255, 255), (255, 0, 0)


def reopened(image: Image.Image, format: str, **options) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, format, **options)))


def half_red_half_clear() -> Image.Image:
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 4))
    return image


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_on_white(format):
    options = {"lossless": True} if format == "WEBP" else {}
    out = to_rgb(reopened(half_red_half_clear(), format, **options))
    assert out.mode == "RGB"
    assert out.getpixel((1, 1)) == RED
    assert out.getpixel((6, 1)) == WHITE


def test_half_transparent_pixel_is_mixed_with_white():
    out = to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))
    assert abs(out.getpixel((0, 0))[0] - 127) <= 1


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_transparency_is_composited_on_white(format):
    image = Image.new("P", (8, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 4))
    out = to_rgb(reopened(image, format, transparency=1))
    assert out.getpixel((1, 1)) == RED
    assert out.getpixel((6, 1)) == WHITE


def test_palette_without_transparency_keeps_its_colours():
    out = to_rgb(reopened(Image.new("RGB", (4, 4), (10, 200, 30)).quantize(), "PNG"))
    assert out.getpixel((0, 0)) == (10, 200, 30)


def test_colour_key_transparency_of_rgb_png_is_white():
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    image.putpixel((0, 0), RED)
    out = to_rgb(reopened(image, "PNG", transparency=(1, 2, 3)))
    assert out.getpixel((2, 2)) == WHITE
    assert out.getpixel((0, 0)) == RED


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_grey_with_alpha_is_composited_on_white(mode):
    image = Image.merge("LA", (Image.new("L", (4, 4), 40), Image.new("L", (4, 4), 0)))
    image.putpixel((0, 0), (40, 255))
    out = to_rgb(image.convert(mode))
    assert out.getpixel((0, 0)) == (40, 40, 40)
    assert out.getpixel((3, 3)) == WHITE


def levels(image: Image.Image) -> list[int]:
    """Returns what the red of an image's first row becomes."""
    return np.asarray(to_rgb(image))[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("values", "kind", "format", "expected"),
    [
        ([0, 257, 32896, 65535], np.uint16, "PNG", [0, 1, 128, 255]),
        ([0, 32896, 65535], np.uint16, "TIFF", [0, 128, 255]),
        ([0, 32896, 65535], np.int32, None, [0, 128, 255]),
        ([0.0, 0.5, 1.0], np.float32, None, [0, 128, 255]),
        ([-1.0, 0.0, 1.0, np.nan], np.float32, None, [0, 128, 255]),  # negative ones are not cut off
    ],
)
def test_deep_grey_is_scaled_not_clipped(values, kind, format, expected):
    image = Image.fromarray(np.array([values], dtype=kind))
    found = levels(image if format is None else reopened(image, format))
    assert found[: len(expected)] == expected


def test_16_bit_grey_with_transparent_value_is_white_there():
    image = Image.fromarray(np.array([[0, 1000, 65535]], dtype=np.uint16))
    image.info["transparency"] = 1000
    assert levels(image) == [0, 255, 255]


@pytest.mark.parametrize(
    ("kind", "top", "white"),
    [
        (np.float32, 65535, 65535),
        (np.int32, 255, 255),
        (np.uint16, 4000, 4095),
        (np.uint16, 60000, 65535),
        (np.int32, 10**6, 2**20 - 1),
        (np.float32, 3.5, 3.5),
        (np.uint16, 1, 1),
    ],
)
def test_deep_grey_is_scaled_by_the_depth_that_holds_its_values(kind, top, white):
    values = np.array([[0, top // 2, top]]).astype(kind)
    expected = [round(255 * float(value) / white) for value in values[0]]
    assert levels(reopened(Image.fromarray(values), "TIFF")) == pytest.approx(expected, abs=1)


def test_one_bit_image_becomes_black_and_white():
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 1)
    out = to_rgb(reopened(image, "PNG"))
    assert [out.getpixel((k, 0)) for k in range(2)] == [(0, 0, 0), WHITE]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_shows_its_colours_not_their_negative(format):
    # Pillow writes CMYK JPEGs as Adobe does, inverted, and marks them so
    image = reopened(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format)
    assert image.mode == "CMYK"
    red, green, blue = to_rgb(image).getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 20


def test_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    image = reopened(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    image.seek(2)
    assert to_rgb(image).getpixel((4, 4)) == RED


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(format, orientation):
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("red", (0, 0, 16, 16))  # the corner tells the orientations apart
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = to_rgb(reopened(stored, format, exif=exif))
    assert out.size == upright.size
    difference = np.asarray(out).astype(int) - np.asarray(upright)
    assert np.abs(difference[2:14, 2:14]).max() < 30
    assert np.abs(difference[20:30, 20:46]).max() < 30


def test_truncated_file_raises():
    content = encoded(Image.effect_noise((64, 64), 80), "JPEG")
    with pytest.raises(OSError, match="truncated"):
        to_rgb(Image.open(io.BytesIO(content[:-400])))


def claiming(width: int, height: int, format: str) -> bytes:
    """Returns a small picture file whose head claims another size."""
    content = bytearray(encoded(Image.new("RGB", (8, 8)), format))
    if format == "PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        start = content.index(b"\xff\xc0") + 5
        content[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(20000, 20000), (12000, 9000), (60000, 60000)])
def test_claimed_size_is_checked_before_anything_is_decoded(format, size):
    with pytest.raises(UnreadablePictureError, match="it claims"):
        open_picture(claiming(*size, format))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing",
        png_of_short_data(),
        b"8BPS\x00\x01" + bytes(20),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + bytes(30),
        b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(50),
        b"GIF89a" + bytes(10),
    ],
)
def test_broken_pictures_raise_one_kind_of_error(content):
    with pytest.raises(UnreadablePictureError) as caught:
        to_rgb(open_picture(content))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (20, 50), (129, 257), (65, 64)])
def test_center_crop_follows_adms_rule(size):
    image = Image.effect_noise(size, 60).convert("RGB")
    expected = image
    while min(expected.size) >= 128:
        expected = expected.resize(tuple(side // 2 for side in expected.size), Image.Resampling.BOX)
    scale = 64 / min(expected.size)
    expected = expected.resize(tuple(round(side * scale) for side in expected.size), Image.Resampling.BICUBIC)
    pixels = np.asarray(expected)
    top, left = (pixels.shape[0] - 64) // 2, (pixels.shape[1] - 64) // 2
    np.testing.assert_array_equal(center_crop(image, 64), pixels[top : top + 64, left : left + 64])


def test_tensor_spans_minus_one_to_one():
    image = Image.new("RGB", (3, 2), (0, 255, 51))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 3)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tensor[:, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])


def test_every_level_becomes_the_nearest_number_to_its_place_between_minus_one_and_one():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 256, 1).expand(2, 256, 3)
    expected = (np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)).tolist()
    assert to_unit_range(levels).shape == (3, 2, 256)
    assert to_unit_range(levels)[1, 1].tolist() == expected


def test_fingerprint_depends_on_size():
    assert preprocessing_fingerprint(48) == preprocessing_fingerprint(48) != preprocessing_fingerprint(64)


@pytest.mark.parametrize("shape", [(2000, 1), (1, 2000), (3, 500)])
def test_a_strip_is_cropped_before_it_is_enlarged(shape, monkeypatch):
    made: list[int] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda image, size, *rest: made.append(size[0] * size[1]) or resize(image, size, *rest),
    )
    assert center_crop(Image.new("RGB", shape), 64).size == (64, 64)
    assert max(made) <= 4 * 64 * 64


def test_16_bits_are_scaled_and_rounded_as_in_double_precision():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = np.asarray(to_rgb(Image.fromarray(values)))[..., 0]
    np.testing.assert_array_equal(grey, np.round(values / 257).astype(np.uint8))
