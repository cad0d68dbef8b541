"""Pairs of images compared as saved: L1, PSNR, SSIM, a perceptual distance, distances between features."""

# B batch, N images, D features, H W image

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmae.contracts import Metric
from ldmae.core.autoencoding import reconstruct
from ldmae.core.errors import UserError
from ldmae.core.progress import console
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.distances import SUBSET_SIZE, SUBSETS, frechet_distance, kernel_distance
from ldmae.evaluation.subject import Subject
from ldmae.perception.features import FeatureExtractor
from ldmae.perception.lpips import PerceptualDistance
from ldmae.perception.names import DISTANCES

_SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window (standard deviation 1.5), as in Wang et al., 2004; images are no smaller."""
_SSIM_PLACES = 64
"""Places of the window that are computed at once; a larger matrix is mostly zeros."""


def to_uint8(images: Tensor) -> Tensor:
    """Rounds images in [-1, 1] to uint8, as saving does; values outside are clipped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


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


def hwc(images: Tensor) -> np.ndarray:
    """Returns images (…, 3, H, W) in [-1, 1] as (…, H, W, 3) uint8."""
    return to_uint8(images.cpu()).movedim(-3, -1).numpy()


def _l1(x: Tensor, y: Tensor) -> Tensor:
    """Returns each image's mean absolute error (B,), in float64; uint8 images, the error in [0, 1].

    The paper does not name its scale; with its PSNR only [0, 1] is plausible.
    """
    return (x.double() - y.double()).abs().mean(dim=(1, 2, 3)) / 255


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Returns each image's peak signal-to-noise ratio (B,), in dB and float64; uint8 images, inf if equal."""
    error = (x.double() - y.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Returns each image's structural similarity (B,), in float64; uint8 images, 1 if equal.

    Gaussian window of standard deviation 1.5, 11 x 11; colour channels are averaged. Only windows inside the
    image count, as in Wang et al. (2004) and scikit-image.

    Raises:
        UserError: the images are smaller than the window.
    """
    if min(x.shape[-2:]) < _SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {_SSIM_WINDOW}x{_SSIM_WINDOW} pixels, got "
            f"{x.shape[-2]}x{x.shape[-1]}; evaluate at a larger size"
        )
    x, y = x.double(), y.double()
    mean_x, mean_y, of_xx, of_yy, of_xy = (_filtered(_filtered(v).mT).mT for v in (x, y, x * x, y * y, x * y))
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    light, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * product + light) * (2 * (of_xy - product) + contrast)
    return (alike / ((squares + light) * (of_xx + of_yy - squares + contrast))).mean(dim=(1, 2, 3))


def _filtered(lines: Tensor) -> Tensor:
    """Returns the means (…, n - 10) in SSIM's window at each of its places in lines (…, n)."""
    places, around = lines.shape[-1] - _SSIM_WINDOW + 1, _SSIM_WINDOW - 1
    pieces = [lines[..., i : min(i + _SSIM_PLACES, places) + around] for i in range(0, places, _SSIM_PLACES)]
    return torch.cat([piece @ _windows(piece.shape[-1], lines.device).T for piece in pieces], dim=-1)


def _windows(size: int, device: torch.device) -> Tensor:
    """Returns SSIM's window at each place of a line of pixels, as a matrix (size - 10, size)."""
    away = torch.arange(size, device=device) - torch.arange(size - _SSIM_WINDOW + 1, device=device)[:, None]
    away = away.double() - _SSIM_WINDOW // 2
    weights = torch.exp(-((away / 1.5) ** 2) / 2) * (away.abs() <= _SSIM_WINDOW // 2)
    return weights / weights.sum(dim=1, keepdim=True)


_OF_PAIRS = {"L1": _l1, "PSNR": psnr, "SSIM": ssim}


def pair_values(
    x: Tensor, y: Tensor, names: Sequence[str], perceptual: PerceptualDistance | None
) -> dict[str, list[float]]:
    """Returns each pair's value of the metrics of `names`, and of the perceptual distance under its label.

    The images are uint8 (B, 3, H, W).
    """
    exact = (x.cpu(), y.cpu()) if x.device.type == "mps" else (x, y)  # which knows no float64
    values = {name: _OF_PAIRS[name](*exact).tolist() for name in names}
    if perceptual is not None:
        with torch.autocast(x.device.type, enabled=False):
            values[perceptual.label] = perceptual(x.float() / 127.5 - 1, y.float() / 127.5 - 1).tolist()
    return values


class PairMetrics:
    """Collects metrics of image pairs, image by image: they depend neither on batches nor on their order.

    Each is the mean of the images' own values; equal pairs, whose PSNR is infinite, are left out of it and
    counted in the note. Memory, with features: N · 2 · D · 4 bytes, 10 kB an image on EfficientNet-Lite0.

    Args:
        names: which of `_OF_PAIRS`.
        perceptual: the perceptual distance to measure besides, or None.
        trained_on: names (in settings) of the networks that the autoencoder was trained with.
        extractor: what makes the features for `feature_distances`, or None for none.
        seed: see there.
        shrink: see there.
        counted: what the pairs are called in `Metric.counts`.
    """

    def __init__(
        self,
        names: Sequence[str] = tuple(_OF_PAIRS),
        perceptual: PerceptualDistance | None = None,
        trained_on: Collection[str] = (),
        extractor: FeatureExtractor | None = None,
        seed: int = 0,
        shrink: bool = False,
        counted: str = "images",
    ) -> None:
        self._names, self._perceptual, self._extractor = names, perceptual, extractor
        self._seed, self._shrink, self._counted = seed, shrink, counted
        self._trained_on = trained_on
        labels = [*names, *([] if perceptual is None else [perceptual.label])]
        self._values: dict[str, list[float]] = {label: [] for label in labels}
        self._features: list[tuple[Tensor, Tensor]] = []
        self._lowest, self._highest = [math.inf, math.inf], -math.inf

    @torch.no_grad()
    def update(
        self, x: Tensor, y: Tensor, what: str = "a reconstruction", features: Tensor | None = None
    ) -> Tensor | None:
        """Adds pairs of images, rounded to uint8 first: a value is that of the picture a user gets.

        Args:
            x: (B, 3, H, W) originals in [-1, 1].
            y: (B, 3, H, W) what they are compared with; values outside [-1, 1] are clipped.
            what: what an error message calls an image of `y`.
            features: the originals', where they are known.

        Returns:
            The originals' features, or None without an extractor.

        Raises:
            UserError: the images are too small for a metric, or not finite.
        """
        assert x.shape == y.shape, f"originals and reconstructions differ in shape: {x.shape} and {y.shape}"
        saved, made = as_saved(x, "an original"), as_saved(y, what)
        for side, images in enumerate((x, y)):
            self._lowest[side] = min(self._lowest[side], images.min().item())
        self._highest = max(self._highest, y.max().item())
        for name, values in pair_values(saved, made, self._names, self._perceptual).items():
            self._values[name].extend(values)
        if self._extractor is None:
            return None
        features = self._extractor(saved).cpu() if features is None else features
        self._features.append((self._extractor(made).cpu(), features))
        return features

    @property
    def range_note(self) -> str:
        """What to say of a decoder that seems to decode to [0, 1]; empty where it does not."""
        if self._lowest[0] > -0.5 or self._lowest[1] < 0 or self._highest - self._lowest[1] < 0.5:
            return ""  # nor of one that decodes everything to the same grey
        return "all decoded values are in [0, 1], expected [-1, 1]: decode to 2 · images - 1"

    def compute(self) -> list[Metric]:
        """Returns the mean over pairs of every metric, and the distances between features if any are made.

        Raises:
            UserError: no pair was added, or too few for a distance between features.
        """
        if not any(self._values.values()):
            raise UserError(f"there are no {self._counted} to measure on; hold some out with data.val")
        metrics = [self._mean(name, values) for name, values in self._values.items()]
        if self._extractor is None:
            return metrics
        made, originals = (torch.cat(side) for side in zip(*self._features, strict=True))
        return metrics + feature_distances(
            made, originals, self._extractor, self._seed, self._shrink, trained_on=self._trained_on
        )

    def _mean(self, name: str, values: list[float]) -> Metric:
        finite = [value for value in values if math.isfinite(value)]
        notes = [self.range_note] if self.range_note else []
        if len(finite) < len(values):
            same = len(values) - len(finite)
            notes.append(f"{same:,} pair{' is' if same == 1 else 's are'} identical and left out")
        return Metric(
            name=name,
            value=math.fsum(finite) / len(finite) if finite else math.inf,  # fsum: exact, so in any order
            unit="dB" if name == "PSNR" else "",
            better="higher" if name in ("PSNR", "SSIM") else "lower",
            counts={self._counted: len(values)},
            trained_on_metric=name in {DISTANCES.get(teacher) for teacher in self._trained_on},
            note="; ".join(notes),
        )


def feature_distances(
    made: Tensor,
    originals: Tensor,
    extractor: FeatureExtractor,
    seed: int = 0,
    shrink: bool = False,
    prefix: str = "r",
    trained_on: Collection[str] = (),
) -> list[Metric]:
    """Measures restored images against their originals as two sets: `rKID`, and `rFID` where it can be.

    On EfficientNet-Lite0's features they are called `rKID-efficientnet_lite0` and `rFD-efficientnet_lite0`.

    A restored image resembles its own original. The kernel distance takes the two sets for independent, so it
    lies below 0 where reconstructions are good, the more so the fewer the images are: for perfect ones by
    2 / N · (mean k(x, x) − mean k(x, x')), with its kernel k, and x' other than x. Compare it
    between autoencoders at equal N only.

    Args:
        made: (N, D) features.
        originals: (N, D) features.
        extractor: the network of the features.
        seed: which subsets the kernel distance draws, where there are more images than its subsets hold.
        shrink: take shrunk covariances for the Fréchet distance where there are no more images than features.
        prefix: of the names: `r` for reconstructions, `i` for what lies between latents.
        trained_on: names of the networks that the autoencoder was trained with.

    Raises:
        UserError: there are too few images for a kernel distance.
    """
    count, needed = len(originals), extractor.dimensions + 1
    frechet = f"{prefix}{extractor.labels.fd}"
    # fewer images than a subset holds: every subset would be all of them
    subsets = SUBSETS if count > SUBSET_SIZE else 1
    kernel, _ = kernel_distance(made, originals, None, subsets, seed)
    note = "compare at equal numbers of images" + (
        "; it is below 0 where reconstructions are good" if prefix == "r" else ""
    )
    if count < needed and not shrink:
        note += f"; {frechet} needs {needed} images, or evaluation.shrink_covariance=true"
    of: dict[str, Any] = {"better": "lower", "counts": {"images": count}}
    of["trained_on_metric"] = extractor.name in trained_on
    metrics = [Metric(name=f"{prefix}{extractor.labels.kid}", value=kernel, note=note, **of)]
    if count >= needed or shrink:
        few = "shrunk covariances (Ledoit and Wolf): compare only with those of as many images"
        value = frechet_distance(made, originals, shrink)
        metrics.append(Metric(name=frechet, value=value, note=few if count < needed else "", **of))
    return metrics


def judges(subject: Subject) -> dict[str, Any]:
    """Returns the arguments of `PairMetrics` that name a subject's networks."""
    return {
        "perceptual": subject.perceptual,
        "trained_on": subject.trained_on,
        "extractor": subject.features,
        "seed": subject.config.seed,
        "shrink": subject.config.shrink_covariance,
    }


def _measure(subject: Subject) -> Measured:
    metrics = PairMetrics(**judges(subject))
    shown = subject.chosen[subject.shown].tolist()
    kept: dict[int, np.ndarray] = {}
    for rows, images in subject.batches("reconstructing"):
        decoded = reconstruct(subject.autoencoder, images)
        metrics.update(images, decoded)
        both = hwc(torch.stack([images, decoded], dim=1))
        kept |= {row: pair for row, pair in zip(rows, both, strict=True) if row in shown}
    if metrics.range_note:
        console.print(f"{type(subject.autoencoder).__name__}: {metrics.range_note}", soft_wrap=True)
    pairs = np.stack([kept[row] for row in shown])
    return Measured(metrics.compute(), {"originals": pairs[:, 0], "reconstructions": pairs[:, 1]})


RECONSTRUCTION = Measurement(
    name="reconstruction",
    title="Reconstruction",
    measure=_measure,
    reads=frozenset({"perceptual", "features", "shrink_covariance", "images", "seed"}),
    needs=("perceptual", "features"),
)
