"""How close generated images are to real ones, as metrics named after the network that made the features.

`FID`, `KID` on Inception's features; `FD-efficientnet_lite0`, `KID-efficientnet_lite0` on
EfficientNet-Lite0's, never FID. And the floor: the same metrics between two halves of the real images.
"""

# N M images, n images of each set, D features, K classes

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ldmae.contracts import Metric
from ldmae.core.errors import check_enough
from ldmae.core.random import generator
from ldmae.evaluation.distances import (
    DIRECTIONS,
    FEWEST_IMAGES,
    NEIGHBOURS,
    SPLIT_SIZE,
    SUBSET_SIZE,
    SUBSETS,
    Statistics,
    fit_gaussian,
    frechet_of_statistics,
    in_order,
    inception_score,
    kernel_distance,
    mind,
    precision_recall,
)
from ldmae.evaluation.references import Reference
from ldmae.perception.features import FeatureExtractor, Features
from ldmae.perception.names import FEATURES, Labels


def fidelity_metrics(
    generated: Tensor, real: Tensor, extractor: FeatureExtractor, *, seed: int = 0, shrink: bool = False
) -> list[Metric]:
    """Measures generated images against real ones by the distances of their features (N, D), (M, D) alone.

    The metrics are named by the extractor's labels. With `shrink` a set that has no more images than there
    are features gets a shrunk covariance.

    Returns:
        The kernel distance, whose note says where the Fréchet distance is left out, and the Fréchet distance.

    Raises:
        UserError: a set has too few images.
    """
    kernel = _kernel_metric(generated, real, extractor.labels.kid, seed)
    return _with_left_out(
        [kernel, _frechet_metric(extractor.labels.fd, generated, fit_gaussian(real), real, shrink, "")]
    )


def generation_metrics(
    generated: Features,
    reference: Reference,
    *,
    shrink: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Metric]:
    """Measures generated images against a reference: every metric that the two sets allow.

    Args:
        generated: of all generated images, in any order.
        reference: of real images, by the same network.
        shrink: take shrunk covariances where a set has too few images for FID or sFID; the notes say so.
        seed: which images share a subset or a split.
        device: where the distances of precision and recall are computed.

    Returns:
        FID, sFID, IS, KID, precision and recall, by the names of the network. The first one's note says what
        is left out, and why.

    Raises:
        UserError: there are not even two generated images.
    """
    assert generated.extractor == reference.extractor, f"{generated.extractor} is not {reference.extractor}"
    check_enough("a measurement of samples", 2, len(generated), "generated images", "generate more")
    labels, images = FEATURES[generated.extractor], reference.images
    pooled, spatial = (None, None) if images is None else (images.pooled, images.spatial)
    found: list[Metric | str] = [
        _frechet_metric(labels.fd, generated.pooled, reference.pooled, pooled, shrink, reference.origin),
        _frechet_metric(labels.sfd, generated.spatial, reference.spatial, spatial, shrink, reference.origin),
        _inception_score_metric(generated.logits, labels.inception_score, seed),
    ]
    if images is None:
        found += [f"{', '.join((labels.kid, labels.precision, labels.recall))}: the reference has no images"]
    else:
        fewest = min(len(generated), len(images))
        if fewest < FEWEST_IMAGES:
            found.append(f"{labels.kid}: {_too_few(FEWEST_IMAGES, len(generated), len(images))}")
        else:
            found.append(_kernel_metric(generated.pooled, images.pooled, labels.kid, seed))
        if fewest <= NEIGHBOURS:
            reason = _too_few(NEIGHBOURS + 1, len(generated), len(images))
            found.append(f"{labels.precision}, {labels.recall}: {reason}")
        else:
            found += _manifold_metrics(generated.pooled, images.pooled, labels, device)
    return _with_left_out(found)


def _with_left_out(found: list[Metric | str]) -> list[Metric]:
    """Returns the metrics; the first one's note names those that are missing, and why."""
    metrics = [entry for entry in found if isinstance(entry, Metric)]
    left_out = [entry for entry in found if isinstance(entry, str)]
    if left_out:
        note = "; ".join(filter(None, [metrics[0].note, f"left out: {'; '.join(left_out)}"]))
        metrics[0] = dataclasses.replace(metrics[0], note=note)
    return metrics


def _frechet_metric(
    name: str, generated: Tensor, real: Statistics | None, images: Tensor | None, shrink: bool, origin: str
) -> Metric | str:
    """Returns the Fréchet distance, or why there is none."""
    if real is None:
        return f"{name}: the reference has no statistics for it"
    fitted = _regular(fit_gaussian(generated), generated, shrink), _regular(real, images, shrink)
    counts = {"generated": len(generated)} | ({} if real.count is None else {"real": real.count})
    if fitted[0] is None or fitted[1] is None:
        few = min(counts.values()) < FEWEST_IMAGES
        if shrink and not few:
            return f"{name}: it needs the features of all {real.count} real images (evaluation.real_images)"
        fewest = FEWEST_IMAGES if few else generated.shape[1] + 1
        hint = "" if few else ", or set evaluation.shrink_covariance=true"
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
    return Metric(name=name, value=value, better="lower", counts=counts, note="; ".join(notes))


