"""Whether a diffusion model repeats its training images: copies, and each sample beside its nearest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldmae.contracts import ImageSource
from ldmae.evaluation.neighbours import Neighbours, copying_results, nearest_images
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.recipes.generated import Generated
from ldmae.recipes.measurements import PICTURES, save_pictures
from ldmae.recipes.results import merge_results, write_results
from ldmae.recipes.subject import draw, image_keys, read_batches

COMPARED, TRAINING, SHOWN = 200, 10_000, 12
"""Generated images that are looked at, training images they are compared with, pairs kept as pictures."""


def compared_images(made: Generated, seed: int) -> Iterator[Tensor]:
    """Yields the generated images that are looked at, (b, 3, H, W) in uint8.

    They are the first ones, which are of all classes alike where labels take turns; of more classes than are
    looked at, images are drawn from all.

    Args:
        made: all that were generated.
        seed: which are drawn.
    """
    if made.labels is None or len(np.unique(made.labels)) <= COMPARED:
        yield from made.batches(0, min(made.count, COMPARED))
        return
    numbers = draw([f"{number:016x}" for number in range(made.count)], COMPARED, seed)
    for first in np.unique(numbers // made.batch) * made.batch:
        stop = min(int(first) + made.batch, made.count)
        here = numbers[(numbers >= first) & (numbers < stop)] - first
        yield torch.cat(list(made.batches(int(first), stop)))[here]


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
        training: the images that the model was trained on, of which 10,000 at most are drawn and searched.
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
    first = _nearest_first(found)[:SHOWN]
    pictures = {"generated": samples[first], "nearest": real[found.indices[first, 0]]}
    save_pictures(
        folder / "results" / PICTURES["copies"],
        {name: images.permute(0, 2, 3, 1).numpy() for name, images in pictures.items()},
    )
    results = copying_results(found, reference, searched=len(real), training=len(training))
    write_results(folder, "copies", results, autoencoder=autoencoder)


def _nearest_first(found: Neighbours) -> Tensor:
    """Returns numbers of generated images, one a training image, the likest to it first, (K,) int64.

    How near an image lies is reckoned against the training image's distance to the next one: a heart lies
    near to every heart.
    """
    ratios = found.distances[:, 0] / found.spacing
    order = ratios.nan_to_num(0).argsort()  # 0 / 0: of a picture that training saw twice
    likest: dict[int, int] = {}
    for i in order.tolist():
        likest.setdefault(int(found.indices[i, 0]), i)
    return torch.tensor(list(likest.values()))


def forget_copies(folder: Path) -> None:
    """Removes what `measure_copies` left in a folder, where it is not of the images measured now."""
    for name in ("copies.json", PICTURES["copies"]):
        (folder / "results" / name).unlink(missing_ok=True)
    merge_results(folder)
