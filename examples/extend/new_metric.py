"""A new metric: how many of the latents' channels are in use, as one figure beside the others."""

# N images, C latent channels, h w latent grid

import sys
from pathlib import Path

import torch
from torch import Tensor

from ldmae.config import load_config
from ldmae.contracts import Result
from ldmae.core.autoencoding import encode_moments, normalised
from ldmae.images.dataset import ImageDataset
from ldmae.images.index import open_images
from ldmae.loading import load_autoencoder
from ldmae.recipes import render_report
from ldmae.recipes.measurements import write_results


def effective_rank(latents: Tensor) -> float:
    """Computes exp(entropy) of the covariance's eigenvalues: C if all are alike, 1 if one has all variance.

    Args:
        latents: (N, C, h, w).
    """
    cells = latents.double().movedim(1, -1).flatten(0, -2)  # (N · h · w, C)
    eigenvalues = torch.linalg.eigvalsh(cells.T.cov()).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum()
    return torch.special.entr(shares).sum().exp().item()


@torch.no_grad()
def main(run: Path) -> Result:
    """Measures a run's autoencoder on its held-out images, and puts the figure into its report."""
    config = load_config(str(run / "config.yaml"))
    _, held_out = open_images(config.data, run / "data")
    images = ImageDataset(held_out, config.image_size, seed=0, augment=None)
    autoencoder = load_autoencoder(str(run))
    batch = images.images(range(len(images)))
    latents = normalised(autoencoder, encode_moments(autoencoder, batch)[0])
    result = Result(
        name="effective-rank",
        value=effective_rank(latents),
        better="higher",
        counts={"images": len(images)},
        note=f"of {latents.shape[1]} channels",
    )
    write_results(run, "rank", [result])  # results/rank.json, merged into results.json
    render_report(run)
    return result


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
