"""Whether a diffusion model repeats its training images: the nearest ones of each image, pixel by pixel."""

# N images looked at, M training images, H W image

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldmae.contracts import ImageSource, Metric
from ldmae.core.errors import UserError
from ldmae.evaluation.api import Measured
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.subject import draw, image_keys, read_batches

_COPY_RATIO = 1 / 3
"""An image is called a copy where its nearest training image is closer than this share of the second
nearest's distance (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to
memorize")."""

COMPARED, _TRAINING, _SHOWN = 200, 10_000, 12
"""Generated images that are looked at, training images they are compared with, pairs kept as pictures."""

_AT_ONCE = 128
"""Training images that are compared at once: as float64, 200 MB at 256 px."""


@dataclass(frozen=True)
class _Neighbours:
    """The two nearest training images of each image, the nearest first."""

    indices: Tensor
    """(N, 2) int64, into the training images."""
    distances: Tensor
    """(N, 2) float32, root mean squared differences in [0, 1]."""
    spacing: Tensor
    """(N,) float32: how far the nearest training image itself is from the training image nearest to it."""

    def copies(self) -> Tensor:
        """Returns which images are copies, (N,) bool."""
        nearest, second = self.distances.unbind(1)
        return (nearest < _COPY_RATIO * second) | (nearest == 0)  # of a picture that training saw twice too

    def authentic(self) -> Tensor:
        """Returns which images are no nearer to their nearest training image than another such is, (N,) bool.

        The measure of Alaa et al. 2022, "How faithful is your synthetic data?", here on pixels.
        """
        nearest = self.distances[:, 0]
        return (nearest >= self.spacing) & (nearest > 0)


def _nearest_images(images: Tensor, training: Tensor, *, mirrored: bool = False) -> _Neighbours:
    """Finds the two training images that are nearest to each image, and how near these lie to others.

    Args:
        images: uint8 (N, 3, H, W).
        training: uint8 (M, 3, H, W), two at least.
        mirrored: each training image also counts as near as its mirror image is: training saw both.

    Raises:
        UserError: the shapes differ, or there are not two training images.
    """
    if len(training) < 2 or images.shape[1:] != training.shape[1:]:
        raise UserError(
            "nearest neighbours need at least two training images of the shape of the others, got "
            f"{tuple(training.shape)} for {tuple(images.shape)}"
        )
    indices, distances = _two_nearest(images, training, mirrored)
    unique, places = indices[:, 0].unique(return_inverse=True)
    spacing = _two_nearest(training[unique], training, mirrored)[1][:, 1]  # the first is the image itself
    return _Neighbours(indices, distances, spacing[places])


