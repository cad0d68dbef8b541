"""How far generated images are from copies: each one's nearest training images, pixel by pixel."""

# N images looked at, M training images, H W image

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldmae.contracts import Result
from ldmae.core.errors import UserError

COPY_RATIO = 1 / 3
"""An image is called a copy where its nearest training image is closer than this share of the second
nearest's distance (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to
memorize")."""


AT_ONCE = 256
"""Training images that are compared at once: as float32, 200 MB at 256 px."""


@dataclass(frozen=True)
class Neighbours:
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
        return (nearest < COPY_RATIO * second) | (nearest == 0)  # of a picture that training saw twice too

    def authentic(self) -> Tensor:
        """Returns which images are no nearer to their nearest training image than another such is, (N,) bool.

        The measure of Alaa et al. 2022, "How faithful is your synthetic data?", here on pixels.
        """
        nearest = self.distances[:, 0]
        return (nearest >= self.spacing) & (nearest > 0)


def nearest_images(images: Tensor, training: Tensor, *, mirrored: bool = False) -> Neighbours:
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
    return Neighbours(indices, distances, spacing[places])


def _two_nearest(images: Tensor, training: Tensor, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Returns indices and distances (N, 2) of the two nearest training images."""
    nearest = torch.full((len(images), 2), torch.inf)
    indices = torch.zeros(len(images), 2, dtype=torch.int64)
    for first in range(0, len(training), AT_ONCE):
        piece = training[first : first + AT_ONCE]
        distances = _distances(images, piece)
        if mirrored:
            distances = torch.minimum(distances, _distances(images, piece.flip(-1)))
        numbers = torch.arange(first, first + len(piece)).expand_as(distances)
        nearest, places = torch.cat([nearest, distances], dim=1).topk(2, dim=1, largest=False)
        indices = torch.cat([indices, numbers], dim=1).gather(1, places)
    return indices, nearest


def _distances(images: Tensor, training: Tensor) -> Tensor:
    """Returns root mean squared differences (N, M) in [0, 1], without the rounding of a matrix product."""
    ours, theirs = (batch.flatten(1).float() / 255 for batch in (images, training))
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(ours, theirs, compute_mode=exact) / ours.shape[1] ** 0.5


def copying_results(
    generated: Neighbours, held_out: Neighbours, *, searched: int, training: int
) -> list[Result]:
    """Says how many generated images are copies, beside how many held-out real ones would be called so.

    Args:
        generated: neighbours of generated images among the training images.
        held_out: neighbours of real images that were kept from training, among the same.
        searched: how many training images these neighbours were looked for among.
        training: how many there are; where they are more, copies of the others go unseen, and notes say so.
    """
    counts = {
        "generated": len(generated.distances), "held out": len(held_out.distances), "training": searched
    }  # fmt: skip
    part = f"; searched {searched:,} of {training:,} training images" if searched < training else ""
    real = float(held_out.copies().float().mean())
    authentic = [float(found.authentic().float().mean()) for found in (generated, held_out)]
    median = [float(found.distances[:, 0].median()) for found in (generated, held_out)]
    return [
        Result(
            name="copies",
            value=float(generated.copies().float().mean()),
            better="lower",
            counts=counts,
            note="share whose nearest training image is closer than a third of the second nearest's "
            f"distance, pixel by pixel; of held-out real images {real:.3f}{part}",
        ),
        Result(
            name="authenticity",
            value=authentic[0],
            better="higher",
            counts=counts,
            note="share that is no nearer to its nearest training image than another training image is, "
            f"pixel by pixel; of held-out real images {authentic[1]:.3f}{part}",
        ),
        Result(
            name="RMSE-nearest",
            value=median[0],
            counts=counts,
            note="median distance to the nearest training image, images in [0, 1]; of held-out real images "
            f"{median[1]:.3f}{part}",
        ),
    ]
