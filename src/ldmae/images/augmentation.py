"""Random crops and mirror images for training, drawn by key and cut from pixels in uint8."""

# H W image height and width in pixels, s side of the result

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmae.config.data import AugmentConfig
from ldmae.core.random import uniforms
from ldmae.images.decoding import Picture

_LARGEST_SHRINK = 8
"""JPEG's blocks have 8 × 8 pixels."""


class Crop(NamedTuple):
    """What is cut from an image, in pixels of its full size, and whether it is then mirrored."""

    left: int
    top: int
    right: int
    bottom: int
    shrink: int
    """By how much the image may be reduced beforehand: all sides of the crop are multiples of it."""
    mirrored: bool


def draw_crop(width: int, height: int, size: int, config: AugmentConfig, *key: int | str) -> Crop:
    """Draws by key a crop as torchvision's RandomResizedCrop does, and whether it is mirrored.

    A crop at least twice as large as the result's `size`, s, snaps to a grid of 2, 4 or 8 pixels, whatever
    the image's format, so that a decoder may reduce the image by as much without moving the crop.
    """
    mirror, *draws = uniforms(41, *key)
    box = _draw_box(width, height, config.crop_scale, config.crop_ratio, draws)
    shortest, shrink = min(box[2] - box[0], box[3] - box[1]), 1
    while shrink < _LARGEST_SHRINK and shortest >= 2 * shrink * size:
        shrink *= 2
    left, top, right, bottom = (side // shrink * shrink for side in box)
    return Crop(left, top, right, bottom, shrink, config.horizontal_flip and mirror < 0.5)


def _draw_box(
    width: int, height: int, scale: list[float], ratio: list[float], draws: list[float]
) -> tuple[int, int, int, int]:
    # torchvision's rule: ten tries at an area and a ratio, then the largest centred crop of an allowed ratio.
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for k in range(0, len(draws), 4):
        area = width * height * (scale[0] + draws[k] * (scale[1] - scale[0]))
        aspect = math.exp(low + draws[k + 1] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[k + 2] * (width - w + 1)), int(draws[k + 3] * (height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def cut(image: Tensor, crop: Crop, size: int) -> Tensor:
    """Returns a crop (3, s, s) float32 in [0, 255] of an image (3, H, W) uint8, on its device."""
    image = image[None, :, crop.top : crop.bottom, crop.left : crop.right].float()
    image = F.interpolate(image, (size, size), mode="bicubic", antialias=True)[0].round_().clamp_(0, 255)
    return image.flip(-1) if crop.mirrored else image


def augment(picture: Picture, size: int, config: AugmentConfig, *key: int | str) -> Tensor:
    """Returns a random crop (s, s, 3) uint8 drawn by key, mirrored every other time if `config` says so.

    Raises:
        OSError: the image file is truncated or broken.
    """
    crop = draw_crop(*picture.size, size, config, *key)
    pixels, shrunk = picture.pixels(crop.shrink)
    left, top, right, bottom = (side // shrunk for side in crop[:4])
    image = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)[None]  # (1, 3, h, w)
    image = image.contiguous(memory_format=torch.channels_last)  # what the uint8 kernel reads fastest
    image = F.interpolate(image, (size, size), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    return image.flip(1) if crop.mirrored else image
