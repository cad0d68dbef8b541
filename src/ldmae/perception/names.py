"""The networks that judge images, by their names in settings."""

from __future__ import annotations

from typing import NamedTuple

DISTANCES = {
    "st-lpips-alex": "ST-LPIPS-alex",
    "st-lpips-vgg": "ST-LPIPS-vgg",
    "lpips-alex": "LPIPS-alex",
    "lpips-vgg": "LPIPS-vgg",
}
"""The distances' names in settings, and in tables: the shift-tolerant ones are never called LPIPS."""

SMALLEST = {"st-lpips-alex": 21, "st-lpips-vgg": 18, "lpips-alex": 31, "lpips-vgg": 16}
"""Pixels that an image needs in height and in width: below, a stage has nothing left to look at."""


class Labels(NamedTuple):
    """What the figures on one network's features are called."""

    kid: str
    fd: str
    sfd: str
    inception_score: str
    precision: str
    recall: str
    mind: str


FEATURES = {
    **{
        name: Labels(
            *(f"{kind}-{name}" for kind in ("KID", "FD", "sFD", "IS", "precision", "recall", "MIND"))
        )
        for name in ("efficientnet_lite0", "efficientnet_lite2")
    },
    "inception": Labels("KID", "FID", "sFID", "IS", "precision", "recall", "MIND"),
}
"""By network: only the figures on Inception's features bear the literature's names."""

_DINOV2 = ("dinov2-small", "dinov2-base", "dinov2-large", "dinov2-giant")
SPATIAL = ("efficientnet_lite0", *_DINOV2)
"""Networks whose features on a grid latents can be aligned with."""
