"""How close generated images are to real ones: FID, sFID, IS, KID, precision and recall, as pure functions.

All are torch-fidelity's functions, called as ADM's evaluator (guided-diffusion) computes its figures; the
kernel distance, which ADM has not, as the literature does. Figures are called after the network that made the
features: `FID`, `KID` on Inception's, `FD-efficientnet_lite0`, `KID-efficientnet_lite0` on
EfficientNet-Lite0's, never FID.
"""

# N M images, D features (pooled or spatial), K classes

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ldmae.contracts import Result
from ldmae.core.errors import UserError
from ldmae.core.random import generator
from ldmae.evaluation.references import Reference, Statistics
from ldmae.perception.features import FeatureExtractor, Features
from ldmae.perception.names import FEATURES, Labels

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

DISTANCE_ROWS = 1000
"""Rows of a distance matrix held at a time; bounds the memory, not the result."""


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
        in_order(features_a),
        in_order(features_b),
        kid_subset_size=subset_size or min(SUBSET_SIZE, fewest),
        kid_subsets=num_subsets,
        rng_seed=seed,
        verbose=False,
    )
    return figures[metric_kid.KEY_METRIC_KID_MEAN], figures[metric_kid.KEY_METRIC_KID_STD]


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
    if fewest < (FEWEST_IMAGES if shrink else needed):
        raise UserError(
            f"a Fréchet distance on {needed - 1} features needs at least "
            f"{FEWEST_IMAGES if shrink else needed} images of each kind, got "
            f"{len(features_a)} and {len(features_b)}; take more images, or the kernel distance (KID) instead"
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

    if min(len(generated), len(real)) <= neighbours:
        raise UserError(
            f"precision and recall with k = {neighbours} need at least {neighbours + 1} images of each kind, "
            f"got {len(generated)} generated and {len(real)} real; take more"
        )
    figures = metric_prc.prc_features_to_metric(
        in_order(generated).to(device),
        in_order(real).to(device),
        prc_neighborhood=neighbours,
        prc_batch_size=DISTANCE_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    # torch-fidelity divides in float32
    precision = round(figures[metric_prc.KEY_METRIC_PRECISION] * len(generated)) / len(generated)
    return precision, round(figures[metric_prc.KEY_METRIC_RECALL] * len(real)) / len(real)


def fidelity_results(
    generated_features: Tensor,
    real_features: Tensor,
    extractor: FeatureExtractor,
    *,
    num_subsets: int = SUBSETS,
    seed: int = 0,
    shrink: bool = False,
) -> list[Result]:
    """Measures generated images against real ones by the distances of their features alone.

    Args:
        generated_features: (N, D) features of generated images.
        real_features: (M, D) features of real images.
        extractor: what made the features; its labels name the figures.
        num_subsets: subsets of the kernel distance.
        seed: which subsets are drawn.
        shrink: take a shrunk covariance of a set that has no more images than there are features.

    Returns:
        The kernel distance, whose note says where the Fréchet distance is left out, and the Fréchet distance.

    Raises:
        UserError: a set has too few images.
    """
    kernel = _kernel_result(generated_features, real_features, extractor.kid_label, num_subsets, seed)
    frechet = _frechet_result(
        extractor.fd_label, generated_features, fit_gaussian(real_features), real_features, shrink, ""
    )
    if isinstance(frechet, str):
        return [dataclasses.replace(kernel, note=f"{kernel.note}; left out: {frechet}")]
    return [kernel, frechet]


def generation_results(
    generated: Features,
    reference: Reference,
    *,
    shrink: bool = False,
    num_subsets: int = SUBSETS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Result]:
    """Measures generated images against a reference: every figure that the two sets allow.

    Args:
        generated: of all generated images, in any order.
        reference: of real images, by the same network.
        shrink: take shrunk covariances where a set has too few images for FID or sFID; the notes say so.
        num_subsets: subsets of the kernel distance.
        seed: which images share a subset or a split.
        device: where the distances of precision and recall are computed.

    Returns:
        FID, sFID, IS, KID, precision and recall, by the names of the network. What is left out, and why,
        stands in the first one's note.

    Raises:
        UserError: there are not even two generated images.
    """
    assert generated.extractor == reference.extractor, f"{generated.extractor} is not {reference.extractor}"
    if len(generated) < 2:
        raise UserError(
            f"at least 2 generated images are needed to measure, got {len(generated)}; generate more"
        )
    labels, images = FEATURES[generated.extractor], reference.images
    pooled, spatial = (None, None) if images is None else (images.pooled, images.spatial)
    found: list[Result | str] = [
        _frechet_result(labels.fd, generated.pooled, reference.pooled, pooled, shrink, reference.origin),
        _frechet_result(labels.sfd, generated.spatial, reference.spatial, spatial, shrink, reference.origin),
    ]
    found.append(_inception_score_result(generated.logits, labels.inception_score, seed))
    if images is None:
        found += [f"{', '.join((labels.kid, labels.precision, labels.recall))}: the reference has no images"]
    else:
        fewest = min(len(generated), len(images))
        if fewest < FEWEST_IMAGES:
            found.append(f"{labels.kid}: {_too_few(FEWEST_IMAGES, len(generated), len(images))}")
        else:
            found.append(_kernel_result(generated.pooled, images.pooled, labels.kid, num_subsets, seed))
        if fewest <= NEIGHBOURS:
            reason = _too_few(NEIGHBOURS + 1, len(generated), len(images))
            found.append(f"{labels.precision}, {labels.recall}: {reason}")
        else:
            found += _manifold_results(generated.pooled, images.pooled, labels, device)
    results = [result for result in found if isinstance(result, Result)]
    left_out = [reason for reason in found if isinstance(reason, str)]
    if left_out:
        note = "; ".join(filter(None, [results[0].note, f"left out: {'; '.join(left_out)}"]))
        results[0] = dataclasses.replace(results[0], note=note)
    return results


def _frechet_result(
    name: str, generated: Tensor, real: Statistics | None, images: Tensor | None, shrink: bool, origin: str
) -> Result | str:
    """Returns the Fréchet distance, or why there is none."""
    if real is None:
        return f"{name}: the reference has no statistics for it"
    fitted = _regular(fit_gaussian(generated), generated, shrink), _regular(real, images, shrink)
    counts = {"generated": len(generated)} | ({} if real.count is None else {"real": real.count})
    if fitted[0] is None or fitted[1] is None:
        fewest = FEWEST_IMAGES if shrink else generated.shape[1] + 1
        hint = (
            " and the features of all real ones" if shrink else ", or set evaluation.shrink_covariance=true"
        )
        return f"{name}: {_too_few(fewest, len(generated), real.count)}{hint}"
    notes = [f"against {origin}"] if origin else []
    shrunk = [
        f"{kind} images (intensity {gaussian.shrinkage:.2g})"
        for kind, gaussian in zip(("generated", "real"), fitted, strict=True)
        if gaussian is not None and gaussian.shrinkage
    ]
    if shrunk:
        notes.append(
            f"shrunk covariance (Ledoit and Wolf) of the {' and '.join(shrunk)}, which are fewer than the "
            "features: comparable only with a shrunk distance of as many images"
        )
    value = frechet_of_statistics(fitted[0], fitted[1])
    return Result(name=name, value=value, better="lower", counts=counts, note="; ".join(notes))


def _regular(gaussian: Statistics, features: Tensor | None, shrink: bool) -> Statistics | None:
    """Returns a Gaussian of regular covariance, shrunk where asked; None where the images are too few."""
    count = gaussian.count
    if count is None or count > len(gaussian.mean):
        return gaussian
    if shrink and features is not None and len(features) == count and count >= FEWEST_IMAGES:
        return fit_gaussian(features, shrink=True)
    return None


def _inception_score_result(logits: Tensor, name: str, seed: int) -> Result:
    value, deviation = inception_score(logits, seed=seed)
    whole, left = divmod(len(logits), SPLIT_SIZE)
    if whole == 0 or (whole == 1 and left == 0):
        note = f"one split of {len(logits)} images; it grows with their number"
    else:
        note = f"mean of {whole + bool(left)} splits of {SPLIT_SIZE} images"
        note += f", the last of {left}" if left else ""
        note += f", standard deviation {deviation:.2g}"
    return Result(name=name, value=value, better="higher", counts={"generated": len(logits)}, note=note)


def _kernel_result(generated: Tensor, real: Tensor, name: str, num_subsets: int, seed: int) -> Result:
    counts = {"generated": len(generated), "real": len(real)}
    mean, deviation = kernel_distance(generated, real, None, num_subsets, seed)
    size = min(SUBSET_SIZE, *counts.values())
    whole = [kind for kind, count in counts.items() if count == size]
    note = f"mean of {num_subsets} subsets of {size} images, standard deviation {deviation:.2g}"
    if whole:
        note += (
            f"; each holds all {' and '.join(whole)} images, so the deviation does not include their own "
            "variation"
        )
    return Result(name=name, value=mean, better="lower", counts=counts, note=note)


def _manifold_results(
    generated: Tensor, real: Tensor, labels: Labels, device: torch.device | str
) -> list[Result]:
    counts = {"generated": len(generated), "real": len(real)}
    note = f"share in [0, 1], k = {NEIGHBOURS}; it depends on the numbers of images"
    figures = zip(
        (labels.precision, labels.recall), precision_recall(generated, real, device=device), strict=True
    )
    return [
        Result(name=name, value=value, better="higher", counts=counts, note=note) for name, value in figures
    ]


def _too_few(needed: int, generated: int, real: int | None) -> str:
    got = f"{generated} generated" + ("" if real is None else f" and {real} real")
    return f"it needs at least {needed} images of each kind, got {got}; take more"


def in_order(features: Tensor) -> Tensor:
    """Sorts images by their features (N, D), to float64 on the CPU.

    Subsets are drawn by position, and the files' order must not matter.
    """
    # float64: the kernel's cube would cost float32 the last digits of a small difference
    values = features.detach().cpu().double().numpy()
    return torch.from_numpy(values[np.lexsort((values[:, 0], values.sum(axis=1)))])
