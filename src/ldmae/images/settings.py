"""Settings of the images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ldmae.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from, and which of them are held out."""

    source: str = ""
    """A folder (its subfolders are classes), `emoji`, `digits` or `photos`, a Hugging Face dataset, parquet
    or arrow files, tar shards such as `shards/{000..012}.tar`, or their http(s) address."""
    val: str = "0.05"
    """Held-out images: a share in (0, 1) drawn by hash of the content, another source, or `split:NAME`."""
    max_unreadable: float = 0.01
    """Share of the images that may be unreadable (named, skipped and counted) before it is an error."""
    split: str = "train"
    """Which split of a Hugging Face dataset to take."""
    image_column: str | None = None
    """A table's column of images; found by type if not given."""
    label_column: str | None = None
    """A table's column of labels; found by type or name if not given."""
    stream: bool = False
    """Read a Hub dataset or shards front to back without storing them; such a run does not resume exactly."""
    classes: list[str] | None = None
    """Keep only these as classes, in this order; other images train the autoencoder alone. For a
    stream of shards it names the labels."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_unreadable <= 1:
            raise UserError(f"data.max_unreadable must be a share in [0, 1], got {self.max_unreadable}")
        if self.classes is not None and not 0 < len(self.classes) == len(set(self.classes)):
            raise UserError(
                f"data.classes must name each class once, at least one, got {self.classes}; leave it out to "
                "take all"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images; held-out images and latents never see them."""

    crop_scale: list[float] = field(default_factory=lambda: [0.75, 1.0])
    """Share of the image's area that a random crop keeps: smallest and largest, in (0, 1]."""
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Width over height of a random crop: smallest and largest."""
    horizontal_flip: bool = True
    """Whether every other image is mirrored; wrong for digits and writing."""

    def __post_init__(self) -> None:
        for name, limit in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= limit:
                raise UserError(
                    f"augment.{name} must be [smallest, largest] with 0 < smallest <= largest"
                    f"{' <= 1' if limit == 1 else ''}, got {bounds}"
                )