def _regular(gaussian: Statistics, features: Tensor | None, shrink: bool) -> Statistics | None:
    """Returns a Gaussian of regular covariance, shrunk where asked; None where the images are too few."""
    count = gaussian.count
    if count is None or count > len(gaussian.mean):
        return gaussian
    if shrink and features is not None and len(features) == count and count >= FEWEST_IMAGES:
        return fit_gaussian(features, shrink=True)
    return None


def _inception_score_metric(logits: Tensor, name: str, seed: int) -> Metric:
    value, std = inception_score(logits, seed=seed)
    whole, left = divmod(len(logits), SPLIT_SIZE)
    splits = whole + bool(left)
    note = f"one split of {len(logits)} images; it grows with their number"
    if splits > 1:
        note = f"mean of {splits} splits of {SPLIT_SIZE} images" + (f", the last of {left}" if left else "")
    return Metric(
        name=name,
        value=value,
        better="higher",
        counts={"generated": len(logits)},
        spread={"standard deviation over splits": std} if splits > 1 else {},
        note=note,
    )


def _kernel_metric(generated: Tensor, real: Tensor, name: str, seed: int) -> Metric:
    counts = {"generated": len(generated), "real": len(real)}
    mean, std = kernel_distance(generated, real, None, SUBSETS, seed)
    size = min(SUBSET_SIZE, *counts.values())
    whole = [kind for kind, count in counts.items() if count == size]
    note = f"mean of {SUBSETS} subsets of {size} images"
    if whole:
        note += (
            f"; each holds all {' and '.join(whole)} images, so the standard deviation lacks their own "
            "variation"
        )
    spread = {"standard deviation over subsets": std}
    return Metric(name=name, value=mean, better="lower", counts=counts, spread=spread, note=note)


def _manifold_metrics(
    generated: Tensor, real: Tensor, labels: Labels, device: torch.device | str
) -> list[Metric]:
    counts = {"generated": len(generated), "real": len(real)}
    note = f"share in [0, 1], k = {NEIGHBOURS}; it depends on the numbers of images"
    both = precision_recall(generated, real, device=device)
    return [
        Metric(name=name, value=value, better="higher", counts=counts, note=note)
        for name, value in zip((labels.precision, labels.recall), both, strict=True)
    ]


def _too_few(needed: int, generated: int, real: int | None) -> str:
    got = f"{generated} generated" + ("" if real is None else f" and {real} real")
    return f"it needs at least {needed} images of each kind, got {got}; take more"


# ---- MIND, and the floor


def _mind_count(generated: int, real: int) -> int:
    """Returns n for MIND: no more than half of the real images, so that its floor is of as many."""
    return min(generated, real // 2)


def _drawn(features: Tensor, count: int, seed: int, key: str = "half") -> Tensor:
    """Returns the features of some images, drawn by seed and key; the order of all plays no part."""
    return in_order(features)[torch.randperm(len(features), generator=generator(seed, key))[:count]]


def mind_metric(generated: Tensor, real: Tensor, name: str, seed: int) -> Metric:
    """Measures MIND of generated features (N, D) against real ones (M, D), at equal numbers."""
    count = _mind_count(len(generated), len(real))
    # other ranks than of the real ones, or sets of equal numbers would be drawn matched
    drawn = _drawn(generated, count, seed, "generated"), _drawn(real, count, seed)
    value, error = mind(*drawn, seed=seed)
    return Metric(
        name=name,
        value=value,
        better="lower",
        counts={"generated": count, "real": count},
        spread={f"standard error over {DIRECTIONS} directions": error},
        note="compare at equal numbers of images",
    )


def floor_metrics(
    real: Tensor, generated: int, labels: Labels, seed: int = 0, device: torch.device | str = "cpu"
) -> list[Metric]:
    """Measures a random half of the real features (M, D) against the other half: the best to be hoped for.

    MIND's number of images follows from how many were generated.

    Returns:
        KID, MIND, precision and recall, by their `labels`; nothing where a half has fewer than ten images.
    """
    if len(real) < 2 * FEWEST_IMAGES:
        return []
    shuffled = _drawn(real, len(real), seed)
    one, other = shuffled[: len(real) // 2], shuffled[len(real) // 2 :]
    count = _mind_count(generated, len(real))
    precision, recall = precision_recall(one, other, device=device)
    halves = len(one), len(other)
    found = (
        (labels.kid, kernel_distance(one, other, seed=seed)[0], "lower", halves),
        (labels.mind, mind(one[:count], other[:count], seed=seed)[0], "lower", (count, count)),
        (labels.precision, precision, "higher", halves),
        (labels.recall, recall, "higher", halves),
    )
    return [
        Metric(
            name=f"floor {name}",
            value=value,
            better=better,
            counts=dict(zip(("one half", "other half"), of, strict=True)),
        )
        for name, value, better, of in found
    ]
