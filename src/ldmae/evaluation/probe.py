"""Linear probe: how well a class can be predicted from an image's mean latent by a linear classifier."""

# N M images, C latent channels, h w latent grid, K classes

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ldmae.contracts import Metric
from ldmae.core.errors import check_enough
from ldmae.core.random import key_seed
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.compression import check_finite
from ldmae.evaluation.subject import Subject

_FEWEST_IMAGES = 10
"""Images with a class, for training and held out each, below which an accuracy says nothing."""


def _mean_pooled(latents: Tensor) -> Tensor:
    """Averages latents (B, C, h, w) over the grid: (B, C) float32 on the CPU, what the probe looks at."""
    assert latents.ndim == 4, f"expected latents (B, C, h, w), got {tuple(latents.shape)}"
    # float64, so that the rounded mean does not depend on how a device sums
    return latents.detach().cpu().double().mean(dim=(2, 3)).float()


def _linear_probe(
    train_features: Tensor, train_labels: np.ndarray, held_out_features: Tensor, held_out_labels: np.ndarray
) -> list[Metric]:
    """Trains a logistic regression on mean-pooled latents and measures it on others; deterministic.

    Features are standardised by the training ones; scikit-learn's `LogisticRegression` with its penalty
    (L2, C = 1). Images without a class (label -1) are left out.

    Args:
        train_features: (N, C) `_mean_pooled` latents.
        train_labels: (N,) classes.
        held_out_features: (M, C) those of other images.
        held_out_labels: (M,) their classes.

    Returns:
        The share of held-out images that are given their class, and the mean of that share over the classes
        that are held out (balanced accuracy).

    Raises:
        UserError: there is only one class, or there are too few images, or features are not finite.
    """
    x, y = _labelled(train_features, train_labels)
    unseen, truth = _labelled(held_out_features, held_out_labels)
    classes, frequency = np.unique(y, return_counts=True)
    move = "give more images, or hold out more with data.val"
    for kind, count in (("training", len(y)), ("held-out", len(truth))):
        check_enough("a linear probe", _FEWEST_IMAGES, count, f"{kind} images that have a class", move)
    move = "sort the images into one subfolder per class, or measure without the probe"
    check_enough("a linear probe", 2, len(classes), "classes of training images", move)
    unknown = int((~np.isin(truth, classes)).sum())
    check_enough("a linear probe", 1, len(truth) - unknown, "held-out image of a class trained on", move)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, tol=1e-6))
    order = np.lexsort((*x.T, y))  # sums are rounded by their order: the images' must not matter
    named = probe.fit(x[order], y[order]).predict(unseen)
    held = np.unique(truth)
    counts = {"training": len(y), "held-out": len(truth), "classes": len(classes)}
    commonest = float(np.mean(truth == classes[frequency.argmax()]))
    extra = f"; {unknown} held-out images are of classes that training lacks" if unknown else ""
    return [
        Metric(
            name="linear-probe-accuracy",
            value=float(np.mean(named == truth)),
            better="higher",
            counts=counts,
            reference={"always the most frequent class": commonest},
            note=f"share in [0, 1]{extra}",
        ),
        Metric(
            name="linear-probe-balanced-accuracy",
            value=float(recall_score(truth, named, labels=held, average="macro")),
            better="higher",
            counts=counts,
            reference={"chance": 1 / len(classes)},
            note=f"mean over {len(held)} classes{extra}",
        ),
    ]


def _labelled(features: Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features and labels of the images that have a class."""
    x = check_finite(features.detach().cpu().double().numpy())
    assert x.ndim == 2, f"expected (N, C), got {x.shape}; pool latents first"
    assert labels.shape == (len(x),), f"{len(x)} features, labels {labels.shape}"
    return x[labels >= 0], labels[labels >= 0]


def _halves(labels: np.ndarray, keys: list[str], alike: Sequence[Any], seed: int) -> np.ndarray:
    """Returns 0 or 1 for each image, drawn by its key: halves of every class, near-duplicates in one."""
    order = sorted(range(len(keys)), key=lambda k: (labels[k], key_seed(seed, "probe", keys[k])))
    members: dict[Any, list[int]] = {}
    for k in order:
        members.setdefault(alike[k], []).append(k)
    half_of, sizes, total = np.empty(len(keys), np.int64), defaultdict(lambda: [0, 0]), [0, 0]
    for group in sorted(members.values(), key=len, reverse=True):
        held = sizes[labels[group[0]]]
        half_of[group] = half = int((held[1], total[1]) < (held[0], total[0]))
        held[half] += len(group)
        total[half] += len(group)
    return half_of


def _measure(subject: Subject) -> Measured:
    unseen = _mean_pooled(subject.held_out_latents)
    truth = np.asarray(subject.held_out.labels)[subject.chosen]
    if subject.train is subject.held_out:  # trained on one half, tested on the other
        keys = [subject.keys[row] for row in subject.chosen]
        group = getattr(subject.held_out, "group", None)
        alike = keys if group is None else group[subject.chosen].tolist()
        half = _halves(truth, keys, alike, subject.config.seed)
        return Measured(
            _linear_probe(unseen[half == 0], truth[half == 0], unseen[half == 1], truth[half == 1])
        )
    latents, labels = subject.train_latents
    return Measured(_linear_probe(_mean_pooled(latents), labels, unseen, truth))


PROBE = Measurement(
    name="probe",
    title="Linear probe",
    measure=_measure,
    reads=frozenset({"images", "latent_images", "seed"}),
)
