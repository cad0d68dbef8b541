"""Settings of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured of a trained run, and on how much."""

    perceptual: str = "st-lpips-alex"
    """Perceptual distance of reconstructions: st-lpips-alex, st-lpips-vgg, lpips-vgg or lpips-alex."""
    features: str = "efficientnet_lite0"
    """Network whose features are compared: efficientnet_lite0, or inception (which makes true KID, FID)."""
    samples: int = 1000
    """Images to generate for the distances; labels are balanced over the classes."""
    real_images: int | None = None
    """Training images (at most, drawn at random) that the generated ones are compared with; None: all."""
    batch_size: int = 64
    """Images at a time; no figure depends on it."""
    guidance_scale: float | None = None
    """Guidance of the generated images; None takes the sampling settings'."""
    recogniser: bool = False
    """Also measure the share of generated images that a classifier of real ones takes for what was asked."""
    seed: int = 0
    """Seed of the noise that images are generated from and of the kernel distance's subsets."""
