"""How well images are restored: L1, PSNR, SSIM and a perceptual distance, on images as saved."""

# B batch, N images, H W image

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldmae.contracts import Result
from ldmae.core.errors import UserError
from ldmae.evaluation.generation import SUBSET_SIZE, SUBSETS, frechet_distance, kernel_distance
from ldmae.perception.features import FeatureExtractor
from ldmae.perception.lpips import PerceptualDistance

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window (deviation 1.5), as in Wang et al., 2004; images need as many pixels."""

NAMES = ("L1", "PSNR", "SSIM")


def to_uint8(images: Tensor) -> Tensor:
    """Rounds images in [-1, 1] to uint8, as saving does; values outside are clipped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Returns each image's mean absolute error (B,), in float64; uint8 images, the error in [0, 1].

    The paper does not name its scale; with its PSNR only [0, 1] is plausible.
    """
    return (x.double() - y.double()).abs().mean(dim=(1, 2, 3)) / 255


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Returns each image's peak signal-to-noise ratio (B,), in dB and float64; uint8 images, inf if equal."""
    return peak_signal_noise_ratio(x.double(), y.double(), data_range=255.0, reduction="none", dim=(1, 2, 3))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Returns each image's structural similarity (B,), in float64; uint8 images, 1 if equal.

    Gaussian window of deviation 1.5, 11 x 11; colour channels are averaged. Only windows that lie in the
    image count, as in Wang et al. and scikit-image: torchmetrics' own mean also takes those over a mirrored
    edge, which in small images is noticeable.
    """
    measured = structural_similarity_index_measure(
        x.double(), y.double(), sigma=1.5, data_range=255.0, reduction="none", return_full_image=True
    )
    edge = SSIM_WINDOW // 2
    return measured[1][..., edge:-edge, edge:-edge].mean(dim=(1, 2, 3))


def feature_distances(
    restored: Tensor,
    originals: Tensor,
    extractor: FeatureExtractor,
    seed: int = 0,
    shrink: bool = False,
    prefix: str = "r",
) -> list[Result]:
    """Measures restored images against their originals as two sets: `rKID`, and `rFID` where it can be.

    On EfficientNet-Lite0's features they are called `rKID-efficientnet_lite0` and `rFD-efficientnet_lite0`.

    A restored image resembles its own original. The kernel distance takes the two sets for independent, so it
    lies below 0 where reconstructions are good, the more so the fewer the images are: for perfect ones by
    2 / N · (mean k(x, x) − mean k(x, x')), with its kernel k, and x' other than x. Compare it
    between autoencoders at equal N only.

    Args:
        restored: (N, D) features.
        originals: (N, D) features.
        extractor: what made them.
        seed: which subsets the kernel distance draws, where there are more images than its subsets hold.
        shrink: take shrunk covariances for the Fréchet distance where there are no more images than features.
        prefix: of the names: `r` for reconstructions, `i` for what lies between latents.

    Raises:
        UserError: there are too few images for a kernel distance.
    """
    count, needed = len(originals), extractor.dimensions + 1
    # fewer images than a subset holds: every subset would be all of them
    subsets = SUBSETS if count > SUBSET_SIZE else 1
    kernel, _ = kernel_distance(restored, originals, None, subsets, seed)
    kernel_note = "compare at equal numbers of images; it is below 0 where reconstructions are good"
    frechet = []
    if count >= needed or shrink:
        note = (
            ""
            if count >= needed
            else "shrunk covariances (Ledoit and Wolf): compare only with those of as many images"
        )
        value = frechet_distance(restored, originals, shrink)
        frechet = [_distance(f"{prefix}{extractor.fd_label}", value, count, note)]
    else:
        kernel_note += (
            f"; {prefix}{extractor.fd_label} needs {needed} images, or evaluation.shrink_covariance=true"
        )
    return [_distance(f"{prefix}{extractor.kid_label}", kernel, count, kernel_note), *frechet]


def _distance(name: str, value: float, count: int, note: str) -> Result:
    return Result(name=name, value=value, better="lower", counts={"images": count}, note=note)


class ReconstructionMetrics:
    """Collects the figures image by image, so that the result depends neither on batches nor on their order.

    Memory, with features: N · 2 · D · 4 bytes, 10 kB an image on EfficientNet-Lite0.

    Args:
        perceptual: the perceptual distance to measure beside the others, or None.
        trained_on: names (in settings) of the perceptual distances that the autoencoder was trained with: a
            table must say when a model was trained on the metric that judges it.
        extractor: what makes the features for `feature_distances`, or None for none.
        seed: see there.
        shrink: see there.
    """

    def __init__(
        self,
        perceptual: PerceptualDistance | None = None,
        trained_on: Collection[str] = (),
        extractor: FeatureExtractor | None = None,
        seed: int = 0,
        shrink: bool = False,
    ) -> None:
        self._perceptual, self._extractor = perceptual, extractor
        self._seed, self._shrink = seed, shrink
        self._features: dict[str, list[Tensor]] = {"originals": [], "restored": []}
        self._trained_on_it = perceptual is not None and perceptual.name in trained_on
        self._values: dict[str, list[float]] = {name: [] for name in NAMES}
        self._lowest = {"originals": math.inf, "restored": math.inf}
        if perceptual is not None:
            self._values[perceptual.label] = []

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Adds pairs of images.

        Both are rounded to uint8 first, so that a figure is that of the picture a user gets.

        Args:
            x: (B, 3, H, W) originals in [-1, 1].
            y: (B, 3, H, W) reconstructions; values outside [-1, 1] are clipped.

        Raises:
            UserError: the images are too small for a metric, or a reconstruction is not finite.
        """
        assert x.shape == y.shape, f"originals and reconstructions differ in shape: {x.shape} and {y.shape}"
        if min(x.shape[-2:]) < SSIM_WINDOW:
            raise UserError(
                f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
                f"got {x.shape[-2]}x{x.shape[-1]}; evaluate at a larger size"
            )
        if not torch.isfinite(y).all():  # rounding would turn it into some colour
            raise UserError("a reconstruction holds NaN or infinity; did the training diverge?")
        for kind, images in (("originals", x), ("restored", y)):
            self._lowest[kind] = min(self._lowest[kind], images.min().item())
        x, y = to_uint8(x), to_uint8(y)
        exact = (x.cpu(), y.cpu()) if x.device.type == "mps" else (x, y)  # which knows no float64
        measured = {"L1": l1(*exact), "PSNR": psnr(*exact), "SSIM": ssim(*exact)}
        if self._perceptual is not None:
            with torch.autocast(x.device.type, enabled=False):
                measured[self._perceptual.label] = self._perceptual(
                    x.float() / 127.5 - 1, y.float() / 127.5 - 1
                )
        if self._extractor is not None:
            self._features["originals"].append(self._extractor(x).cpu())
            self._features["restored"].append(self._extractor(y).cpu())
        for name, values in measured.items():
            self._values[name].extend(values.tolist())

    def per_image(self) -> dict[str, list[float]]:
        """Returns every image's figures, in the updates' order: to gather over processes, for spreads."""
        return {name: list(values) for name, values in self._values.items()}

    def merge(self, values: dict[str, list[float]]) -> None:
        """Adds the figures that another process collected (its `per_image()`)."""
        assert values.keys() == self._values.keys(), f"{list(values)} is not {list(self._values)}"
        assert self._extractor is None, "features are not gathered over processes"
        for name, collected in values.items():
            self._values[name].extend(collected)

    @property
    def range_note(self) -> str:
        """What to say of a decoder that seems to decode to [0, 1]; empty where it does not."""
        if self._lowest["originals"] > -0.5 or self._lowest["restored"] < 0:
            return ""
        return "all decoded values are in [0, 1], expected [-1, 1]: decode to 2 · images - 1"

    def compute(self) -> list[Result]:
        """Returns the mean over images of every figure, and the distances between features if any are made.

        PSNR is the mean of the images' own values; equal pairs, whose PSNR is infinite, are left out and
        counted.

        Raises:
            UserError: no image was added.
        """
        count = len(self._values["L1"])
        if count == 0:
            raise UserError("there are no images to measure reconstruction on; hold some out with data.val")
        results = [self._result(name, values) for name, values in self._values.items()]
        if self._extractor is None:
            return results
        restored, originals = (torch.cat(self._features[kind]) for kind in ("restored", "originals"))
        return results + feature_distances(restored, originals, self._extractor, self._seed, self._shrink)

    def _result(self, name: str, values: list[float]) -> Result:
        finite = [value for value in values if math.isfinite(value) or name != "PSNR"]
        notes = [self.range_note] if self.range_note else []
        if len(finite) < len(values):
            notes.append(f"{len(values) - len(finite)} pairs are identical and are left out")
        if self._trained_on_it and name not in NAMES:
            notes.append("the autoencoder was trained on this metric")
        return Result(
            name=name,
            value=math.fsum(finite) / len(finite) if finite else math.inf,  # fsum: exact, so in any order
            unit={"PSNR": "dB"}.get(name, ""),
            better="higher" if name in ("PSNR", "SSIM") else "lower",
            counts={"images": len(values)},
            note="; ".join(notes),
        )
