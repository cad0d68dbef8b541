"""Perceptual compression: whether latents of one thing lie close together and of different things apart.

Definitions (the paper prints figures σ² and ρ but gives no code or formula; these are this project's):

- A *cell* is one place of the latent grid: C numbers of the posterior's mean, standardised per channel with
  the mean and standard deviation over all cells of the set. A constant channel counts as 0.
- A *group* is one label in one image: the same label in another image is another group. Cells with the label
  -1 belong to none, and are left out of all that follows.
- σ² = tr(within-group covariance) / tr(total covariance), in [0, 1]: with x_i the N cells of the set that
  have a group, m their mean and m_g(i) the mean of the group of cell i,
  σ² = Σ_i |x_i − m_g(i)|² / Σ_i |x_i − m|². Lower is tighter. It falls with ever smaller groups whatever the
  latents are: cells put at random into groups of the same sizes would give (N − G) / (N − 1) for G groups,
  which the metric's `reference` says.
- ρ, in [-1, 1]: of every cell of an image, the silhouette (b − a) / max(a, b) with the cosine distance
  1 − cos, a the mean distance to the other cells of its group, b the smallest mean distance to the cells of
  another group of the same image; 0 for a cell alone in its group. The mean over the image's cells, then over
  the images. Higher is better separated. Images with fewer than two groups, or with every cell alone in its
  group, have no ρ; they are left out and counted.
"""

# N images, C latent channels, h w latent grid, n cells of an image, G groups

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ldmae.contracts import Metric
from ldmae.core.errors import UserError, check_enough
from ldmae.core.random import key_seed
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.groupings import cell_groups
from ldmae.evaluation.masks import masks_fingerprint
from ldmae.evaluation.reconstruction import hwc
from ldmae.evaluation.subject import Subject

_IMAGE_LIMIT = 1000
"""Images that are measured on, at most: segmenting them is slow."""

_DEFINITION = "this project's definition; the paper gives none"


def _chosen_images(keys: Sequence[str], limit: int = _IMAGE_LIMIT, seed: int = 0) -> list[int]:
    """Returns the places, in order, of `limit` images at most, drawn by their keys' hash."""
    ranked = sorted(range(len(keys)), key=lambda k: (key_seed(seed, "compression", keys[k]), keys[k]))
    return sorted(ranked[:limit])


def _compression_metrics(
    latents: Tensor, groups: Mapping[str, np.ndarray], drawn_from: int | None = None
) -> Measured:
    """Returns `sigma2(LEVEL)` and `rho(LEVEL)` of every level, whatever the images' order.

    Args:
        latents: (N, C, h, w) posterior means.
        groups: by level, (N, h, w) integers as `cell_groups` gives them; -1 is no group.
        drawn_from: how many images these were drawn from, for the notes.

    Raises:
        UserError: there is no image, latents are not finite or constant, or no level has a metric.
    """
    values, mean, std = varied_latents(latents)  # (N, C, n)
    note = "" if drawn_from in (None, len(values)) else f"on {len(values)} images drawn from {drawn_from}; "
    cells = [standardised(image, mean, std) for image in values]  # (n, C) each
    found: list[Metric | str] = []
    for level, labels in groups.items():
        assert labels.shape == (len(values), *latents.shape[2:]), f"{level}: {labels.shape}"
        pairs = [
            (x[of >= 0], of[of >= 0])
            for x, of in zip(cells, labels.reshape(len(cells), -1), strict=True)
            if (of >= 0).any()
        ]
        found.append(_variance(level, pairs, len(values), note + _DEFINITION))
        found.append(_separability(level, pairs, len(values), note + _DEFINITION))
    metrics = [entry for entry in found if isinstance(entry, Metric)]
    left_out = [entry for entry in found if isinstance(entry, str)]
    if not metrics:
        raise UserError("; ".join(left_out))
    return Measured(metrics, left_out=left_out)


def _variance(level: str, pairs: list[tuple[np.ndarray, np.ndarray]], images: int, note: str) -> Metric | str:
    if not pairs:
        return f"sigma2({level}): no cell of {images} images has a group"
    value, groups = _within_group_variance(pairs)
    if math.isnan(value):
        return f"sigma2({level}): the cells that have a group are all the same"
    cells = sum(len(x) for x, _ in pairs)
    return Metric(
        name=f"sigma2({level})",
        value=value,
        better="lower",
        counts={"images": len(pairs), "groups": groups, "cells": cells},
        reference={"random groups of these sizes": (cells - groups) / (cells - 1)},
        note=f"share of the variance within groups; {note}",
    )


