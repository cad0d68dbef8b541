"""Settings of the images and of the latents on disk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ldmae.config.base import NUMBER, Batch, Count, Processes, Range, Settings, Share


class DataConfig(Settings):
    """Where the images come from, and which of them are held out."""

    source: str = ""
    """A folder (its subfolders are classes), `emoji`, `digits` or `photos`, a Hugging Face dataset, parquet
    or arrow files, tar shards such as `shards/{000..012}.tar`, their http(s) address, or a source of yours,
    `package.module:Name`."""
    val: str = "0.05"
    """Held-out images: a share in (0, 1) drawn by hash of the content, another source, or `split:NAME`."""
    against: str | None = None
    """Other images on which a decoder that is trained alone is measured too, before and after: those of its
    source, to see what it loses there. Same forms as `source`."""
    max_unreadable: Share = 0.01
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

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> Self:
        if self.classes is not None and not 0 < len(self.classes) == len(set(self.classes)):
            raise ValueError(
                f"classes must name each class once, at least one, got {self.classes}; omit it to take all"
            )
        return self


class AugmentConfig(Settings):
    """Random changes to training images; held-out images and latents never see them."""

    crop_scale: Range[Annotated[float, Field(gt=0, le=1), NUMBER]] = [0.75, 1.0]
    """Share of the image's area that a random crop keeps: smallest and largest, in (0, 1]."""
    crop_ratio: Range[Annotated[float, Field(ge=1e-3, le=1e3), NUMBER]] = [3 / 4, 4 / 3]
    """Width over height of a random crop: smallest and largest."""
    horizontal_flip: bool = True
    """Whether every other image is mirrored; wrong for digits and writing."""
    gpu_decoding: bool = False
    """Decode JPEG files on the GPU by nvJPEG, where CPU cores are too few to load; needs CUDA. Pixels differ
    by a few levels from those of the CPU, so it may not change on the way."""


class LatentsConfig(Settings):
    """How training images become latents on disk, and how they are read."""

    moments: bool = True
    """Keep mean and log variance and draw z each time it is read; false: keep the mean alone."""
    flip: bool = True
    """Encode each image mirrored too; training then reads one or the other, by key."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format on disk."""
    batch_size: Batch = 64
    """Images encoded at once on each process."""
    num_workers: Processes = 1
    """Processes that load images, beside each that encodes; 0: none. More may change a stream's order."""
    shard_size: Count = 10_000
    """Images a shard."""
    statistics_samples: Count = 10_000
    """Random latents (at most) from which the per-channel mean and standard deviation are computed."""
    fingerprint: Literal["check", "skip"] = "check"
    """`check` refuses latents of another autoencoder or preprocessing; `skip` takes foreign shards."""
