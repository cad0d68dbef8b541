"""Compares metrics with the packages that define them, on the same inputs.

python tools/compare_metrics.py

Prints the table of docs/reference/metrics-agreement.md. Images are photographs in scikit-image and noisy
copies. Features are seeded draws. LPIPS uses one seeded random VGG-16 on both sides, so that nothing is
downloaded.
"""

# N images, D features

from __future__ import annotations

import argparse
from typing import Any

import lpips
import numpy as np
import torch
from skimage import data, metrics
from torch import Tensor
from torch_fidelity import metric_fid, metric_kid, metric_prc

from ldmae.evaluation.distances import frechet_distance, kernel_distance, precision_recall
from ldmae.evaluation.reconstruction import psnr, ssim
from ldmae.perception.lpips import PerceptualDistance, _Trunk, _vgg16

SIZE = 64
HEADER = ["| metric | ldmae | reference | relative error | package |", "| --- | --- | --- | --- | --- |"]


def image_pairs() -> tuple[Tensor, Tensor]:
    """Returns crops of photographs and noisy copies, uint8 (N, 3, H, W)."""
    crops = [
        picture[y : y + SIZE, x : x + SIZE]
        for picture in (data.astronaut(), data.chelsea(), data.coffee())
        for y, x in ((40, 120), (120, 200), (200, 80))
    ]
    images = np.stack(crops).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 12, images.shape)
    pair = images, (images + noise).round().clip(0, 255)
    first, second = (torch.from_numpy(each.astype(np.uint8)).permute(0, 3, 1, 2) for each in pair)
    return first, second


def feature_sets() -> tuple[Tensor, Tensor]:
    """Returns features (N, D) of two sets that overlap."""
    draw = np.random.default_rng(1)
    mixing = draw.normal(size=(32, 32)) / 6
    first, second = draw.normal(size=(1000, 32)) @ mixing, draw.normal(0.15, 1.05, size=(1000, 32)) @ mixing
    return torch.from_numpy(first).float(), torch.from_numpy(second).float()


def image_rows() -> list[tuple[str, float, float, str]]:
    """Returns PSNR, SSIM and LPIPS, each as name, ours, theirs, package."""
    x, y = image_pairs()
    pairs = [(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy()) for a, b in zip(x, y, strict=True)]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    structural = [metrics.structural_similarity(a, b, channel_axis=2, **window) for a, b in pairs]
    torch.manual_seed(0)
    reference: Any = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    trunk: list[Any] = [m for m in reference.net.modules() if isinstance(m, torch.nn.Conv2d)]
    heads = [lin.model[-1].weight.detach() for lin in reference.lins]
    stages = _vgg16(iter([(m.weight.detach(), m.bias.detach()) for m in trunk]), shift_tolerant=False)
    own = PerceptualDistance("lpips-vgg", _Trunk(stages, heads))
    scaled = x.float() / 127.5 - 1, y.float() / 127.5 - 1
    with torch.no_grad():
        distances = own(*scaled).mean(), reference(*scaled).mean()
    snr = [metrics.peak_signal_noise_ratio(a, b) for a, b in pairs]
    return [
        ("PSNR", float(psnr(x, y).mean()), float(np.mean(snr)), "scikit-image"),
        ("SSIM", float(ssim(x, y).mean()), float(np.mean(structural)), "scikit-image"),
        ("LPIPS-vgg", float(distances[0]), float(distances[1]), "lpips"),
    ]


def feature_rows() -> list[tuple[str, float, float, str]]:
    """Returns the metrics of two sets of features, each as name, ours, theirs, package."""
    a, b = feature_sets()
    statistics = [metric_fid.fid_features_to_statistics(features) for features in (a, b)]
    frechet = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    kernel = metric_kid.kid_features_to_metric(
        a, b, kid_subset_size=1000, kid_subsets=1, rng_seed=2020, verbose=False
    )
    manifold = metric_prc.prc_features_to_metric(
        a, b, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=True, verbose=False
    )
    own = precision_recall(a, b)
    return [
        ("FID", frechet_distance(a, b), frechet, "torch-fidelity"),
        ("KID", kernel_distance(a, b, 1000, 1)[0], kernel[metric_kid.KEY_METRIC_KID_MEAN], "torch-fidelity"),
        ("precision", own[0], manifold[metric_prc.KEY_METRIC_PRECISION], "torch-fidelity"),
        ("recall", own[1], manifold[metric_prc.KEY_METRIC_RECALL], "torch-fidelity"),
    ]


def table() -> list[str]:
    """Returns the table's lines."""
    rows = [*image_rows(), *feature_rows()]
    cells = [
        (name, ours, theirs, abs(ours - theirs) / abs(theirs), package)
        for name, ours, theirs, package in rows
    ]
    return HEADER + [f"| {n} | {a:.6g} | {b:.6g} | {error:.0e} | {p} |" for n, a, b, error, p in cells]


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print("\n".join(table()))
