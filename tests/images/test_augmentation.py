"""Random crops and mirror images, drawn by key, cut in uint8."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from ldmae.config.data import AugmentConfig
from ldmae.core.errors import UserError
from ldmae.images.augmentation import augment, draw_crop
from ldmae.images.decoding import Picture


def noise(size: tuple[int, int] = (80, 60)) -> Picture:
    return Picture(Image.effect_noise(size, 60).convert("RGB"))


def photo() -> Image.Image:
    return Image.fromarray(data.coffee()).crop((0, 0, 500, 400))


def by_pillow(image: Image.Image, size: int, seed: int) -> np.ndarray:
    """Returns the same crop, cut and resized by Pillow alone."""
    crop = draw_crop(*image.size, size, AugmentConfig(), seed)
    resized = image.crop(crop[:4]).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)[:, :: -1 if crop.mirrored else 1].astype(np.int16)


def test_crops_keep_area_and_ratio_within_their_limits():
    config = AugmentConfig(crop_scale=[0.5, 0.9])
    crops = np.array([draw_crop(200, 150, 100, config, seed)[:4] for seed in range(300)])
    widths, heights = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    areas, ratios = widths * heights / (200 * 150), widths / heights
    assert 0.49 < areas.min() < 0.55
    assert 0.75 < areas.max() < 0.91
    assert ratios.min() >= 0.73
    assert ratios.max() <= 1.36
    assert crops[:, 0].min() == 0
    assert crops[:, 2].max() == 200


@pytest.mark.parametrize(("size", "shrink"), [(400, 1), (256, 1), (128, 2), (64, 4), (16, 8)])
def test_a_crop_lies_on_the_grid_by_which_the_image_may_be_reduced(size, shrink):
    for seed in range(20):
        crop = draw_crop(500, 400, size, AugmentConfig(), seed)
        free = draw_crop(500, 400, 1000, AugmentConfig(), seed)
        assert crop.shrink == shrink
        assert all(side % shrink == 0 for side in crop[:4])
        assert all(0 <= a - b < shrink for a, b in zip(free[:4], crop[:4], strict=True))
        assert crop.mirrored == free.mirrored


def test_a_crop_of_a_very_wide_image_falls_back_to_the_centre():
    image = Image.new("RGB", (400, 20), "white")
    image.paste("red", (187, 0, 213, 20))
    out = augment(Picture(image), 16, AugmentConfig(crop_scale=[1.0, 1.0]), 0)
    assert out[:, 1:-1].reshape(-1, 3).tolist() == [[255, 0, 0]] * (16 * 14)


def test_augment_is_a_function_of_its_key():
    picture = noise()
    same = [augment(picture, 32, AugmentConfig(), 3) for _ in range(2)]
    other = augment(picture, 32, AugmentConfig(), 4)
    assert (same[0].shape, same[0].dtype) == ((32, 32, 3), torch.uint8)
    assert torch.equal(*same)
    assert not torch.equal(same[0], other)


def test_flip_setting_changes_no_crop():
    picture, flips = noise(), 0
    for seed in range(20):
        plain = augment(picture, 32, AugmentConfig(horizontal_flip=False), seed)
        maybe = augment(picture, 32, AugmentConfig(), seed)
        mirrored = torch.equal(maybe, plain.flip(1))
        assert mirrored or torch.equal(maybe, plain)
        flips += mirrored
    assert 4 < flips < 16


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("extension", ["png", "webp"])
def test_a_crop_has_pillows_pixels_to_two_levels(make, extension, size):
    content = make.encoded(photo(), extension, **({"lossless": True} if extension == "webp" else {}))
    for seed in range(3):
        crop = augment(Picture(content), size, AugmentConfig(), seed).numpy()
        difference = np.abs(crop - by_pillow(photo(), size, seed))
        assert difference.max() <= 2
        assert difference.mean() < 0.01


@pytest.mark.parametrize(("size", "mean", "most"), [(64, 1.5, 24), (128, 1.5, 24), (256, 0.01, 2)])
def test_a_crop_of_a_jpeg_decoded_at_a_reduced_size_has_pillows_pixels_to_a_few_levels(
    make, size, mean, most
):
    content = make.encoded(photo(), "jpg", quality=90)
    for seed in range(3):
        crop = augment(Picture(content), size, AugmentConfig(), seed).numpy()
        difference = np.abs(crop - by_pillow(Picture(content).image(), size, seed))
        assert difference.mean() < mean
        assert difference.max() <= most


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("crop_ratio", [2, 1], "crop_ratio must be .smallest"),
        ("crop_ratio", [], "crop_ratio must have at least 2"),
        ("crop_scale", [0.5], "crop_scale must have at least 2"),
        ("crop_scale", [0.0, 1.0], r"crop_scale\[\d\] must be above 0"),
        ("crop_scale", [0.5, 1.5], r"crop_scale\[\d\] must be at most 1"),
    ],
)
def test_impossible_augmentation_is_refused(name, wrong, told):
    with pytest.raises(UserError, match=told):
        AugmentConfig(**{name: wrong})
