"""Settings of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from ldmae.core.bounds import MOST, MOST_AT_ONCE, SEEDS, Bounded, number
from ldmae.core.errors import UserError, nearest
from ldmae.perception.names import FEATURES

EPSILONS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3)
"""Sizes of the noise, in deviations of the latents' channels."""

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Places on the line: 0 is the first image, 1 the second."""

SPEED_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Bounded):
    """What is measured of a trained run, and on how much."""

    group = "evaluation."

    perceptual: str = "st-lpips-alex"
    """Perceptual distance of reconstructions: st-lpips-alex, st-lpips-vgg, lpips-vgg or lpips-alex."""
    features: str = "efficientnet_lite0"
    """Network whose features are compared: efficientnet_lite0, efficientnet_lite2, or inception (which makes
    true KID, FID)."""
    second_features: str | None = None
    """Another network, on whose features `evaluate-samples` measures KID (and FD) too; None: none."""
    samples: int = number(1000, ge=1, le=MOST)
    """Images to generate for the distances; in a run, with labels in the training images' proportion."""
    real_images: int | None = number(None, ge=1, le=MOST)
    """Training images (at most, drawn at random) that the generated ones are compared with; None: all. In
    `evaluate-samples`: real images whose own features are kept, None: 10,000; FID and sFID take all."""
    batch_size: int = number(64, ge=1, le=MOST_AT_ONCE)
    """Images at a time; no metric depends on it."""
    guidance_scale: float | None = number(None, ge=-1e4, le=1e4)
    """Guidance of the generated images; None takes the sampling settings'."""
    recogniser: bool = False
    """Also measure the share of generated images that a classifier of real ones takes for what was asked."""
    sample_labels: str = "balanced"
    """Classes of the images that `evaluate-samples` generates: `balanced`, each as often, or `random`; or
    `training`, of a run: in its training images' proportion, compared with those that bear a class."""
    shrink_covariance: bool = False
    """Fréchet distances by shrunk covariances where images are fewer than features; the note says so."""
    images: int | None = number(None, ge=1, le=MOST)
    """Images to measure an autoencoder on (at most, drawn by key); None: all that are held out."""
    latent_images: int = number(2000, ge=1, le=MOST)
    """Training images (at most, drawn by key) for the latents' standard deviation and the linear probe."""
    epsilons: list[float] = number(list(EPSILONS), ge=0, le=1000)
    """Smoothness: sizes of the noise added to latents, in deviations of their channels."""
    fractions: list[float] = number(list(FRACTIONS), ge=0, le=1)
    """Interpolation: places on the line from one image's latents (0) to another's (1)."""
    pairs: int = number(64, ge=1, le=MOST)
    """Interpolation: pairs of images (at most)."""
    masks: str | None = None
    """Compression: a folder of label images, named as the images in their folder; None: groups are found by
    segmentation (and, for `emoji`, by opacity and flat colours)."""
    mask_level: str = "object"
    """Compression: the level that the masks stand for: `object`, `part` or `pattern`."""
    ignored_labels: list[int] = number([], ge=-(2**31), lt=2**32)
    """Compression: values of the masks that mean no group, such as 255."""
    speed_batch_size: int = number(16, ge=1, le=MOST_AT_ONCE)
    """Efficiency: images at once while encode and decode are timed."""
    speed_dtype: str = "float32"
    """Efficiency: number format while encode and decode are timed: float32, bfloat16 or float16."""
    seed: int = number(0, **SEEDS)
    """Seed of the noise that images are generated from, of latent noise, and of what is drawn."""

    @property
    def judges(self) -> tuple[str, ...]:
        """The networks whose features are compared."""
        return (self.features,) if self.second_features is None else (self.features, self.second_features)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.judges:
            if name not in FEATURES:
                key = "features" if name == self.features else "second_features"
                raise UserError(
                    f"evaluation.{key}={name!r} is unknown{nearest(name, FEATURES)}; "
                    f"known: {', '.join(FEATURES)}"
                )
        if self.second_features == self.features:
            raise UserError(
                f"evaluation.second_features={self.features} is that of evaluation.features; name another"
            )
        for name in ("epsilons", "fractions"):
            values = getattr(self, name)
            if not len({f"{value:g}" for value in values}) == len(values) > 0:
                raise UserError(f"evaluation.{name} must be distinct numbers, at least one, got {values}")
        if self.sample_labels not in ("balanced", "random", "training"):
            raise UserError(
                f"evaluation.sample_labels must be balanced, random or training, got {self.sample_labels!r}"
            )
        if self.mask_level not in ("object", "part", "pattern"):
            raise UserError(f"evaluation.mask_level must be object, part or pattern, got {self.mask_level!r}")
        if self.speed_dtype not in SPEED_DTYPES:
            raise UserError(
                f"evaluation.speed_dtype must be one of {', '.join(SPEED_DTYPES)}, got {self.speed_dtype!r}"
            )
