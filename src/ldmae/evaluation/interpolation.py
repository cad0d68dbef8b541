"""Interpolation: latents on the straight line from one image's to another's, decoded.

At a line's own end (`first` at t = 0, `second` at t = 1) the metrics are those of plain reconstruction: a
higher PSNR and a lower perceptual distance are better. All others are NEITHER better high nor low: they
describe. Two images laid over each other are near to both ends in pixels; an image of its own may be far from
both. They say how evenly one image turns into the other (a latent space with holes leaps, or leaves both ends
far away at once). Whether an image between is a realistic one is for eyes: see the pictures.
"""

# P pairs, C latent channels, h w latent grid, H W image, F fractions

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmae.config.evaluation import FRACTIONS
from ldmae.contracts import Metric
from ldmae.core.autoencoding import decode, encode_moments
from ldmae.core.errors import check_enough
from ldmae.core.random import key_seed
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.reconstruction import PairMetrics, hwc
from ldmae.evaluation.subject import Subject
from ldmae.perception.lpips import PerceptualDistance

_ENDS = {"first": 0.0, "second": 1.0}
"""A line's ends, and where they lie on it."""

_SHOWN = 4
"""Pairs that are kept as pictures."""


def _choose_pairs(keys: Sequence[str], pairs: int, seed: int = 0) -> list[tuple[int, int]]:
    """Chooses pairs of places in `keys`, none twice, by the keys' hash: the images' order plays no part.

    There are no more pairs than half the images. Raises a UserError for fewer than two.
    """
    check_enough("interpolation", 2, len(keys), "images", "hold out more")
    order = sorted(range(len(keys)), key=lambda i: (key_seed(seed, "interpolation", keys[i]), keys[i]))
    return [(order[2 * i], order[2 * i + 1]) for i in range(min(pairs, len(keys) // 2))]


@torch.no_grad()
def interpolated_decodings(
    autoencoder: Any, first: Tensor, second: Tensor, fractions: Sequence[float] = FRACTIONS
) -> Iterator[tuple[float, Tensor]]:
    """Yields each fraction t with the images decoded from (1 − t) · first + t · second.

    Both are raw posterior means (P, C, h, w), the images (P, 3, H, W) in [-1, 1].
    """
    assert first.shape == second.shape, f"latents {tuple(first.shape)} and {tuple(second.shape)}"
    for t in fractions:
        yield t, decode(autoencoder, (1 - t) * first + t * second)


class _InterpolationMetrics:
    """Collects, pair by pair, how far images between two others are from both.

    At every fraction t: `PSNR-first(t=…)` and `PSNR-second(t=…)`, and the perceptual distances such as
    `ST-LPIPS-alex-first(t=…)`, to the ORIGINAL images at the line's ends. Only `first` at t = 0 and `second`
    at t = 1 have a better direction (see the module's beginning); the others' `better` is empty.

    Args:
        fractions: places on the line, distinct and in [0, 1].
        perceptual: the perceptual distance, or None.
        networks: further arguments of `PairMetrics`.
    """

    def __init__(
        self,
        fractions: Sequence[float] = FRACTIONS,
        perceptual: PerceptualDistance | None = None,
        **networks: Any,
    ) -> None:
        self.fractions = sorted(float(t) for t in fractions)
        self._pairs = {
            (t, end): PairMetrics(("PSNR",), perceptual, counted="pairs", **networks)
            for t in self.fractions
            for end in _ENDS
        }

    def update(self, first: Tensor, second: Tensor, decoded: Iterable[tuple[float, Tensor]]) -> None:
        """Adds pairs of originals (P, 3, H, W) in [-1, 1], with the images decoded at every fraction.

        Raises:
            UserError: a decoded image is not finite, or images are too small for the perceptual distance.
        """
        seen = []
        for t, images in decoded:
            for end, original in zip(_ENDS, (first, second), strict=True):
                self._pairs[t, end].update(original, images, f"an image decoded at t={t:g}")
            seen.append(t)
        assert sorted(seen) == self.fractions, f"decoded at {seen}, expected {self.fractions}"

    def compute(self) -> list[Metric]:
        """Returns the mean over pairs of every metric, to the first image and to the second, at every t.

        Raises:
            UserError: no pair was added.
        """
        metrics = []
        for t in self.fractions:
            for both in zip(*(self._pairs[t, end].compute() for end in _ENDS), strict=True):
                for (end, place), metric in zip(_ENDS.items(), both, strict=True):
                    better = metric.better if t == place else ""
                    name = f"{metric.name}-{end}(t={t:g})"
                    metrics.append(dataclasses.replace(metric, name=name, better=better))
        return metrics


@torch.no_grad()
def _measure(subject: Subject) -> Measured:
    config, shown = subject.config, []
    metrics = _InterpolationMetrics(config.fractions, subject.perceptual, trained_on=subject.trained_on)
    pairs = _choose_pairs([subject.keys[row] for row in subject.chosen], config.pairs, config.seed)
    for i in range(0, len(pairs), config.batch_size):
        places = np.array(pairs[i : i + config.batch_size])  # (P, 2)
        ends = [subject.images(subject.chosen[places[:, end]]) for end in (0, 1)]
        first, second = (encode_moments(subject.autoencoder, images)[0] for images in ends)
        decoded = list(interpolated_decodings(subject.autoencoder, first, second, metrics.fractions))
        metrics.update(ends[0], ends[1], decoded)
        if not shown:
            shown = [images[:_SHOWN] for images in (ends[0], *(images for _, images in decoded), ends[1])]
    pictures = {"rows": hwc(torch.stack(shown, dim=1)), "fractions": np.array(metrics.fractions)}
    return Measured(metrics.compute(), pictures)


INTERPOLATION = Measurement(
    name="interpolation",
    title="Between two images",
    measure=_measure,
    reads=frozenset({"perceptual", "fractions", "pairs", "images", "seed"}),
    needs=("perceptual",),
)
