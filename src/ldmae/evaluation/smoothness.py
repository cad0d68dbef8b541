"""Latent smoothness: whether a small error in the latent stays a small error in the image.

Latents with noise of growing size, z + ε · σ_c · N(0, 1) with σ_c the latents' standard deviation in channel
c, are decoded and compared with the ORIGINAL images (METHOD: Measuring), so that ε = 0 is plain
reconstruction. An image's noise belongs to its key and is the same at every ε: its curve bends because of the
decoder, not of the draw, and no metric depends on batches or their order.
"""

# B batch, N images, C latent channels, h w latent grid, H W image, E sizes of noise (epsilons), D features

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ldmae.config.evaluation import EPSILONS
from ldmae.contracts import Metric
from ldmae.core.autoencoding import decode, encode_moments
from ldmae.core.random import generator
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.reconstruction import PairMetrics, judges
from ldmae.evaluation.subject import Subject
from ldmae.perception.lpips import PerceptualDistance

_Key = int | str


def latent_noise(
    keys: Sequence[_Key], shape: tuple[int, ...], seed: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Draws N(0, 1) of (B, *shape), each image's by (seed, its key) alone, on the CPU so for every device."""
    rows = [torch.randn(shape, generator=generator(seed, "smoothness", key)) for key in keys]
    return torch.stack(rows).to(device)


def perturbed(latents: Tensor, std: Tensor, noise: Tensor, epsilon: float) -> Tensor:
    """Returns z + ε · σ_c · noise: latents and noise (B, C, h, w), standard deviations (C, 1, 1)."""
    assert std.shape == (latents.shape[1], 1, 1), f"expected (C, 1, 1), got {tuple(std.shape)}"
    assert noise.shape == latents.shape, f"noise {tuple(noise.shape)} for latents {tuple(latents.shape)}"
    return latents + epsilon * std.to(latents) * noise.to(latents)


@torch.no_grad()
def noisy_decodings(
    autoencoder: Any,
    keys: Sequence[_Key],
    latents: Tensor,
    std: Tensor,
    epsilons: Sequence[float] = EPSILONS,
    seed: int = 0,
) -> Iterator[tuple[float, Tensor]]:
    """Yields each ε with the images decoded from latents with noise of that size.

    Args:
        autoencoder: any, on its device.
        keys: (B) what identifies each image in the set, such as its index or its relative path.
        latents: (B, C, h, w) posterior means, raw, as `encode_moments` gives them.
        std: (C, 1, 1) standard deviations of the raw latents, over the training set.
        epsilons: sizes of the noise.
        seed: of the noise.

    Yields:
        ε, and images (B, 3, H, W) in [-1, 1].
    """
    noise = latent_noise(keys, tuple(latents.shape[1:]), seed, latents.device)
    for epsilon in epsilons:
        yield epsilon, decode(autoencoder, perturbed(latents, std, noise, epsilon))


class SmoothnessMetrics:
    """Collects `PSNR(eps=…)`, the perceptual distance and the distances between features at every ε.

    And one number, such as `ST-LPIPS-alex-AUC`: the area under the perceptual distance as a function of ε
    (trapezoids between the means over images at neighbouring ε) divided by the width of ε's range. It is a
    mean distance over that range, on the scale of the distance itself, and contains what reconstruction
    alone costs. Lower is smoother. It depends on which ε were measured.

    Memory, with features: N · (E + 1) · D · 4 bytes, 36 kB an image at six ε on EfficientNet-Lite0.

    Args:
        epsilons: sizes of the noise, distinct.
        perceptual: the perceptual distance, or None.
        networks: further arguments of `PairMetrics`.
    """

    def __init__(
        self,
        epsilons: Sequence[float] = EPSILONS,
        perceptual: PerceptualDistance | None = None,
        **networks: Any,
    ) -> None:
        self.epsilons = sorted(float(epsilon) for epsilon in epsilons)
        self._label = None if perceptual is None else perceptual.label
        self._pairs = {e: PairMetrics(("PSNR",), perceptual, **networks) for e in self.epsilons}

    def update(self, x: Tensor, decoded: Iterable[tuple[float, Tensor]]) -> None:
        """Adds a batch of originals (B, 3, H, W) in [-1, 1], with the images decoded at every ε.

        Raises:
            UserError: a decoded image is not finite, or images are too small for the perceptual distance.
        """
        seen, features = [], None
        for epsilon, images in decoded:
            what = f"an image decoded at eps={epsilon:g}"
            features = self._pairs[epsilon].update(x, images, what, features)
            seen.append(epsilon)
        assert sorted(seen) == self.epsilons, f"decoded at {seen}, expected {self.epsilons}"

    def compute(self) -> list[Metric]:
        """Returns every metric at every ε, and the area under the perceptual curve.

        Raises:
            UserError: no image was added, or too few for a kernel distance of the features.
        """
        found = {epsilon: pairs.compute() for epsilon, pairs in self._pairs.items()}
        metrics = [
            dataclasses.replace(metric, name=f"{metric.name}(eps={epsilon:g})")
            for epsilon, measured in found.items()
            for metric in measured
        ]
        if self._label is not None and len(self.epsilons) > 1:
            metrics.append(self._area([m for of in found.values() for m in of if m.name == self._label]))
        return metrics

    def _area(self, curve: list[Metric]) -> Metric:
        first, last = self.epsilons[0], self.epsilons[-1]
        steps = zip(self.epsilons, self.epsilons[1:], curve, curve[1:], strict=False)
        area = math.fsum((b - a) * (left.value + right.value) / 2 for a, b, left, right in steps)
        return dataclasses.replace(
            curve[0],
            name=f"{self._label}-AUC",
            value=area / (last - first),
            note=f"mean distance over eps from {first:g} to {last:g}",
        )


@torch.no_grad()
def _measure(subject: Subject) -> Measured:
    seed, autoencoder = subject.config.seed, subject.autoencoder
    metrics = SmoothnessMetrics(subject.config.epsilons, **judges(subject))
    for rows, images in subject.batches("smoothness"):
        keys = [subject.keys[row] for row in rows]
        latents = encode_moments(autoencoder, images)[0]
        metrics.update(
            images,
            noisy_decodings(autoencoder, keys, latents, subject.latent_std, metrics.epsilons, seed),
        )
    return Measured(metrics.compute())


SMOOTHNESS = Measurement(
    name="smoothness",
    title="Latent smoothness",
    measure=_measure,
    reads=frozenset(
        {"perceptual", "features", "shrink_covariance", "epsilons", "images", "latent_images", "seed"}
    ),
    needs=("perceptual", "features"),
)