def _two_nearest(images: Tensor, training: Tensor, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Returns indices and distances (N, 2) of the two nearest training images."""
    nearest = torch.full((len(images), 2), torch.inf)
    indices = torch.zeros(len(images), 2, dtype=torch.int64)
    for first in range(0, len(training), _AT_ONCE):
        piece = training[first : first + _AT_ONCE]
        distances = _distances(images, piece)
        if mirrored:
            distances = torch.minimum(distances, _distances(images, piece.flip(-1)))
        numbers = torch.arange(first, first + len(piece)).expand_as(distances)
        nearest, places = torch.cat([nearest, distances], dim=1).topk(2, dim=1, largest=False)
        indices = torch.cat([indices, numbers], dim=1).gather(1, places)
    return indices, nearest


def _distances(images: Tensor, training: Tensor) -> Tensor:
    """Returns root mean squared differences (N, M) in [0, 1]; float64 holds every sum of bytes exactly."""
    ours, theirs = (batch.flatten(1).double() for batch in (images, training))
    squares = ours.square().sum(1)[:, None] + theirs.square().sum(1) - 2 * ours @ theirs.T
    return (squares.sqrt() / (255 * ours.shape[1] ** 0.5)).float()


def compared_images(count: int, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """Returns the numbers of the generated images that are searched for copies, ascending.

    They are the first ones where labels take turns, which are of all classes alike; else (labels may be in
    order) images are drawn from all by the seed.
    """
    turn = 0 if labels is None else len(np.unique(labels))
    if labels is not None and turn <= COMPARED and len(np.unique(labels[:turn])) == turn:
        return np.arange(min(count, COMPARED))
    return draw([f"{number:016x}" for number in range(count)], COMPARED, seed)


def measure_copies(
    generated: Tensor,
    training: ImageSource,
    held_out: ImageSource,
    *,
    size: int,
    mirrored: bool,
    batch_size: int,
    seed: int,
) -> Measured:
    """Searches generated images (N, 3, H, W) in uint8 for copies; the most similar ones are kept as pictures.

    Of the training images 10,000 at most are drawn and searched, mirrored too where training saw mirror
    images. Held-out images that have a class are searched for comparison.
    """

    def read(source: ImageSource, among: np.ndarray, limit: int) -> Tensor:
        keys, device = image_keys(source), torch.device("cpu")
        chosen = among[draw([keys[number] for number in among], limit, seed)]
        batches = read_batches(source, chosen, size, batch_size, device)
        return torch.cat([to_uint8(batch) for _, batch in batches])

    real = read(training, np.arange(len(training)), _TRAINING)
    like = np.flatnonzero(np.asarray(held_out.labels) >= 0)  # what has no class is never generated
    like = like if len(like) else np.arange(len(held_out))
    found = _nearest_images(generated, real, mirrored=mirrored)
    reference = _nearest_images(read(held_out, like, COMPARED), real, mirrored=mirrored)
    first = _nearest_first(found)[:_SHOWN]
    pictures = {"generated": generated[first], "nearest": real[found.indices[first, 0]]}
    return Measured(
        _copy_metrics(found, reference, searched=len(real), training=len(training)),
        {name: images.permute(0, 2, 3, 1).numpy() for name, images in pictures.items()},
    )


def _nearest_first(found: _Neighbours) -> Tensor:
    """Returns numbers of generated images, one a training image, the most similar first, (K,) int64.

    An image's distance is compared with the training image's distance to the next one: a heart is near to
    every heart.
    """
    ratios = found.distances[:, 0] / found.spacing
    order = ratios.nan_to_num(0).argsort()  # 0 / 0: of a picture that training saw twice
    nearest: dict[int, int] = {}
    for i in order.tolist():
        nearest.setdefault(int(found.indices[i, 0]), i)
    return torch.tensor(list(nearest.values()))


def _copy_metrics(
    generated: _Neighbours, held_out: _Neighbours, *, searched: int, training: int
) -> list[Metric]:
    """Returns how many generated images are copies, and for reference how many held-out real ones would be.

    Both are known by their neighbours among the same `searched` images of `training` ones.
    """
    counts = {"generated": len(generated.distances), "held out": len(held_out.distances)}
    part = f"; searched {searched:,} of {training:,} training images" if searched < training else ""

    def metric(name: str, of: Callable[[_Neighbours], Tensor], better: str, note: str) -> Metric:
        value, real = (float(of(neighbours)) for neighbours in (generated, held_out))
        return Metric(
            name=name,
            value=value,
            better=better,
            counts=counts | {"training": searched},
            reference={"held-out images": real},
            note=note + part,
        )

    return [
        metric(
            "copies",
            lambda found: found.copies().double().mean(),
            "lower",
            "share whose nearest training image is closer than a third of the second nearest's "
            "distance, pixel by pixel",
        ),
        metric(
            "authenticity",
            lambda found: found.authentic().double().mean(),
            "higher",
            "share that is no nearer to its nearest training image than another training image is, pixel by "
            "pixel",
        ),
        metric(
            "RMSE-nearest",
            lambda found: found.distances[:, 0].double().quantile(0.5),
            "",
            "median distance to the nearest training image, images in [0, 1]",
        ),
    ]
