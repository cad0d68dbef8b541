"""Latent smoothness: whether a small error in the latent stays a small error in the image.

Latents with noise of growing size, z + ε · σ_c · N(0, 1) with σ_c the latents' deviation in channel c, are
decoded and compared with the ORIGINAL images (METHOD: Measuring), so that ε = 0 is plain reconstruction. An
image's noise belongs to its key and is the same at every ε: its curve bends because of the decoder, not of
the draw, and no figure depends on batches, processes or their order.
"""

# B batch, N images, C latent channels, h w latent grid, H W image, E sizes of noise (epsilons), D features

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ldmae.config.evaluation import EPSILONS
from ldmae.contracts import Result
from ldmae.core.autoencoding import decode
from ldmae.core.errors import UserError
from ldmae.core.random import generator
from ldmae.evaluation.reconstruction import feature_distances, psnr, to_uint8
from ldmae.perception.features import FeatureExtractor
from ldmae.perception.lpips import PerceptualDistance

Key = int | str


def latent_noise(
    keys: Sequence[Key], shape: tuple[int, ...], seed: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Draws N(0, 1) of (B, *shape), each image's by (seed, its key) alone, on the CPU so for every device."""
    rows = [torch.randn(shape, generator=generator(seed, "smoothness", key)) for key in keys]
    return torch.stack(rows).to(device)


def perturbed(latents: Tensor, deviation: Tensor, noise: Tensor, epsilon: float) -> Tensor:
    """Returns z + ε · σ_c · noise: latents and noise (B, C, h, w), deviation (C, 1, 1)."""
    assert deviation.shape == (latents.shape[1], 1, 1), f"expected (C, 1, 1), got {tuple(deviation.shape)}"
    assert noise.shape == latents.shape, f"noise {tuple(noise.shape)} for latents {tuple(latents.shape)}"
    return latents + epsilon * deviation.to(latents) * noise.to(latents)


@torch.no_grad()
def noisy_decodings(
    autoencoder: Any,
    keys: Sequence[Key],
    latents: Tensor,
    deviation: Tensor,
    epsilons: Sequence[float] = EPSILONS,
    seed: int = 0,
) -> Iterator[tuple[float, Tensor]]:
    """Yields each ε with the images decoded from latents with noise of that size.

    Args:
        autoencoder: any, on its device.
        keys: (B) what identifies each image in the set, such as its index or its relative path.
        latents: (B, C, h, w) posterior means, raw, as `encode_moments` gives them.
        deviation: (C, 1, 1) of the raw latents, over the training set.
        epsilons: sizes of the noise.
        seed: of the noise.

    Yields:
        ε, and images (B, 3, H, W) in [-1, 1].
    """
    noise = latent_noise(keys, tuple(latents.shape[1:]), seed, latents.device)
    for epsilon in epsilons:
        yield epsilon, decode(autoencoder, perturbed(latents, deviation, noise, epsilon))


class SmoothnessMetrics:
    """Collects the figures image by image, so that they depend neither on batches nor on their order.

    `PSNR(eps=…)`, the perceptual distance such as `ST-LPIPS-alex(eps=…)`, and the distance between the
    features of decoded images and of originals: the kernel distance `rKID(eps=…)` always, the Fréchet
    distance `rFID(eps=…)` where there are more images than features or shrunk covariances are asked for (see
    `feature_distances`).

    And one number, such as `ST-LPIPS-alex-AUC`: the area under the perceptual distance as a function of ε
    (trapezoids between the means over images at neighbouring ε) divided by the width of ε's range. It is a
    mean distance over that range, on the scale of the distance itself, and contains what reconstruction
    alone costs. Lower is smoother. It depends on which ε were measured.

    Memory, with features: N · (E + 1) · D · 4 bytes, 36 kB an image at six ε on EfficientNet-Lite0.

    Args:
        epsilons: sizes of the noise.
        perceptual: the perceptual distance, or None.
        extractor: what makes the features, or None.
        trained_on: names (in settings) of the perceptual distances that the autoencoder was trained with.
        seed: which subsets the kernel distance draws, where there are more images than its subsets hold.
        shrink: take shrunk covariances where there are no more images than features.

    Raises:
        UserError: the epsilons are not distinct finite numbers of 0 or more.
    """

    def __init__(
        self,
        epsilons: Sequence[float] = EPSILONS,
        perceptual: PerceptualDistance | None = None,
        extractor: FeatureExtractor | None = None,
        trained_on: Collection[str] = (),
        seed: int = 0,
        shrink: bool = False,
    ) -> None:
        valid = all(math.isfinite(epsilon) and epsilon >= 0 for epsilon in epsilons)
        if not valid or not epsilons or len({f"{epsilon:g}" for epsilon in epsilons}) < len(epsilons):
            raise UserError(
                f"sizes of noise must be distinct finite numbers of 0 or more, got {list(epsilons)}; "
                f"take for example {list(EPSILONS)}"
            )
        self.epsilons = sorted(float(epsilon) for epsilon in epsilons)
        self._perceptual, self._extractor = perceptual, extractor
        self._trained_on_it = perceptual is not None and perceptual.name in trained_on
        self._seed, self._shrink = seed, shrink
        self._values: dict[Key, dict[str, float]] = {}
        self._features: dict[Key, Tensor] = {}

    @torch.no_grad()
    def update(self, keys: Sequence[Key], x: Tensor, decoded: Iterable[tuple[float, Tensor]]) -> None:
        """Adds a batch.

        Images are rounded to uint8 first, so that a figure is that of the picture a user gets.

        Args:
            keys: (B) what identifies each image in the set; the keys of its noise.
            x: (B, 3, H, W) originals in [-1, 1].
            decoded: for every ε, the images (B, 3, H, W) decoded with that noise (see `noisy_decodings`).

        Raises:
            UserError: a decoded image is not finite, or images are too small for the perceptual distance.
        """
        original = as_saved(x, "an original")
        values: list[dict[str, float]] = [{} for _ in keys]
        features = {} if self._extractor is None else {-1.0: self._extractor(original).cpu()}
        seen = []
        for epsilon, images in decoded:
            assert images.shape == x.shape, f"originals {tuple(x.shape)}, decoded {tuple(images.shape)}"
            saved = as_saved(images, f"an image decoded at eps={epsilon:g}")
            for name, column in pair_figures(original, saved, self._perceptual).items():
                for row, value in zip(values, column, strict=True):
                    row[_at(name, epsilon)] = value
            if self._extractor is not None:
                features[epsilon] = self._extractor(saved).cpu()
            seen.append(epsilon)
        assert sorted(seen) == self.epsilons, f"decoded at {seen}, expected {self.epsilons}"
        rows = torch.stack([features[key] for key in sorted(features)], dim=1) if features else None
        self._add(
            {_plain(key): row for key, row in zip(keys, values, strict=True)},
            {} if rows is None else {_plain(key): row.clone() for key, row in zip(keys, rows, strict=True)},
        )

    def per_image(self) -> dict[Key, dict[str, float]]:
        """Returns every image's PSNR and perceptual distance at every ε, by key and name: for spreads."""
        return {key: dict(row) for key, row in self._values.items()}

    def collected(self) -> dict[str, Any]:
        """Returns all that was collected: for another process's `merge`."""
        return {"values": self._values, "features": self._features}

    def merge(self, collected: dict[str, Any]) -> None:
        """Adds what another process collected (its `collected()`); both must have seen different images."""
        self._add(collected["values"], collected["features"])

    def compute(self) -> list[Result]:
        """Returns the mean over images of every figure at every ε, and the area under the perceptual curve.

        Raises:
            UserError: no image was added, or too few for a kernel distance of the features.
        """
        if not self._values:
            raise UserError("there are no images to measure smoothness on; hold some out with data.val")
        results = []
        for i, epsilon in enumerate(self.epsilons):
            results.append(self._mean("PSNR", epsilon))
            if self._perceptual is not None:
                results.append(self._mean(self._perceptual.label, epsilon))
            if self._extractor is not None:
                results += self._distances(i, epsilon, self._extractor)
        if self._perceptual is not None and len(self.epsilons) > 1:
            results.append(self._area(self._perceptual.label))
        return results

    def _add(self, values: dict[Key, dict[str, float]], features: dict[Key, Tensor]) -> None:
        assert not values.keys() & self._values.keys(), "keys are not unique in the set"
        assert (values.keys() == features.keys()) or self._extractor is None, "images without features"
        self._values.update(values)
        self._features.update(features)

    def _mean(self, name: str, epsilon: float) -> Result:
        values = [row[_at(name, epsilon)] for row in self._values.values()]
        note = self._trained_on_note if name != "PSNR" else ""
        better = "higher" if name == "PSNR" else "lower"
        return mean_result(_at(name, epsilon), values, better=better, note=note)

    @property
    def _trained_on_note(self) -> str:
        return "the autoencoder was trained on this metric" if self._trained_on_it else ""

    def _distances(self, i: int, epsilon: float, extractor: FeatureExtractor) -> list[Result]:
        stacked = torch.stack(list(self._features.values()))  # (N, 1 + E, D)
        distances = feature_distances(stacked[:, 1 + i], stacked[:, 0], extractor, self._seed, self._shrink)
        return [dataclasses.replace(result, name=_at(result.name, epsilon)) for result in distances]

    def _area(self, label: str) -> Result:
        heights = [self._mean(label, epsilon).value for epsilon in self.epsilons]
        first, last = self.epsilons[0], self.epsilons[-1]
        steps = zip(self.epsilons, self.epsilons[1:], heights, heights[1:], strict=False)
        area = math.fsum((b - a) * (left + right) / 2 for a, b, left, right in steps)
        notes = [f"mean distance over eps from {first:g} to {last:g}", self._trained_on_note]
        return Result(
            name=f"{label}-AUC",
            value=area / (last - first),
            better="lower",
            counts={"images": len(self._values)},
            note="; ".join(note for note in notes if note),
        )


# --------------------------------------------------------------------------- shared with interpolation.py


def as_saved(images: Tensor, what: str) -> Tensor:
    """Rounds images (B, 3, H, W) in [-1, 1] to uint8, as saving does.

    Raises:
        UserError: they are not finite; `what` names them.
    """
    if not torch.isfinite(images).all():  # rounding would turn it into some colour
        raise UserError(
            f"{what} holds NaN or infinity; did the autoencoder's training diverge, or is the range of fp16 "
            "too small?"
        )
    return to_uint8(images)


def pair_figures(x: Tensor, y: Tensor, perceptual: PerceptualDistance | None) -> dict[str, list[float]]:
    """Returns PSNR, and the perceptual distance under its label, of pairs of uint8 images (B, 3, H, W)."""
    exact = (x.cpu(), y.cpu()) if x.device.type == "mps" else (x, y)  # which knows no float64
    figures = {"PSNR": psnr(*exact).tolist()}
    if perceptual is not None:
        with torch.autocast(x.device.type, enabled=False):
            figures[perceptual.label] = perceptual(x.float() / 127.5 - 1, y.float() / 127.5 - 1).tolist()
    return figures


def mean_result(name: str, values: Sequence[float], *, better: str, note: str = "") -> Result:
    """Returns the mean over images; infinite values (PSNR of equal images) are left out and counted."""
    finite = [value for value in values if math.isfinite(value)]
    notes = [note] if note else []
    if len(finite) < len(values):
        notes.append(f"{len(values) - len(finite)} pairs are identical and are left out")
    return Result(
        name=name,
        value=math.fsum(finite) / len(finite) if finite else math.inf,  # fsum: exact, so in any order
        unit="dB" if name.startswith("PSNR") else "",
        better=better,
        counts={"images": len(values)},
        note="; ".join(notes),
    )


def _at(name: str, epsilon: float) -> str:
    return f"{name}(eps={epsilon:g})"


def _plain(key: Key) -> Key:
    return key if isinstance(key, str) else int(key)  # numpy's integers as ours
