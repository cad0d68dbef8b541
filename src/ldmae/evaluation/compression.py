"""Perceptual compression: whether latents of one thing lie close together and of different things apart.

Definitions (the paper prints figures σ² and ρ but gives no code or formula; these are this project's):

- A *cell* is one place of the latent grid: C numbers of the posterior's mean, standardised per channel with
  the mean and deviation over all cells of the set. A constant channel counts as 0.
- A *group* is one label in one image: the same label in another image is another group. Cells with the label
  -1 belong to none, and are left out of all that follows.
- σ² = tr(within-group covariance) / tr(total covariance), in [0, 1]: with x_i the N cells of the set that
  have a group, m their mean and m_g(i) the mean of the group of cell i,
  σ² = Σ_i |x_i − m_g(i)|² / Σ_i |x_i − m|². Lower is tighter. It falls with ever smaller groups whatever the
  latents are: cells put at random into groups of the same sizes would give (N − G) / (N − 1) for G groups,
  which the figure's note says.
- ρ, in [-1, 1]: of every cell of an image, the silhouette (b − a) / max(a, b) with the cosine distance
  1 − cos, a the mean distance to the other cells of its group, b the smallest mean distance to the cells of
  another group of the same image; 0 for a cell alone in its group. The mean over the image's cells, then over
  the images. Higher is better separated. Images with fewer than two groups, or with every cell alone in its
  group, have no ρ; they are left out and counted.
"""

# B batch, C latent channels, h w latent grid, n cells of an image, G groups

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ldmae.contracts import Result
from ldmae.core.errors import UserError
from ldmae.core.random import key_seed
from ldmae.evaluation.groupings import NO_GROUP

IMAGE_LIMIT = 1000
"""Images that are kept, and so measured on, at most."""

DEFINITION = "this project's definition; the paper gives none"

Key = int | str


@dataclass(frozen=True)
class _Image:
    latents: np.ndarray
    """(C, n) float32."""
    groups: np.ndarray
    """(levels, n) int32."""


