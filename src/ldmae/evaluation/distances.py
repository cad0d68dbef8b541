"""Distances between two sets of features as pure functions: KID, FID, IS, precision and recall, MIND.

All but KID and MIND are torch-fidelity's functions, called as ADM's evaluator (guided-diffusion) computes its
metrics. KID, which ADM does not have, is as in the literature, with torch-fidelity's subsets.
"""

# N M n images, D features (pooled or spatial), K classes, P random directions

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldmae.core.errors import check_enough
from ldmae.core.random import generator, key_seed

SUBSET_SIZE = 1000
"""Images in each subset of the kernel distance, the literature's; smaller sets take all they have."""

SUBSETS = 100
"""Subsets that the kernel distance is averaged over, the literature's number."""

FEWEST_IMAGES = 10
"""Images of each kind below which a kernel distance or a shrunk covariance is noise."""

SPLIT_SIZE = 5000
"""Images in each split of the Inception Score, ADM's."""

NEIGHBOURS = 3
"""k of precision and recall, the literature's."""

_DISTANCE_ROWS = 1000
"""Rows of a distance matrix held at a time; bounds the memory, not the result."""

DIRECTIONS = 1000
"""P, the random directions."""

_AT_ONCE = 100
"""Directions at a time; bounds the memory, not the result."""


@dataclass(frozen=True)
class Statistics:
    """A Gaussian fitted to features, which a Fréchet distance is computed between."""

    mean: np.ndarray
    """(D,) float64."""
    covariance: np.ndarray
    """(D, D) float64."""
    count: int | None = None
    """How many images it was fitted to; None where a foreign file does not say."""
    shrinkage: float = 0.0
    """Ledoit and Wolf's intensity in [0, 1]; 0 for the plain estimate."""


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
    fewest = min(len(features_a), len(features_b))
    needed = max(subset_size or 0, FEWEST_IMAGES)
    check_enough("a kernel distance", needed, fewest, "images of each kind", "generate or hold out more")
    size = subset_size or min(SUBSET_SIZE, fewest)
    draws = np.random.RandomState(seed if 0 <= seed < 2**32 else key_seed(seed, "KID") % 2**32)
    a, b = in_order(features_a), in_order(features_b)
    drawn = [[draws.choice(len(x), size, replace=False) for x in (a, b)] for _ in range(num_subsets)]
    of_a, of_b = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))  # (S, size)
    alone = (_kernel(x.square().sum(dim=1), x)[of].sum(dim=1) for x, of in ((a, of_a), (b, of_b)))
    within = _kernel_sums(a, a, of_a, of_a) + _kernel_sums(b, b, of_b, of_b) - sum(alone)
    distances = within / (size * (size - 1)) - 2 * _kernel_sums(a, b, of_a, of_b) / size**2
    return float(distances.mean()), float(distances.std(correction=0))


