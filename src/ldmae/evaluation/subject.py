"""What is measured: an autoencoder and images, drawn and ordered by their content."""

# B batch, N images, C latent channels, h w latent grid, H W image

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import ImageSource
from ldmae.core.autoencoding import encode_moments, placement
from ldmae.core.errors import check_enough
from ldmae.core.progress import console, progress_bar
from ldmae.core.random import key_seed
from ldmae.evaluation.distances import FEWEST_IMAGES
from ldmae.evaluation.groupings import LabelMap, level_maps
from ldmae.images.dataset import ImageDataset
from ldmae.perception.features import FeatureExtractor, load_features
from ldmae.perception.lpips import PerceptualDistance, load_perceptual

_SHOWN = 12
"""Images that are kept as pictures: originals, reconstructions, principal components."""


@dataclass
class Subject:
    """An autoencoder to measure, and the images to do it with."""

    autoencoder: Any
    """On its device, frozen, in evaluation mode."""
    held_out: ImageSource
    """Images to measure on."""
    train: ImageSource
    """Images to fit the latents' standard deviation and the linear probe on."""
    size: int
    """Pixels along a side."""
    config: EvaluationConfig
    trained_on: Collection[str] = ()
    """Names of the networks that the autoencoder was trained with, by perceptual distance or alignment."""

    @property
    def device(self) -> torch.device:
        """Where the autoencoder computes."""
        return placement(self.autoencoder)[0]

    @cached_property
    def keys(self) -> list[str]:
        """What identifies each held-out image, whatever its name and place."""
        return image_keys(self.held_out)

    @cached_property
    def chosen(self) -> np.ndarray:
        """Indices of the held-out images to measure on."""
        return draw(self.keys, self.config.images, self.config.seed)

    @cached_property
    def shown(self) -> np.ndarray:
        """Places in `chosen` of the images that are kept as pictures: of all classes alike."""
        by_class = np.argsort(np.asarray(self.held_out.labels)[self.chosen], kind="stable")
        places = np.linspace(0, len(self.chosen) - 1, min(_SHOWN, len(self.chosen))).round().astype(int)
        return by_class[places]

    @cached_property
    def features(self) -> FeatureExtractor | None:
        """The network whose features are compared; None (and said) for too few images for any distance."""
        if len(self.chosen) < FEWEST_IMAGES:
            console.print(
                f"not measured: distances between features, which need at least {FEWEST_IMAGES} images, got "
                f"{len(self.chosen)}",
                soft_wrap=True,
            )
            return None
        return load_features(self.config.features, self.device)

    @cached_property
    def perceptual(self) -> PerceptualDistance:
        """The perceptual distance."""
        return load_perceptual(self.config.perceptual, self.device)

    @cached_property
    def groups(self) -> dict[str, LabelMap]:
        """What finds the groups of an image, by level."""
        return level_maps(self.held_out, self.chosen.tolist(), self.size, self.config)

    def batches(self, title: str, indices: np.ndarray | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """Yields indices and held-out images (B, 3, H, W) in [-1, 1]; None: all to measure on."""
        return self._read(self.held_out, self.chosen if indices is None else indices, title)

    def images(self, indices: np.ndarray) -> Tensor:
        """Returns held-out images (B, 3, H, W) in [-1, 1]."""
        batches = read_batches(self.held_out, indices, self.size, self.config.batch_size, self.device)
        return torch.cat([images for _, images in batches])

    @cached_property
    def train_latents(self) -> tuple[Tensor, np.ndarray]:
        """Posterior means (N, C, h, w) of training images, on the CPU, and their labels (N,)."""
        return self._train_moments[0], np.asarray(self.train.labels)[self.train_drawn]

    @cached_property
    def held_out_latents(self) -> Tensor:
        """Posterior means (N, C, h, w) of the images to measure on, on the CPU."""
        return self._encoded(self.held_out, self.chosen, "encoding")[0]

    @cached_property
    def latent_std(self) -> Tensor:
        """Standard deviation of each channel (C, 1, 1) of latents drawn from training images' posteriors.

        It is that of `latents_stats.pt`, which a diffusion model learns: of the means, and of the noise about
        them.
        """
        means, variance = self._train_moments
        check_enough("the latents' deviation", 2, means[:, 0].numel(), "cells", "give more images")
        return (means.double().var(dim=(0, 2, 3)) + variance).sqrt().float().view(-1, 1, 1)

    @cached_property
    def train_drawn(self) -> np.ndarray:
        """Indices of the training images of `train_latents`."""
        return draw(image_keys(self.train), self.config.latent_images, self.config.seed)

    @cached_property
    def _train_moments(self) -> tuple[Tensor, Tensor]:
        return self._encoded(self.train, self.train_drawn, "encoding training images")

    def _read(
        self, source: ImageSource, indices: np.ndarray, title: str
    ) -> Iterator[tuple[list[int], Tensor]]:
        with progress_bar(title, len(indices), "images") as advance:
            for rows, images in read_batches(source, indices, self.size, self.config.batch_size, self.device):
                yield rows, images
                advance(len(rows), "")

    @torch.no_grad()
    def _encoded(self, source: ImageSource, indices: np.ndarray, title: str) -> tuple[Tensor, Tensor]:
        """Returns posterior means (N, C, h, w), and the mean of the posteriors' variance by channel (C,)."""
        pieces, variances = [], []
        for _, images in self._read(source, indices, title):
            mean, logvar = encode_moments(self.autoencoder, images)
            variance = torch.zeros_like(mean) if logvar is None else logvar.exp()
            pieces.append(mean.cpu())
            variances.append(variance.double().mean(dim=(2, 3)).cpu())
        return torch.cat(pieces), torch.cat(variances).mean(dim=0)


def image_keys(source: ImageSource) -> list[str]:
    """Returns what identifies each image: a hash of its file, so that names and order play no part.

    Equal files are numbered. A source whose images were not all looked at (a stream) goes by place.
    """
    content = getattr(source, "content", None)
    if content is None:
        return [f"{index:016x}" for index in range(len(source))]
    seen: dict[int, int] = {}
    keys = []
    for value in content.tolist():
        number = seen[value] = seen.get(value, -1) + 1
        keys.append(f"{value:016x}" + (f"-{number}" if number else ""))
    return keys


def draw(keys: list[str], limit: int | None, seed: int) -> np.ndarray:
    """Returns indices of all images, or of `limit` that seed and keys draw, in the keys' order."""
    drawn: Any = range(len(keys))
    if limit is not None and len(keys) > limit:
        drawn = sorted(drawn, key=lambda index: key_seed(seed, "drawn images", keys[index]))[:limit]
    return np.array(sorted(drawn, key=lambda index: keys[index]), dtype=np.int64)


def read_batches(
    source: ImageSource, indices: np.ndarray, size: int, batch: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields indices and centre-cropped images (B, 3, H, W) in [-1, 1]."""
    dataset = ImageDataset(source, size, 0, None)
    for i in range(0, len(indices), batch):
        rows = [int(index) for index in indices[i : i + batch]]
        yield rows, dataset.images(rows, device)
