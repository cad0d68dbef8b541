"""What makes an autoencoder good for diffusion, measured on any of them: one file of results each."""

# B batch, N images, C latent channels, h w latent grid, H W image

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmae.contracts import ImageSource, Result
from ldmae.core.autoencoding import encode_moments, reconstruct
from ldmae.core.errors import UserError, nearest
from ldmae.core.files import atomic_path, fingerprint, fingerprint_tensors, read_json, write_json
from ldmae.core.progress import console, progress_bar
from ldmae.core.random import key_seed
from ldmae.evaluation.components import fit_components
from ldmae.evaluation.compression import CompressionMetrics
from ldmae.evaluation.efficiency import measure_size, measure_speed
from ldmae.evaluation.groupings import cell_groups
from ldmae.evaluation.interpolation import (
    InterpolationMetrics,
    choose_pairs,
    interpolated_decodings,
    interpolation_strip,
)
from ldmae.evaluation.probe import linear_probe, mean_pooled
from ldmae.evaluation.reconstruction import ReconstructionMetrics, to_uint8
from ldmae.evaluation.settings import EvaluationConfig
from ldmae.evaluation.smoothness import SmoothnessMetrics, noisy_decodings
from ldmae.images.dataset import ImageDataset
from ldmae.perception.features import FeatureExtractor, load_features
from ldmae.perception.lpips import load_perceptual
from ldmae.recipes.groups import level_maps
from ldmae.recipes.settings import plain

SHOWN = 12
"""Images that are kept as pictures: originals, reconstructions, principal components."""

STRIPS = 4
"""Pairs that are kept as pictures of an interpolation."""


@dataclass
class Subject:
    """An autoencoder to measure, and the images to do it with."""

    autoencoder: Any
    """On its device, frozen, in evaluation mode."""
    held_out: ImageSource
    """What is measured on."""
    train: ImageSource
    """What the latents' deviation and the linear probe are fitted on."""
    size: int
    """Pixels along a side."""
    config: EvaluationConfig
    folder: Path
    """Where `results/` lies."""
    trained_on: str | None = None
    """Name of the perceptual distance that the autoencoder was trained with."""
    _drawn: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the autoencoder lies."""
        return next(self.autoencoder.parameters()).device

    @cached_property
    def chosen(self) -> np.ndarray:
        """Indices of the held-out images that are measured on."""
        return draw(len(self.held_out), self.config.images, self.config.seed)

    @cached_property
    def features(self) -> FeatureExtractor:
        """The network whose features are compared."""
        return load_features(self.config.features, self.device)

    def batches(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yields indices and images (B, 3, H, W) in [-1, 1] of what is measured on."""
        return read_batches(self.held_out, self.chosen, self.size, self.config.batch_size, self.device)

    @cached_property
    def train_latents(self) -> tuple[Tensor, np.ndarray]:
        """Posterior means (N, C, h, w) of training images, on the CPU, and their labels (N,)."""
        indices = draw(len(self.train), self.config.latent_images, self.config.seed)
        latents = self._encoded(self.train, indices, "encoding training images")
        return latents, np.asarray(self.train.labels)[indices]

    @cached_property
    def held_out_latents(self) -> Tensor:
        """Posterior means (N, C, h, w) of the images that are measured on, on the CPU."""
        return self._encoded(self.held_out, self.chosen, "encoding")

    @property
    def deviation(self) -> Tensor:
        """The latents' deviation in each channel (C, 1, 1), over training images."""
        return self.train_latents[0].double().std(dim=(0, 2, 3)).float().view(-1, 1, 1)

    @torch.no_grad()
    def _encoded(self, source: ImageSource, indices: np.ndarray, title: str) -> Tensor:
        pieces = []
        with progress_bar(title, len(indices), "images") as advance:
            for rows, images in read_batches(source, indices, self.size, self.config.batch_size, self.device):
                pieces.append(encode_moments(self.autoencoder, images)[0].cpu())
                advance(len(rows), "")
        return torch.cat(pieces)


def check_names(only: list[str] | None, others: tuple[str, ...] = ()) -> None:
    """Raises a UserError for a measurement that does not exist, naming the nearest that does."""
    known = (*MEASUREMENTS, *others)
    for name in only or []:
        if name not in known:
            raise UserError(f"no measurement {name!r}{nearest(name, known)}. There are: {', '.join(known)}")


