"""What figures of generated images come to between two halves of the real ones: the best to be hoped for."""

# n images of each half, D features

from __future__ import annotations

import torch
from torch import Tensor

from ldmae.contracts import Result
from ldmae.core.random import generator
from ldmae.evaluation.generation import FEWEST_IMAGES, in_order, kernel_distance, precision_recall
from ldmae.evaluation.mind import DIRECTIONS, mind
from ldmae.perception.names import Labels


def mind_count(generated: int, real: int) -> int:
    """Returns n for MIND: no more than half of the real images, so that its floor is of as many."""
    return min(generated, real // 2)


def drawn(features: Tensor, count: int, seed: int) -> Tensor:
    """Returns the features of some images, drawn by the seed; the order of all plays no part."""
    return in_order(features)[torch.randperm(len(features), generator=generator(seed, "half"))[:count]]


def mind_result(generated: Tensor, real: Tensor, name: str, seed: int) -> Result:
    """Measures MIND of generated features (N, D) against real ones (M, D), at equal numbers."""
    count = mind_count(len(generated), len(real))
    value, error = mind(drawn(generated, count, seed), drawn(real, count, seed), seed=seed)
    return Result(
        name=name,
        value=value,
        better="lower",
        counts={"generated": count, "real": count},
        note=f"over {DIRECTIONS} directions, standard error {error:.2g}; compare at equal numbers of images",
    )


def floor_results(
    real: Tensor, generated: int, labels: Labels, seed: int = 0, device: torch.device | str = "cpu"
) -> list[Result]:
    """Measures a random half of the real images against the other half, on one network's features.

    Args:
        real: (M, D) features.
        generated: how many images were generated, which MIND's number of images follows.
        labels: what the figures are called.
        seed: which images are in which half.
        device: where the distances of precision and recall are computed.

    Returns:
        KID, MIND, precision and recall; nothing where a half has fewer than ten images.
    """
    if len(real) < 2 * FEWEST_IMAGES:
        return []
    shuffled = drawn(real, len(real), seed)
    one, other = shuffled[: len(real) // 2], shuffled[len(real) // 2 :]
    count = mind_count(generated, len(real))
    kernel = kernel_distance(one, other, seed=seed)[0]
    distance = mind(one[:count], other[:count], seed=seed)[0]
    precision, recall = precision_recall(one, other, device=device)
    halves = {"one half": len(one), "other half": len(other)}
    return [
        Result(name=f"floor {labels.kid}", value=kernel, better="lower", counts=halves),
        Result(
            name=f"floor {labels.mind}",
            value=distance,
            better="lower",
            counts={"one half": count, "other half": count},
        ),
        Result(name=f"floor {labels.precision}", value=precision, better="higher", counts=halves),
        Result(name=f"floor {labels.recall}", value=recall, better="higher", counts=halves),
    ]
