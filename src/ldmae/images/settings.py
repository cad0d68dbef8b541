"""Settings of the images."""

from __future__ import annotations

from dataclasses import dataclass

from ldmae.core.bounds import Bounded, number
from ldmae.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig(Bounded):
    """Where the images come from, and which of them are held out."""

    group = "data."

    source: str = ""
    """A folder (its subfolders are classes), `emoji`, `digits` or `photos`, a Hugging Face dataset, parquet
    or arrow files, tar shards such as `shards/{000..012}.tar`, or their http(s) address."""
    val: str = "0.05"
    """Held-out images: a share in (0, 1) drawn by hash of the content, another source, or `split:NAME`."""
    max_unreadable: float = number(0.01, ge=0, le=1)
    """Share of the images that may be unreadable (named, skipped and counted) before it is an error."""
    split: str = "train"
    """Which split of a Hugging Face dataset to take."""
    image_column: str | None = None
    """A table's column of images; found by type if not given."""
    label_column: str | None = None
    """A table's column of labels; found by type or name if not given."""
    image_part: str | None = None
    """Which part of a tar shard's sample is its image, where it has several: `rgb.png`; or `all` of them."""
    stream: bool = False
    """Read a Hub dataset or shards front to back without storing them; such a run does not resume exactly."""
    classes: list[str] | None = None
    """Keep only these as classes, in this order; other images train the autoencoder alone. For a
    stream of shards it names the labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and not 0 < len(self.classes) == len(set(self.classes)):
            raise UserError(
                f"data.classes must name each class once, at least one, got {self.classes}; leave it out to "
                "take all"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Bounded):
    """Random changes to training images; held-out images and latents never see them."""

    group = "augment."

    crop_scale: list[float] = number([0.75, 1.0], gt=0, le=1)
    """Share of the image's area that a random crop keeps: smallest and largest, in (0, 1]."""
    crop_ratio: list[float] = number([3 / 4, 4 / 3], ge=1e-3, le=1e3)
    """Width over height of a random crop: smallest and largest."""
    horizontal_flip: bool = True
    """Whether every other image is mirrored; wrong for digits and writing."""
    gpu_decoding: bool = False
    """Decode JPEG files on the GPU by nvJPEG, where CPU cores are too few to load; needs CUDA. Pixels differ
    by a few levels from those of the CPU, so it may not change on the way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop_scale", "crop_ratio"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                raise UserError(f"augment.{name} must be [smallest, largest], got {bounds}")
