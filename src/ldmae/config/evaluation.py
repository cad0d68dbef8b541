"""Settings of the evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ldmae.config.base import NUMBER, Batch, Count, Guidance, Seed, Settings, Share

EPSILONS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3)
"""Sizes of the noise, in standard deviations of the latents' channels."""

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Places on the line: 0 is the first image, 1 the second."""

Distance = Literal["st-lpips-alex", "st-lpips-vgg", "lpips-vgg", "lpips-alex"]
_Features = Literal["efficientnet_lite0", "efficientnet_lite2", "inception"]


class EvaluationConfig(Settings):
    """What is measured of a trained run, and on how much."""

    perceptual: Distance = "st-lpips-alex"
    """Perceptual distance of reconstructions."""
    features: _Features = "efficientnet_lite0"
    """Network whose features are compared; inception makes true KID and FID."""
    second_features: _Features | None = None
    """Another network, on whose features `evaluate-samples` measures KID (and FD) too; null: none."""
    samples: Count = 1000
    """Images to generate for the distances; in a run, with labels in the training images' proportion."""
    real_images: Count | None = None
    """Training images (at most, drawn at random) that the generated ones are compared with; null: all. In
    `evaluate-samples`: real images whose own features are kept, null: 10,000; FID and sFID take all."""
    batch_size: Batch = 64
    """Images at a time; metrics depend on it by no more than float32 rounding."""
    guidance_scale: Guidance | None = None
    """Guidance of the generated images; null takes the sampling settings'."""
    recogniser: bool = False
    """Also measure the share of generated images that a classifier of real ones takes for what was asked."""
    sample_labels: Literal["balanced", "random", "training"] = "balanced"
    """Classes of the images that `evaluate-samples` generates: `balanced`, each as often, or `random`; or
    `training`, of a run: in its training images' proportion, compared with those that have a class."""
    shrink_covariance: bool = False
    """Fréchet distances by shrunk covariances where images are fewer than features; the note says so."""
    images: Count | None = None
    """Images to measure an autoencoder on (at most, drawn by key); null: all that are held out."""
    latent_images: Count = 2000
    """Training images (at most, drawn by key) for the latents' standard deviation and the linear probe."""
    epsilons: Annotated[list[Annotated[float, Field(ge=0, le=1000), NUMBER]], Field(min_length=1)] = [
        *EPSILONS
    ]
    """Smoothness: sizes of the noise added to latents, in standard deviations of their channels."""
    fractions: Annotated[list[Share], Field(min_length=1)] = [*FRACTIONS]
    """Interpolation: places on the line from one image's latents (0) to another's (1)."""
    pairs: Count = 64
    """Interpolation: pairs of images (at most)."""
    masks: str | None = None
    """Compression: a folder of label images, named as the images in their folder; null: groups are found by
    segmentation (and, for `emoji`, by opacity and flat colours)."""
    mask_level: Literal["object", "part", "pattern"] = "object"
    """Compression: the level that the masks stand for."""
    ignored_labels: list[Annotated[int, Field(ge=-(2**31), lt=2**32), NUMBER]] = []
    """Compression: values of the masks that mean no group, such as 255."""
    speed_batch_size: Batch = 16
    """Efficiency: images at once while encode and decode are timed."""
    speed_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Efficiency: number format while encode and decode are timed."""
    seed: Seed = 0
    """Seed of the noise that images are generated from, of latent noise, and of what is drawn."""

    @property
    def judges(self) -> tuple[str, ...]:
        """The networks whose features are compared."""
        return (self.features,) if self.second_features is None else (self.features, self.second_features)

    @model_validator(mode="after")
    def _values_are_distinct(self) -> Self:
        if self.second_features == self.features:
            raise ValueError(
                f"second_features={self.features} is that of evaluation.features; name another or null"
            )
        for name in ("epsilons", "fractions"):
            values = getattr(self, name)
            if len({f"{value:g}" for value in values}) < len(values):
                raise ValueError(f"{name} must be distinct numbers, got {values}; remove the repeated one")
        return self