def measure(subject: Subject, only: list[str] | None = None) -> None:
    """Measures an autoencoder; what was measured before with the same weights and settings is not redone.

    Writes `results/NAME.json` for each measurement and merges them into `results.json`.

    Args:
        subject: the autoencoder and the images.
        only: names in `MEASUREMENTS`; None: all.
    """
    maker = fingerprint(
        [
            fingerprint_tensors(subject.autoencoder.state_dict()),
            subject.held_out.fingerprint(),
            subject.train.fingerprint(),
            str(subject.size),
        ]
    )
    for name in MEASUREMENTS if only is None else only:
        settings = {key: value for key, value in plain(subject.config).items() if key in _READS[name]}
        made_of = fingerprint([maker, json.dumps(settings, sort_keys=True)])
        path = subject.folder / "results" / f"{name}.json"
        if path.exists() and read_json(path).get("made_of") == made_of:
            continue
        try:
            results = MEASUREMENTS[name](subject)
        except UserError as error:
            if only is not None:
                raise
            console.print(f"not measured: {name}: {error}", markup=False, soft_wrap=True)
            continue
        write_results(subject.folder, name, results, made_of)


def write_results(folder: Path, measurement: str, results: list[Result], made_of: str = "") -> None:
    """Writes one measurement's file and merges all of them into `results.json`."""
    entries = [{**result.to_dict(), "measurement": measurement} for result in results]
    document: dict[str, Any] = {"schema": 1, "results": entries}
    if made_of:
        document["made_of"] = made_of
    write_json(folder / "results" / f"{measurement}.json", document)
    merged = []
    for path in sorted((folder / "results").glob("*.json")):
        merged += read_json(path)["results"]
    write_json(folder / "results.json", {"schema": 1, "results": merged})


