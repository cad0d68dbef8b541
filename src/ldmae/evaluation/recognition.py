"""The share of generated images that a classifier trained on real ones takes for the class asked for.

Meant for small pictures of clear shapes, such as handwritten digits: the classifier is a support vector
machine on histograms of gradient directions (Dalal and Triggs, CVPR 2005), trained in seconds on a CPU and
the same every time.
"""

# N images, H W image, K directions

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC
from torch import Tensor

from ldmae.contracts import Metric
from ldmae.core.errors import UserError, check_enough

_DIRECTIONS = 9
"""Bins of gradient direction over half a turn, so that light on dark and dark on light look alike."""

_CELLS = 7
"""Histograms in each direction over the image; neighbours overlap by half."""

_SMALLEST = 2 * (_CELLS + 1)
"""Pixels along a side that images need."""

_PENALTY = 10.0
"""The support vector machine's C; from 1 to 100 it changes the accuracy on digits by 0.4 %."""


def check_recognisable(labels: np.ndarray, size: int, held_out: int) -> None:
    """Checks before any image is made that a classifier can be trained on images of these labels, and judged.

    Raises:
        UserError: there is only one class, the images are too small (`size` pixels), or none is held out.
    """
    wanted = None
    if (classes := len(np.unique(labels))) < 2:
        wanted = f"images of at least two classes, got {'one' if classes else 'none'}"
    elif size < _SMALLEST:
        wanted = f"images of at least {_SMALLEST} pixels a side, got {size}x{size}"
    elif not held_out:
        wanted = "held-out images that have a class, got none"
    if wanted is not None:
        raise UserError(f"a recogniser needs {wanted}; set evaluation.recogniser=false")


def train_recogniser(images: Tensor, labels: np.ndarray) -> Pipeline:
    """Trains a classifier on real images; deterministic. What it predicts and scores is of the same size.

    Args:
        images: (N, 3, H, W) or (N, H, W) uint8 on the CPU, at least 16 px a side. Colour is not looked at.
        labels: (N,) integers, at least two different ones.

    Raises:
        UserError: there is only one class, or the images are too small.
    """
    assert len(images) == len(labels), f"{len(images)} images, {len(labels)} labels"
    check_recognisable(labels, min(images.shape[-2:]), held_out=1)
    histograms = FunctionTransformer(_gradient_histograms, kw_args={"size": tuple(images.shape[-2:])})
    machine = SVC(kernel="rbf", C=_PENALTY, gamma="scale", cache_size=500)
    return make_pipeline(histograms, machine).fit(images, labels)


def recognition_metric(
    recogniser: Pipeline,
    generated: Tensor,
    generated_labels: np.ndarray,
    held_out: Tensor,
    held_out_labels: np.ndarray,
) -> Metric:
    """Measures how many generated images are recognised as the class that was asked for.

    The recogniser's own accuracy on held-out real images, which it has not seen, bounds what the share means.

    Raises:
        UserError: there are no images of either kind.
    """
    trained_on, _ = recogniser.steps[-1][1].shape_fit_  # images, numbers of each
    counts = {"generated": len(generated), "real": trained_on, "held-out": len(held_out)}
    for kind in ("generated", "held-out"):
        move = "raise evaluation.samples or data.val"
        check_enough("recognition", 1, counts[kind], f"{kind} image", move)
    return Metric(
        name="recognised-as-asked",
        value=recogniser.score(generated, generated_labels),
        better="higher",
        counts=counts,
        reference={"held-out images": recogniser.score(held_out, held_out_labels)},
        note="share in [0, 1]",
    )


def _gradient_histograms(images: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Returns (N, K · cells) histograms of gradient directions, of length 1 for each image of `size`."""
    assert images.dtype == torch.uint8, f"expected uint8 images, got {images.dtype}"
    assert images.ndim in (3, 4), f"expected (N, 3, H, W) or (N, H, W), got {tuple(images.shape)}"
    found = tuple(images.shape[-2:])
    assert found == size, f"the recogniser was trained on images of {size} pixels, got {found}"
    chunks = [_histograms_of(chunk) for chunk in images.split(1024)]  # bounds the memory, not the result
    return torch.cat(chunks).numpy()


def _histograms_of(images: Tensor) -> Tensor:
    grey = images.float() if images.ndim == 3 else images.float().mean(dim=1)
    grey = grey[:, None] / 255  # (N, 1, H, W)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    # Each pixel votes with its gradient's size for the two nearest directions: (N, K, H, W)
    direction = torch.remainder(torch.atan2(down, across) / torch.pi, 1.0) * _DIRECTIONS
    distance = (direction - torch.arange(_DIRECTIONS).view(1, -1, 1, 1)).abs()
    votes = (1 - torch.minimum(distance, _DIRECTIONS - distance)).clamp(min=0) * torch.hypot(across, down)
    # Halves of cells, then each cell as two by two of them
    halves = F.adaptive_avg_pool2d(votes, _CELLS + 1)
    cells = F.avg_pool2d(halves, 2, stride=1).flatten(1)
    return F.normalize(cells.sqrt(), dim=1)
