"""Whether a diffusion model repeats its training images: copies, and each sample beside its nearest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ldmae.contracts import ImageSource
from ldmae.evaluation.neighbours import copying_results, nearest_images
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.recipes.measurements import PICTURES, merge_results, save_pictures, write_results
from ldmae.recipes.subject import draw, image_keys, read_batches

COMPARED, TRAINING, SHOWN = 200, 10_000, 12
"""Generated images that are looked at, training images they are compared with, pairs kept as pictures."""


def measure_copies(
    generated: Iterable[Tensor],
    training: ImageSource,
    held_out: ImageSource,
    folder: Path,
    *,
    size: int,
    mirrored: bool,
    batch_size: int,
    seed: int,
    autoencoder: str = "",
) -> None:
    """Writes `results/copies.json`, and beside it the samples nearest to training images as pictures.

    Args:
        generated: batches of images (b, 3, H, W) in uint8.
        training: the images that the model was trained on, of which 10,000 at most are drawn.
        held_out: real images kept from training, to compare with.
        folder: where the results go.
        size: side of the images, H = W.
        mirrored: whether training saw mirror images too.
        batch_size: images read at once.
        seed: which images are drawn.
        autoencoder: fingerprint of what decoded the generated ones.
    """

    def read(source: ImageSource, limit: int) -> Tensor:
        chosen = draw(image_keys(source), limit, seed)
        device = torch.device("cpu")
        return torch.cat(
            [to_uint8(batch) for _, batch in read_batches(source, chosen, size, batch_size, device)]
        )

    samples, real = torch.cat(list(generated)), read(training, TRAINING)
    found = nearest_images(samples, real, mirrored=mirrored)
    reference = nearest_images(read(held_out, COMPARED), real, mirrored=mirrored)
    ratios = found.distances[:, 0] / found.distances[:, 1]
    first = ratios.nan_to_num(0).argsort()[:SHOWN]  # both 0: a picture that training saw twice
    pictures = {"generated": samples[first], "nearest": real[found.indices[first, 0]]}
    save_pictures(
        folder / "results" / PICTURES["copies"],
        {name: images.permute(0, 2, 3, 1).numpy() for name, images in pictures.items()},
    )
    write_results(folder, "copies", copying_results(found, reference), autoencoder=autoencoder)


def forget_copies(folder: Path) -> None:
    """Removes what `measure_copies` left in a folder, where it is not of the images measured now."""
    for name in ("copies.json", PICTURES["copies"]):
        (folder / "results" / name).unlink(missing_ok=True)
    merge_results(folder)
