"""Which object, part or pattern every pixel of an image belongs to: where compression is measured against."""

# H W image, h w latent grid

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, stamp
from ldmae.core.paths import at_home
from ldmae.evaluation.groupings import (
    MaskFolder,
    crop_labels,
    objects_from_alpha,
    parts_by_felzenszwalb,
    parts_from_flat_colours,
    patterns_by_slic,
)
from ldmae.images.base import Subset
from ldmae.images.builtin import EmojiSource
from ldmae.images.sources import FolderSource

LabelMap = Callable[[int, np.ndarray], np.ndarray]
"""From an image's index and its pixels as the autoencoder sees them (H, W, 3) to its groups (H, W)."""


def level_maps(
    source: ImageSource, indices: Sequence[int], size: int, config: EvaluationConfig
) -> dict[str, LabelMap]:
    """Returns for each level at which groups are known what finds them.

    Parts of any picture are found by felzenszwalb, patterns by SLIC; an emoji's object by its opacity and its
    parts by flat colours. Masks take the place of the level that they stand for.

    Args:
        source: the images.
        indices: those that will be asked about; masks are looked for, and compared in size, for them alone.
        size: pixels along a side of what the autoencoder sees.
        config: where masks lie, if anywhere.

    Raises:
        UserError: the masks do not match the images.
    """
    maps: dict[str, LabelMap] = {
        "part": lambda index, pixels: parts_by_felzenszwalb(pixels),
        "pattern": lambda index, pixels: patterns_by_slic(pixels),
    }
    if all(isinstance(_origin(source, index)[0], EmojiSource) for index in range(min(1, len(source)))):
        maps["object"] = lambda index, pixels: crop_labels(objects_from_alpha(_alpha(source, index)), size)
        maps["part"] = lambda index, pixels: crop_labels(parts_from_flat_colours(_alpha(source, index)), size)
    if config.masks is not None:
        masks = _masks(source, indices, config)
        place = {index: k for k, index in enumerate(indices)}
        maps[config.mask_level] = lambda index, pixels: crop_labels(
            masks.read(place[index], _shape(source, index)), size
        )
    return {level: maps[level] for level in ("object", "part", "pattern") if level in maps}


def masks_fingerprint(config: EvaluationConfig) -> str:
    """Returns a hash of the masks' names, sizes and times of change; empty where there are none."""
    if config.masks is None:
        return ""
    files = sorted(path for path in Path(at_home(config.masks)).rglob("*") if path.is_file())
    return fingerprint(f"{stamp(path):016x}" for path in files)


def _origin(source: ImageSource, index: int) -> tuple[Any, int]:
    return source.origin(index) if isinstance(source, Subset) else (source, index)


def _shape(source: ImageSource, index: int) -> tuple[int, int]:
    width, height = source.read(index).size
    return height, width


def _alpha(source: ImageSource, index: int) -> np.ndarray:
    emoji, place = _origin(source, index)
    return np.asarray(emoji.read_alpha(place))


def _masks(source: ImageSource, indices: Sequence[int], config: EvaluationConfig) -> MaskFolder:
    names = []
    for index in indices:
        folder, place = _origin(source, index)
        if not isinstance(folder, FolderSource):
            raise UserError(
                f"evaluation.masks={config.masks} needs images in a folder, whose names the masks share; "
                f"got {source.name}. Unpack the images into a folder, or leave the masks out"
            )
        if Path(at_home(str(config.masks))).resolve() == folder.folder.resolve():
            raise UserError(
                f"evaluation.masks={config.masks} is the images' own folder; name the one with label images"
            )
        names.append(str(Path(folder.describe(place)).relative_to(folder.folder)))
    masks = MaskFolder(at_home(str(config.masks)), names, config.ignored_labels)
    masks.check_sizes([_shape(source, index) for index in indices])
    return masks
