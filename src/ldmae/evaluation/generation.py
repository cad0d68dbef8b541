"""How close generated images are to real ones: kernel and Fréchet distances of features, as pure functions.

The distances are torch-fidelity's. What a distance is called depends on the network that made the features:
`KID` and `FID` on Inception's, `KID-efficientnet_lite0` and `FD-efficientnet_lite0` on EfficientNet-Lite0's,
never FID.
"""

# N M images, D features

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldmae.contracts import Result
from ldmae.core.errors import UserError
from ldmae.perception.features import FeatureExtractor

SUBSET_SIZE = 1000
"""Images in each subset of the kernel distance, the literature's; smaller sets take all they have."""

SUBSETS = 100
"""Subsets that the kernel distance is averaged over, the literature's number."""

FEWEST_IMAGES = 10
"""Images of each kind below which a kernel distance is noise."""


def kernel_distance(
    features_a: Tensor,
    features_b: Tensor,
    subset_size: int | None = None,
    num_subsets: int = SUBSETS,
    seed: int = 0,
) -> tuple[float, float]:
    """Computes the kernel distance (KID; Binkowski et al., ICLR 2018).

    It is the unbiased squared MMD with the kernel (x · y / D + 1)³. Being unbiased it is comparable between
    sets of different sizes, and may come out a little below 0.

    Args:
        features_a: (N, D) features of one set.
        features_b: (M, D) features of the other.
        subset_size: images drawn from each set, without replacement, for each estimate; None is min(1000, N,
            M). Where it is a set's own size, every subset holds all of that set, and the deviation leaves out
            that set's chance.
        num_subsets: estimates to average.
        seed: which subsets are drawn. The order of the features plays no part.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        UserError: a set has fewer images than are needed.
    """
    from torch_fidelity import metric_kid

    fewest = min(len(features_a), len(features_b))
    needed = max(subset_size or 0, FEWEST_IMAGES)
    if fewest < needed:
        raise UserError(
            f"a kernel distance needs at least {needed} images of each kind, "
            f"got {len(features_a)} and {len(features_b)}; generate or hold out more"
        )
    figures = metric_kid.kid_features_to_metric(
        _in_order(features_a),
        _in_order(features_b),
        kid_subset_size=subset_size or min(SUBSET_SIZE, fewest),
        kid_subsets=num_subsets,
        rng_seed=seed,
        verbose=False,
    )
    return figures[metric_kid.KEY_METRIC_KID_MEAN], figures[metric_kid.KEY_METRIC_KID_STD]


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Computes the Fréchet distance of two Gaussians fitted to features (FID, where they are Inception's).

    Args:
        features_a: (N, D) features of one set, N > D.
        features_b: (M, D) features of the other, M > D.

    Raises:
        UserError: a covariance would be singular, because a set has no more images than features.
    """
    from torch_fidelity import metric_fid

    needed = features_a.shape[1] + 1
    if min(len(features_a), len(features_b)) < needed:
        raise UserError(
            f"a Fréchet distance on {needed - 1} features needs at least {needed} images of each kind, got "
            f"{len(features_a)} and {len(features_b)}; take more images, or the kernel distance (KID) instead"
        )
    statistics = [metric_fid.fid_features_to_statistics(f.cpu().double()) for f in (features_a, features_b)]
    return metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]


def fidelity_results(
    generated_features: Tensor,
    real_features: Tensor,
    extractor: FeatureExtractor,
    *,
    num_subsets: int = SUBSETS,
    seed: int = 0,
) -> list[Result]:
    """Measures generated images against real ones.

    Args:
        generated_features: (N, D) features of generated images.
        real_features: (M, D) features of real images.
        extractor: what made the features; its labels name the figures.
        num_subsets: subsets of the kernel distance.
        seed: which subsets are drawn.

    Returns:
        The kernel distance, and the Fréchet distance where both sets have more images than there are
        features.

    Raises:
        UserError: a set has too few images.
    """
    counts = {"generated": len(generated_features), "real": len(real_features)}
    mean, deviation = kernel_distance(generated_features, real_features, None, num_subsets, seed)
    size = min(SUBSET_SIZE, *counts.values())
    whole = [kind for kind, count in counts.items() if count == size]
    note = f"mean of {num_subsets} subsets of {size} images, standard deviation {deviation:.2g}"
    if whole:
        note += f"; each holds all {' and '.join(whole)} images, whose own chance the deviation leaves out"
    results = [Result(name=extractor.kid_label, value=mean, better="lower", counts=counts, note=note)]
    if min(counts.values()) > extractor.dimensions:
        value = frechet_distance(generated_features, real_features)
        results.append(Result(name=extractor.fd_label, value=value, better="lower", counts=counts))
    return results


def _in_order(features: Tensor) -> Tensor:
    """Sorts images by their features: subsets are drawn by position, the files' order must not matter."""
    # float64: the kernel's cube would cost float32 the last digits of a small difference
    values = features.detach().cpu().double().numpy()
    return torch.from_numpy(values[np.lexsort((values[:, 0], values.sum(axis=1)))])