class CompressionMetrics:
    """Collects latents and their groups, so that no figure depends on batches, processes or their order.

    Images are kept whole, for a cell can be standardised only when all have been seen. Of more than `limit`
    images those are kept whose keys hash lowest, whoever sees them and when. Who knows all keys beforehand
    need add no others: see `chosen`. Memory (and what processes send each other): `limit` · h · w · 4 bytes ·
    (C + levels), 78 MB for 1,000 images of 32 × 32 × 16 at three levels; computing takes three times that for
    a moment.

    Args:
        levels: what kinds of groups there are, such as `object`, `part` and `pattern`.
        limit: images to keep at most.
        seed: which ones, where there are more.
    """

    def __init__(self, levels: Sequence[str], limit: int = IMAGE_LIMIT, seed: int = 0) -> None:
        assert len(set(levels)) == len(levels) > 0, f"levels must differ and be some, got {list(levels)}"
        assert limit > 0, f"limit must be positive, got {limit}"
        self.levels = list(levels)
        self.unmeasured: list[str] = []
        """After `compute`: a sentence for each figure that could not be computed."""
        self._limit = limit
        self._seed = seed
        self._seen = 0
        self._images: dict[Key, _Image] = {}

    def chosen(self, keys: Sequence[Key]) -> list[int]:
        """Returns the places, in order, of the keys whose images would be kept, were they all added."""
        return sorted(sorted(range(len(keys)), key=lambda place: self._order(keys[place]))[: self._limit])

    def pass_over(self, count: int) -> None:
        """Counts images that were not added because they are not `chosen`: the figures' notes name them."""
        self._seen += count

    def update(self, keys: Sequence[Key], latents: Tensor, groups: Mapping[str, Any]) -> None:
        """Adds a batch.

        Args:
            keys: (B) what identifies each image in the set, such as its index or its relative path.
            latents: (B, C, h, w) posterior means, as the autoencoder gives them.
            groups: by level, (B, h, w) integers as `cell_groups` gives them, array or tensor; -1 is no group.

        Raises:
            UserError: latents hold NaN or infinity.
        """
        values = latents.detach().float().cpu().numpy()
        assert values.ndim == 4, f"expected latents (B, C, h, w), got {values.shape}"
        assert len(keys) == len(values), f"{len(keys)} keys, {len(values)} latents"
        assert groups.keys() == set(self.levels), f"{list(groups)} is not {self.levels}"
        if not np.isfinite(values).all():
            raise UserError("latents hold NaN or infinity; did the autoencoder's training diverge?")
        labels = np.stack([np.asarray(groups[level]) for level in self.levels], axis=1)
        expected = (len(values), len(self.levels), *values.shape[2:])
        assert labels.shape == expected, f"expected groups {expected}, got {labels.shape}"
        assert np.issubdtype(labels.dtype, np.integer), f"expected integers, got {labels.dtype}"
        self._seen += len(values)
        self._add(
            {
                _plain(key): _Image(_flat(latent, np.float32), _flat(label, np.int32))
                for key, latent, label in zip(keys, values, labels, strict=True)
            },
            len(values),
        )

    def collected(self) -> dict[str, Any]:
        """Returns what this process has kept: for another's `merge`, by any way that moves numpy arrays."""
        images = {key: (image.latents, image.groups) for key, image in self._images.items()}
        return {"levels": self.levels, "seen": self._seen, "images": images}

    def merge(self, collected: dict[str, Any]) -> None:
        """Adds what another process collected (its `collected()`); both must have seen different images."""
        assert collected["levels"] == self.levels, f"{collected['levels']} is not {self.levels}"
        self._seen += collected["seen"]
        images = collected["images"]
        self._add({key: _Image(*arrays) for key, arrays in images.items()}, len(images))

    def _add(self, images: dict[Key, _Image], count: int) -> None:
        assert len(images) == count, "keys are not unique in the set"
        assert not images.keys() & self._images.keys(), "keys are not unique in the set"
        self._images.update(images)
        assert len({image.latents.shape for image in self._images.values()}) == 1, "latents differ in shape"
        if len(self._images) > self._limit:
            ranked = sorted(self._images, key=self._order)
            self._images = {key: self._images[key] for key in ranked[: self._limit]}

    def _order(self, key: Key) -> tuple[int, str]:
        return key_seed(self._seed, "compression", key), str(key)

    def compute(self) -> list[Result]:
        """Returns `sigma2(LEVEL)` and `rho(LEVEL)` of every level; see `unmeasured` for those left out.

        Raises:
            UserError: no image was added, the latents are constant, or no level has a figure.
        """
        if not self._images:
            raise UserError("there are no images to measure compression on; hold some out with data.val")
        images = [self._images[key] for key in sorted(self._images, key=self._order)]
        mean, deviation = channel_statistics([image.latents for image in images])
        if not deviation.any():
            raise UserError(
                f"the latents of {len(images)} images are all the same number; was the autoencoder trained?"
            )
        cells = [standardised(image.latents, mean, deviation) for image in images]  # (n, C) each
        results: list[Result] = []
        self.unmeasured = []
        for k, level in enumerate(self.levels):
            chosen = [image.groups[k] != NO_GROUP for image in images]
            pairs = [
                (x[here], image.groups[k][here])
                for x, image, here in zip(cells, images, chosen, strict=True)
                if here.any()
            ]
            results += [*self._variance(level, pairs), *self._separability(level, pairs)]
        if not results:
            raise UserError("; ".join(self.unmeasured))
        return results

    def _variance(self, level: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[Result]:
        if not pairs:
            self.unmeasured.append(f"sigma2({level}): no cell of {len(self._images)} images has a group")
            return []
        value, groups = within_group_variance(pairs)
        if math.isnan(value):
            self.unmeasured.append(f"sigma2({level}): the cells that have a group are all the same")
            return []
        cells = sum(len(x) for x, _ in pairs)
        chance = (cells - groups) / (cells - 1)
        counts = {"images": len(pairs), "groups": groups, "cells": cells}
        note = (
            f"share of the variance within groups; at random, groups of these sizes would have {chance:.3f}"
        )
        return [self._result(f"sigma2({level})", value, "lower", counts, note)]

    def _separability(self, level: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[Result]:
        measured = [silhouette(x, groups) for x, groups in pairs]
        values = [value for value in measured if value is not None]
        counts = {"images": len(values), "left out": len(self._images) - len(values)}
        if not values:
            self.unmeasured.append(
                f"rho({level}): none of {len(self._images)} images has two groups of which one has two cells"
            )
            return []
        mean = math.fsum(values) / len(values)  # fsum: exact, so in any order
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        note = f"mean silhouette (cosine) of the images, whose standard deviation is {deviation:.2g}"
        if counts["left out"]:
            note += "; images without two groups to compare are left out"
        return [self._result(f"rho({level})", mean, "higher", counts, note)]

    def _result(self, name: str, value: float, better: str, counts: dict[str, int], note: str) -> Result:
        if self._seen > len(self._images):
            note += f"; on {len(self._images)} images drawn from {self._seen}"
        return Result(name=name, value=value, better=better, counts=counts, note=f"{note}; {DEFINITION}")


def channel_statistics(latents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and deviation (C,) of every channel over all cells, float64, whatever the order.

    Args:
        latents: of each image (C, n).
    """
    count = sum(x.shape[1] for x in latents)
    mean = _exact_sum([x.sum(axis=1, dtype=np.float64) for x in latents]) / count
    squares = [np.square(x.astype(np.float64) - mean[:, None]).sum(axis=1) for x in latents]
    deviation = np.sqrt(_exact_sum(squares) / count)
    # a channel that varies by float32's rounding alone is constant: such noise must not become deviation 1
    return mean, np.where(deviation > 1e-7 * np.abs(mean), deviation, 0.0)


def standardised(latents: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Returns latents (C, n) as cells (n, C) of mean 0 and deviation 1, float64; constant channels are 0."""
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return ((latents.astype(np.float64) - mean[:, None]) * scale[:, None]).T


def within_group_variance(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, int]:
    """Computes σ² (see the head of this file).

    Args:
        pairs: of each image its cells (n, C) and their groups (n,), without -1; groups of different images
            are different ones.

    Returns:
        σ², which is nan where all cells are the same, and the number of groups.
    """
    mean = _exact_sum([cells.sum(axis=0) for cells, _ in pairs]) / sum(len(cells) for cells, _ in pairs)
    within, total, count = [], [], 0
    for cells, groups in pairs:
        member = _membership(groups)  # (n, G)
        means = member.T @ cells / member.sum(axis=0)[:, None]  # (G, C)
        within.append(float(np.square(cells - member @ means).sum()))
        total.append(float(np.square(cells - mean).sum()))
        count += member.shape[1]
    whole = math.fsum(total)
    return (math.fsum(within) / whole if whole > 1e-12 else math.nan), count


def silhouette(cells: np.ndarray, groups: np.ndarray) -> float | None:
    """Computes the mean silhouette with the cosine distance of one image.

    It is scikit-learn's `silhouette_score(cells, groups, metric="cosine")`, but as the mean of cosines to a
    group is the cosine to a mean it needs no n × n distances: 1,024 cells take 0.6 ms instead of 16.

    Args:
        cells: (n, C) float64.
        groups: (n,) integers, without -1.

    Returns:
        The silhouette in [-1, 1]; None with fewer than two groups, or where each cell is a group.
    """
    member = _membership(groups)  # (n, G)
    sizes = member.sum(axis=0)
    if not 2 <= len(sizes) < len(cells):
        return None
    lengths = np.linalg.norm(cells, axis=1, keepdims=True)
    unit = np.divide(cells, lengths, out=np.zeros_like(cells), where=lengths > 0)
    cosines = unit @ (unit.T @ member)  # (n, G), summed over a group's cells
    own = member.astype(bool)
    others = member @ sizes - 1  # (n,) companions in the group
    to_itself = np.square(unit).sum(axis=1)  # 1, or 0 for a cell at the origin
    a = 1 - (cosines[own] - to_itself) / np.maximum(others, 1)
    b = np.where(own, np.inf, 1 - cosines / sizes).min(axis=1)
    # Distances of cells that are the same come out as rounding errors, whose ratio is anything
    a, b = a.round(9), b.round(9)
    larger = np.maximum(a, b)
    values = np.divide(b - a, larger, out=np.zeros_like(a), where=(larger > 0) & (others > 0))
    return float(values.mean())


def _membership(groups: np.ndarray) -> np.ndarray:
    """Returns (n, G) float64: 1 where a cell belongs to a group."""
    present, inverse = np.unique(groups, return_inverse=True)
    return np.eye(len(present))[inverse]


def _exact_sum(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Sums vectors (C,) so that their order does not matter."""
    return np.array([math.fsum(column) for column in np.stack(vectors, axis=1).tolist()])


def _flat(grid: np.ndarray, dtype: type) -> np.ndarray:
    """Returns a copy (C, n) of (C, h, w): a view would keep the whole batch."""
    return grid.reshape(len(grid), -1).astype(dtype, copy=True)


def _plain(key: Key) -> Key:
    return key if isinstance(key, str) else int(key)  # numpy's integers as ours