def draw(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Returns indices of all of `count` images, or of `limit` of them, drawn by the seed, in order."""
    if limit is None or count <= limit:
        return np.arange(count)
    source = np.random.Generator(np.random.PCG64(key_seed(seed, "drawn images")))
    return np.sort(source.choice(count, limit, replace=False))


def read_batches(
    source: ImageSource, indices: np.ndarray, size: int, batch: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields indices and centre-cropped images (B, 3, H, W) in [-1, 1]."""
    dataset = ImageDataset(source, size, 0, None)
    for i in range(0, len(indices), batch):
        rows = [int(index) for index in indices[i : i + batch]]
        yield rows, torch.stack([dataset[(0, index)]["images"] for index in rows]).to(device)


def _reconstruction(subject: Subject) -> list[Result]:
    config, folder = subject.config, subject.folder / "results"
    metrics = ReconstructionMetrics(load_perceptual(config.perceptual, subject.device), subject.trained_on)
    chosen = set(subject.chosen[_spread(len(subject.chosen), SHOWN)].tolist())
    shown: dict[str, list[np.ndarray]] = {"originals": [], "reconstructions": []}
    with progress_bar("reconstructing", len(subject.chosen), "images") as advance:
        for rows, images in subject.batches():
            decoded = reconstruct(subject.autoencoder, images)
            metrics.update(images, decoded)
            for row, original, restored in zip(rows, images, decoded, strict=True):
                if row in chosen:
                    shown["originals"].append(hwc(original))
                    shown["reconstructions"].append(hwc(restored))
            advance(len(rows), "")
    _save_pictures(
        folder / "reconstruction_pairs.npz", {name: np.stack(rows) for name, rows in shown.items()}
    )
    return metrics.compute()


@torch.no_grad()
def _smoothness(subject: Subject) -> list[Result]:
    config, deviation = subject.config, subject.deviation
    metrics = SmoothnessMetrics(
        config.epsilons,
        load_perceptual(config.perceptual, subject.device),
        subject.features,
        subject.trained_on,
        config.seed,
    )
    with progress_bar("smoothness", len(subject.chosen), "images") as advance:
        for rows, images in subject.batches():
            latents = encode_moments(subject.autoencoder, images)[0]
            decoded = noisy_decodings(
                subject.autoencoder, rows, latents, deviation, metrics.epsilons, config.seed
            )
            metrics.update(rows, images, decoded)
            advance(len(rows), "")
    return metrics.compute()


@torch.no_grad()
def _interpolation(subject: Subject) -> list[Result]:
    config, device = subject.config, subject.device
    metrics = InterpolationMetrics(
        config.fractions, load_perceptual(config.perceptual, device), subject.trained_on
    )
    pairs = choose_pairs(subject.chosen.tolist(), config.pairs, config.seed)
    strips = []
    for i in range(0, len(pairs), config.batch_size):
        numbers = list(range(i, min(i + config.batch_size, len(pairs))))
        first, second = (
            torch.cat(
                [
                    images
                    for _, images in read_batches(
                        subject.held_out,
                        subject.chosen[[pairs[number][end] for number in numbers]],
                        subject.size,
                        config.batch_size,
                        device,
                    )
                ]
            )
            for end in (0, 1)
        )
        ends = [encode_moments(subject.autoencoder, images)[0] for images in (first, second)]
        decoded = list(interpolated_decodings(subject.autoencoder, ends[0], ends[1], metrics.fractions))
        metrics.update(numbers, first, second, decoded)
        if not strips:
            shown = [(t, images[:STRIPS]) for t, images in decoded]
            strips.append(interpolation_strip(first[:STRIPS], second[:STRIPS], shown))
    _save_pictures(subject.folder / "results" / "interpolation.npz", {"strip": strips[0]})
    return metrics.compute()


def _compression(subject: Subject) -> list[Result]:
    maps = level_maps(subject.held_out, subject.size, subject.config)
    metrics = CompressionMetrics(list(maps), seed=subject.config.seed)
    latents = subject.held_out_latents
    grid = latents.shape[2], latents.shape[3]
    done = 0
    with progress_bar("compression", len(latents), "images") as advance:
        for rows, images in subject.batches():
            pixels = [hwc(image) for image in images]
            groups = {
                level: np.stack(
                    [cell_groups(find(row, picture), grid) for row, picture in zip(rows, pixels, strict=True)]
                )
                for level, find in maps.items()
            }
            metrics.update(rows, latents[done : done + len(rows)], groups)
            done += len(rows)
            advance(len(rows), "")
    results = metrics.compute()
    for sentence in metrics.unmeasured:
        console.print(f"not measured: {sentence}", markup=False, soft_wrap=True)
    return results


def _probe(subject: Subject) -> list[Result]:
    unseen = mean_pooled(subject.held_out_latents)
    truth = np.asarray(subject.held_out.labels)[subject.chosen]
    if subject.train is subject.held_out:  # one half teaches, the other is asked
        halves = np.array(
            [key_seed(subject.config.seed, "probe", int(index)) % 2 for index in subject.chosen]
        )
        return linear_probe(unseen[halves == 0], truth[halves == 0], unseen[halves == 1], truth[halves == 1])
    latents, labels = subject.train_latents
    return linear_probe(mean_pooled(latents), labels, unseen, truth)


def _components(subject: Subject) -> list[Result]:
    components = fit_components(subject.train_latents[0])
    shown = _spread(len(subject.chosen), SHOWN)
    pictures = components.pictures(subject.held_out_latents[shown], (subject.size, subject.size))
    originals = [
        hwc(image)
        for _, images in read_batches(
            subject.held_out,
            subject.chosen[shown],
            subject.size,
            subject.config.batch_size,
            torch.device("cpu"),
        )
        for image in images
    ]
    _save_pictures(
        subject.folder / "results" / "components.npz",
        {"components": pictures, "originals": np.stack(originals)},
    )
    note = "share of the standardised latents' variance; the three are shown as red, green and blue"
    counts = {"images": len(subject.train_latents[0])}
    return [
        Result(name=f"component-{k + 1}-variance", value=share, counts=counts, note=note)
        for k, share in enumerate(components.shares)
    ]


def _efficiency(subject: Subject) -> list[Result]:
    config = subject.config
    dtype = getattr(torch, config.speed_dtype)
    return [
        *measure_size(subject.autoencoder, subject.size),
        *measure_speed(subject.autoencoder, subject.size, config.speed_batch_size, dtype),
    ]


MEASUREMENTS: dict[str, Callable[[Subject], list[Result]]] = {
    "reconstruction": _reconstruction,
    "smoothness": _smoothness,
    "interpolation": _interpolation,
    "compression": _compression,
    "probe": _probe,
    "components": _components,
    "efficiency": _efficiency,
}

_READS = {
    "reconstruction": {"perceptual", "images", "seed"},
    "smoothness": {"perceptual", "features", "epsilons", "images", "latent_images", "seed"},
    "interpolation": {"perceptual", "fractions", "pairs", "images", "seed"},
    "compression": {"masks", "mask_level", "ignored_labels", "images", "seed"},
    "probe": {"images", "latent_images", "seed"},
    "components": {"images", "latent_images", "seed"},
    "efficiency": {"speed_batch_size", "speed_dtype"},
}
"""The settings that each measurement depends on."""


def _spread(count: int, wanted: int) -> np.ndarray:
    """Returns at most `wanted` places, evenly spread over `count`."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int))


def hwc(image: Tensor) -> np.ndarray:
    """Returns an image (3, H, W) in [-1, 1] as (H, W, 3) uint8."""
    return to_uint8(image[None].cpu())[0].permute(1, 2, 0).numpy()


def _save_pictures(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary:
        pictures: dict[str, Any] = arrays
        np.savez_compressed(temporary, **pictures)
