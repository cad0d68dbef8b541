"""How long metrics take on one thread: ours, torch-fidelity's KID, and scikit-image's SSIM.

Command: python benchmarks/metrics.py
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _timing import machine, print_head, print_row, side_by_side
from skimage.metrics import structural_similarity
from torch_fidelity.metric_kid import kid_features_to_metric

from ldmae.evaluation.distances import SUBSET_SIZE, SUBSETS, kernel_distance
from ldmae.evaluation.reconstruction import ssim

WIDTH = 1280
"""Features of EfficientNet-Lite."""


def kid(generated: int, real: int) -> dict[str, float]:
    """Returns the seconds of one KID of so many generated and real images."""
    draws = np.random.default_rng(0)
    a, b = (torch.from_numpy(draws.random((count, WIDTH))) for count in (generated, real))
    size = min(SUBSET_SIZE, generated, real)
    how = {"kid_subset_size": size, "kid_subsets": SUBSETS, "rng_seed": 0, "verbose": False}
    rivals = {
        "ldmae": lambda: kernel_distance(a, b),
        "torch-fidelity": lambda: kid_features_to_metric(a, b, **how),
    }
    return side_by_side(rivals, turns=3, warmup=1)


def structure(size: int, count: int) -> dict[str, float]:
    """Returns the seconds of the SSIM of so many pairs of images."""
    x, y = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, count, 3, size, size), np.uint8))
    pairs = list(zip(*(images.permute(0, 2, 3, 1).numpy() for images in (x, y)), strict=True))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    rivals = {
        "ldmae": lambda: ssim(x, y),
        "scikit-image": lambda: [structural_similarity(a, b, **window) for a, b in pairs],
    }
    return side_by_side(rivals, turns=5)


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, one thread\n")
    print_head()
    for generated, real in ((1000, 1000), (1000, 2000), (1000, 5000), (1000, 20_000)):
        what = f"KID, {generated:,} generated and {real:,} real images"
        print_row(what, kid(generated, real), "torch-fidelity", 1, "KIDs")
    for size, count in ((64, 64), (256, 16)):
        print_row(f"SSIM, {size} px", structure(size, count), "scikit-image", count, "pairs")


if __name__ == "__main__":
    main()