def _separability(
    level: str, pairs: list[tuple[np.ndarray, np.ndarray]], images: int, note: str
) -> Metric | str:
    measured = [_silhouette(x, groups) for x, groups in pairs]
    values = [value for value in measured if value is not None]
    if not values:
        return f"rho({level}): none of {images} images has two groups of which one has two cells"
    mean = math.fsum(values) / len(values)  # fsum: exact, so in any order
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    left_out = images - len(values)
    if left_out:
        note = f"images without two groups to compare are left out; {note}"
    return Metric(
        name=f"rho({level})",
        value=mean,
        better="higher",
        counts={"images": len(values), "left out": left_out},
        spread={"standard deviation over images": std},
        note=f"mean silhouette (cosine); {note}",
    )


def varied_latents(latents: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns latents (N, C, h, w) as (N, C, h · w) float32, and their channels' mean and std (C,).

    Raises:
        UserError: there are none, they are not finite, or all the same.
    """
    check_enough("a measurement of latents", 1, len(latents), "image", "hold some out with data.val")
    values = flat_latents(latents)
    mean, std = _channel_statistics(list(values))
    if not std.any():
        raise UserError(
            f"the latents of {len(values)} images are all the same number; was the autoencoder trained?"
        )
    return values, mean, std


def flat_latents(latents: Tensor) -> np.ndarray:
    """Returns latents (N, C, h, w) as (N, C, h · w) float32.

    Raises:
        UserError: they are not finite.
    """
    assert latents.ndim == 4, f"expected latents (N, C, h, w), got {tuple(latents.shape)}"
    return check_finite(latents.detach().float().cpu().flatten(2).numpy())


def check_finite(latents: np.ndarray) -> np.ndarray:
    """Returns latents as they are.

    Raises:
        UserError: they are not finite.
    """
    if not np.isfinite(latents).all():
        raise UserError("latents hold NaN or infinity; did the autoencoder's training diverge?")
    return latents


def _channel_statistics(latents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns each channel's mean and standard deviation (C,) over all cells of images (C, n), in float64.

    The order of images plays no part.
    """
    count = sum(x.shape[1] for x in latents)
    mean = _exact_sum([x.sum(axis=1, dtype=np.float64) for x in latents]) / count
    squares = [np.square(x.astype(np.float64) - mean[:, None]).sum(axis=1) for x in latents]
    std = np.sqrt(_exact_sum(squares) / count)
    # a channel that varies by float32's rounding alone is constant: such noise must not be scaled up
    return mean, np.where(std > 1e-7 * np.abs(mean), std, 0.0)


def standardised(latents: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Returns latents (C, n) as cells (n, C), (z − mean) / std in float64; constant channels are 0."""
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
    return ((latents.astype(np.float64) - mean[:, None]) * scale[:, None]).T


def _within_group_variance(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, int]:
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


def _silhouette(cells: np.ndarray, groups: np.ndarray) -> float | None:
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


def _measure(subject: Subject) -> Measured:
    places = _chosen_images([subject.keys[row] for row in subject.chosen], seed=subject.config.seed)
    # Encoded among the others, as the probe's are: in other batches they would differ by rounding
    latents = subject.held_out_latents[places]
    grid = latents.shape[2], latents.shape[3]
    check_enough("compression", max(grid), subject.size, "pixels a side", "measure without it")
    groups: dict[str, list[np.ndarray]] = {level: [] for level in subject.groups}
    for rows, images in subject.batches("compression", subject.chosen[places]):
        for row, pixels in zip(rows, hwc(images), strict=True):
            for level, find in subject.groups.items():
                groups[level].append(cell_groups(find(row, pixels), grid))
    return _compression_metrics(
        latents, {level: np.stack(maps) for level, maps in groups.items()}, len(subject.chosen)
    )


COMPRESSION = Measurement(
    name="compression",
    title="Perceptual compression",
    measure=_measure,
    reads=frozenset({"masks", "mask_level", "ignored_labels", "images", "seed"}),
    needs=("groups",),
    inputs=lambda subject: masks_fingerprint(subject.config),
)
