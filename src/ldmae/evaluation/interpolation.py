"""What lies between two images: latents on the straight line from one to the other, decoded.

What is better: at a line's own end (`first` at t = 0, `second` at t = 1) the figures are those of plain
reconstruction, so that a higher PSNR and a lower perceptual distance are better. All other figures are
NEITHER better high nor low: they describe. Two pictures laid over each other are near to both ends in pixels;
a picture of its own may be far from both. They say how evenly one image turns into the other (a latent space
with holes leaps, or leaves both ends far away at once); whether what lies between is a picture is for eyes:
`interpolation_strip`.
"""

# P pairs, C latent channels, h w latent grid, H W image, F fractions

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmae.config.evaluation import FRACTIONS
from ldmae.contracts import Result
from ldmae.core.autoencoding import decode
from ldmae.core.errors import UserError
from ldmae.core.random import key_seed
from ldmae.evaluation.smoothness import Key, as_saved, mean_result, pair_figures
from ldmae.perception.lpips import PerceptualDistance

ENDS = ("first", "second")


def choose_pairs(keys: Sequence[Key], pairs: int, seed: int = 0) -> list[tuple[int, int]]:
    """Chooses pairs of images, no image twice, by their keys' hash: the images' order plays no part.

    Args:
        keys: what identifies each image in the set, such as its relative path.
        pairs: how many, at most: there are no more than half the images.
        seed: which ones.

    Returns:
        Positions in `keys`.

    Raises:
        UserError: there are fewer than two images.
    """
    if len(keys) < 2:
        raise UserError(f"interpolation needs at least 2 images, got {len(keys)}; hold out more")
    order = sorted(range(len(keys)), key=lambda i: (key_seed(seed, "interpolation", keys[i]), str(keys[i])))
    return [(order[2 * i], order[2 * i + 1]) for i in range(min(pairs, len(keys) // 2))]


@torch.no_grad()
def interpolated_decodings(
    autoencoder: Any, first: Tensor, second: Tensor, fractions: Sequence[float] = FRACTIONS
) -> Iterator[tuple[float, Tensor]]:
    """Yields each fraction t with the images decoded from (1 − t) · first + t · second.

    Args:
        autoencoder: any, on its device.
        first: (P, C, h, w) posterior means, raw.
        second: (P, C, h, w) likewise.
        fractions: places on the line.

    Yields:
        t, and images (P, 3, H, W) in [-1, 1].
    """
    assert first.shape == second.shape, f"latents {tuple(first.shape)} and {tuple(second.shape)}"
    for t in fractions:
        yield t, decode(autoencoder, (1 - t) * first + t * second)


class InterpolationMetrics:
    """Collects, pair by pair, how far images between two others are from both.

    At every fraction t: `PSNR-first(t=…)` and `PSNR-second(t=…)`, and the perceptual distances such as
    `ST-LPIPS-alex-first(t=…)`, to the ORIGINAL images at the line's ends. Only `first` at t = 0 and `second`
    at t = 1 have a better direction (see the module's beginning); the others' `better` is empty.

    Args:
        fractions: places on the line.
        perceptual: the perceptual distance, or None.
        trained_on: names (in settings) of the perceptual distances that the autoencoder was trained with.

    Raises:
        UserError: the fractions are not distinct numbers in [0, 1].
    """

    def __init__(
        self,
        fractions: Sequence[float] = FRACTIONS,
        perceptual: PerceptualDistance | None = None,
        trained_on: Collection[str] = (),
    ) -> None:
        distinct = len({f"{t:g}" for t in fractions}) == len(fractions) > 0
        if not distinct or not all(0 <= t <= 1 for t in fractions):
            raise UserError(
                f"fractions must be distinct numbers in [0, 1], got {list(fractions)}; "
                f"take for example {list(FRACTIONS)}"
            )
        self.fractions = sorted(float(t) for t in fractions)
        self._perceptual = perceptual
        self._trained_on_it = perceptual is not None and perceptual.name in trained_on
        self._values: dict[Key, dict[str, float]] = {}

    @torch.no_grad()
    def update(
        self, keys: Sequence[Key], first: Tensor, second: Tensor, decoded: Iterable[tuple[float, Tensor]]
    ) -> None:
        """Adds pairs, rounded to uint8.

        Args:
            keys: (P) what identifies each pair in the set, such as its number.
            first: (P, 3, H, W) originals in [-1, 1] at t = 0.
            second: (P, 3, H, W) originals in [-1, 1] at t = 1.
            decoded: for every fraction, the images (P, 3, H, W) (see `interpolated_decodings`).

        Raises:
            UserError: a decoded image is not finite, or images are too small for the perceptual distance.
        """
        ends = dict(zip(ENDS, (as_saved(images, "an original") for images in (first, second)), strict=True))
        values: list[dict[str, float]] = [{} for _ in keys]
        seen = []
        for t, images in decoded:
            assert images.shape == first.shape == second.shape, "originals and decoded differ in shape"
            saved = as_saved(images, f"an image decoded at t={t:g}")
            for end, original in ends.items():
                for name, column in pair_figures(original, saved, self._perceptual).items():
                    for row, value in zip(values, column, strict=True):
                        row[_at(name, end, t)] = value
            seen.append(t)
        assert sorted(seen) == self.fractions, f"decoded at {seen}, expected {self.fractions}"
        self.merge(dict(zip(keys, values, strict=True)))

    def per_image(self) -> dict[Key, dict[str, float]]:
        """Returns every pair's figures, by key and name: to gather over processes, for spreads."""
        return {key: dict(row) for key, row in self._values.items()}

    def merge(self, values: dict[Key, dict[str, float]]) -> None:
        """Adds the pairs that another process collected (its `per_image()`)."""
        assert not values.keys() & self._values.keys(), "keys are not unique in the set"
        self._values.update(values)

    def compute(self) -> list[Result]:
        """Returns the mean over pairs of every figure, to the first image and to the second, at every t.

        Raises:
            UserError: no pair was added.
        """
        if not self._values:
            raise UserError("there are no pairs to interpolate between; hold out at least 2 images")
        names = ["PSNR", *([] if self._perceptual is None else [self._perceptual.label])]
        return [self._result(name, end, t) for t in self.fractions for name in names for end in ENDS]

    def _result(self, name: str, end: str, t: float) -> Result:
        values = [row[_at(name, end, t)] for row in self._values.values()]
        own_end = t == ENDS.index(end)
        better = ("higher" if name == "PSNR" else "lower") if own_end else ""
        judged = self._trained_on_it and name != "PSNR"
        note = "the autoencoder was trained on this metric" if judged else ""
        result = mean_result(_at(name, end, t), values, better=better, note=note)
        return dataclasses.replace(result, counts={"pairs": len(values)})


def interpolation_strip(
    first: Tensor, second: Tensor, decoded: Iterable[tuple[float, Tensor]], gap: int = 2
) -> np.ndarray:
    """Lays out pairs as rows: the first original, what was decoded from t = 0 to 1, the second original.

    Args:
        first: (P, 3, H, W) originals in [-1, 1].
        second: (P, 3, H, W) originals in [-1, 1].
        decoded: for every fraction, in any order, the images (P, 3, H, W).
        gap: white pixels between pictures.

    Returns:
        (P · (H + gap) − gap, (F + 2) · (W + gap) − gap, 3) uint8.
    """
    between = [images for _, images in sorted(decoded, key=lambda item: item[0])]
    columns = [as_saved(images.cpu(), "an image") for images in (first, *between, second)]
    tiles = torch.stack(columns, dim=1).permute(0, 1, 3, 4, 2).numpy()  # (P, F + 2, H, W, 3)
    rows, cols, height, width, _ = tiles.shape
    shape = (rows * (height + gap) - gap, cols * (width + gap) - gap, 3)
    picture = np.full(shape, 255, dtype=np.uint8)
    for i, j in np.ndindex(rows, cols):
        y, x = i * (height + gap), j * (width + gap)
        picture[y : y + height, x : x + width] = tiles[i, j]
    return picture


def _at(name: str, end: str, t: float) -> str:
    return f"{name}-{end}(t={t:g})"