def _kernel_sums(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """Returns KID's kernel summed over all pairs of a subset of x (N, D) and one of y (M, D), for S subsets.

    The subsets are given by their images' places (S, size). Where that is less work, each pair of images is
    computed once for all subsets.
    """
    if len(x) * len(y) > of_x.numel() * of_y.shape[1]:
        return torch.stack([_kernel(x[i] @ y[j].T, x).sum() for i, j in zip(of_x, of_y, strict=True)])
    in_x, in_y = (x.new_zeros(len(of), len(z)).scatter_(1, of, 1) for z, of in ((x, of_x), (y, of_y)))
    sums = x.new_zeros(len(of_x))
    for rows, where in zip(x.split(_DISTANCE_ROWS), in_x.split(_DISTANCE_ROWS, dim=1), strict=True):
        sums += ((where @ _kernel(rows @ y.T, x)) * in_y).sum(dim=1)
    return sums


def _kernel(products: Tensor, features: Tensor) -> Tensor:
    """Returns (x · y / D + 1)³ of the products x · y of features, overwriting these."""
    base = products.div_(features.shape[1]).add_(1)
    return base.square().mul_(base)  # a power takes far longer


def frechet_distance(features_a: Tensor, features_b: Tensor, shrink: bool = False) -> float:
    """Computes the Fréchet distance of two Gaussians fitted to features (FID, where they are Inception's).

    Args:
        features_a: (N, D) features of one set, N > D.
        features_b: (M, D) features of the other, M > D.
        shrink: where a set has no more images than features, take Ledoit and Wolf's shrunk covariance instead
            of an error. The figure is then an estimate of another kind: comparable only where it was made so
            from as many images, and to be labelled.

    Raises:
        UserError: a covariance would be singular, because a set has no more images than features.
    """
    needed = features_a.shape[1] + 1
    fewest = min(len(features_a), len(features_b))
    check_enough(
        f"a Fréchet distance on {needed - 1} features",
        FEWEST_IMAGES if shrink else needed,
        fewest,
        "images of each kind",
        "take more images, or the kernel distance (KID) instead",
    )
    return frechet_of_statistics(
        *(fit_gaussian(f, shrink and len(f) < needed) for f in (features_a, features_b))
    )


def frechet_of_statistics(a: Statistics, b: Statistics) -> float:
    """Computes the Fréchet distance of two Gaussians."""
    from torch_fidelity import metric_fid

    moments = [{"mu": s.mean.astype(np.float64), "sigma": s.covariance.astype(np.float64)} for s in (a, b)]
    return metric_fid.fid_statistics_to_metric(*moments, verbose=False)[metric_fid.KEY_METRIC_FID]


def fit_gaussian(features: Tensor, shrink: bool = False) -> Statistics:
    """Fits a Gaussian to features (N, D).

    Args:
        features: (N, D), whose order plays no part.
        shrink: shrink the covariance towards a multiple of the identity by the intensity that Ledoit and Wolf
            (2004) estimate, which makes it regular however few the images are.
    """
    from torch_fidelity import metric_fid

    ordered = in_order(features)
    if not shrink:
        moments = metric_fid.fid_features_to_statistics(ordered)
        return Statistics(moments["mu"], moments["sigma"], len(features))
    from sklearn.covariance import ledoit_wolf

    covariance, intensity = ledoit_wolf(ordered.numpy())
    return Statistics(ordered.numpy().mean(axis=0), covariance, len(features), float(intensity))


def inception_score(logits: Tensor, split_size: int = SPLIT_SIZE, seed: int = 0) -> tuple[float, float]:
    """Computes the Inception Score (Salimans et al., NeurIPS 2016) as ADM's evaluator does.

    It is exp of the mean KL divergence between an image's class probabilities and the split's mean
    probabilities, averaged over splits. ADM cuts every 5,000 images in their order, the last split holding
    what is left; fewer images are one split. So that the files' order plays no part, the images are sorted by
    their logits and then shuffled by the seed (a sorted set's splits would be of a kind each). It grows with
    the images in a split: compare only equal numbers.

    Args:
        logits: (N, K) class scores before softmax, N > 0.
        split_size: images in each split.
        seed: which images share a split.

    Returns:
        Mean and standard deviation over the splits.
    """
    from torch_fidelity import metric_isc

    shuffled = torch.randperm(len(logits), generator=generator(seed, "inception score"))
    scores = [
        metric_isc.isc_features_to_metric(split, splits=1, shuffle=False)[metric_isc.KEY_METRIC_ISC_MEAN]
        for split in in_order(logits)[shuffled].split(split_size)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    generated: Tensor, real: Tensor, neighbours: int = NEIGHBOURS, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Computes improved precision and recall (Kynkäänniemi et al., NeurIPS 2019).

    A set's manifold is the union of balls around its features that reach to the k-th nearest neighbour in the
    set. Distances are in float64; ADM's are in float16 where they fit, which moves its figures a little.

    Args:
        generated: (N, D) features.
        real: (M, D) features.
        neighbours: k.
        device: where the distances are computed; it needs float64.

    Returns:
        Precision, the share of generated images in the real ones' manifold, and recall, the reverse.

    Raises:
        UserError: a set has no more than k images.
    """
    from torch_fidelity import metric_prc

    fewest = min(len(generated), len(real))
    metric = f"precision with recall at k = {neighbours}"
    check_enough(metric, neighbours + 1, fewest, "images of each kind", "take more")
    figures = metric_prc.prc_features_to_metric(
        in_order(generated).to(device),
        in_order(real).to(device),
        prc_neighborhood=neighbours,
        prc_batch_size=_DISTANCE_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    # torch-fidelity divides in float32
    precision = round(figures[metric_prc.KEY_METRIC_PRECISION] * len(generated)) / len(generated)
    return precision, round(figures[metric_prc.KEY_METRIC_RECALL] * len(real)) / len(real)


def mind(
    features_a: Tensor, features_b: Tensor, directions: int = DIRECTIONS, seed: int = 0
) -> tuple[float, float]:
    """Computes the Monge distance on features, MIND.

    It is 3 D / (n P) · Σ_m ‖sort(A u_m) − sort(B u_m)‖², with random unit directions u_m: D times three times
    the mean squared distance of the optimal transport along a line. As a Fréchet distance it is above 0 for
    two samples of one distribution, the more so the fewer the images: compare at equal n, beside its floor.

    Args:
        features_a: (n, D) features of one set, in any order.
        features_b: (n, D) features of the other.
        directions: P.
        seed: of the directions.

    Returns:
        The distance, and its standard error over the directions.
    """
    n, dimensions = features_a.shape
    assert n == len(features_b) > 0, f"MIND compares sets of equal size, got {n} and {len(features_b)}"
    u = torch.randn(dimensions, directions, generator=generator(seed, "MIND"), dtype=torch.float64)
    u = u / u.norm(dim=0)
    a, b = features_a.cpu().double(), features_b.cpu().double()
    squares = [
        ((a @ some).sort(dim=0).values - (b @ some).sort(dim=0).values).square().sum(dim=0)  # (AT_ONCE,)
        for some in u.split(_AT_ONCE, dim=1)
    ]
    each = torch.cat(squares) * (3 * dimensions / n)  # (P,), whose mean is MIND
    return float(each.mean()), float(each.std()) / directions**0.5 if directions > 1 else float("nan")


def in_order(features: Tensor) -> Tensor:
    """Sorts images by their features (N, D), to float64 on the CPU.

    Subsets are drawn by position, and the files' order must not matter.
    """
    # float64: the kernel's cube would cost float32 the last digits of a small difference
    values = features.detach().cpu().double().numpy()
    return torch.from_numpy(values[np.lexsort((values[:, 0], values.sum(axis=1)))])
