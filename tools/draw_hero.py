"""Draws the README's picture from the shipped model: samples above held-out images and their reconstructions.

Beside emoji-three/, as its preset says to prepare it:

python tools/draw_hero.py docs/pictures/hero.png
"""

# N images, H W image

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import ldmae
from ldmae.config import load_config
from ldmae.core.autoencoding import reconstruct
from ldmae.evaluation.reconstruction import hwc
from ldmae.images.index import open_images
from ldmae.images.transforms import center_crop
from ldmae.report.grids import Grid

NAME = "emoji-three"
"""The model, its preset and the folder of its images."""
CLASSES = ("faces", "people", "hearts", "animals", "clocks", "vehicles", "buildings", "flags")
SEEDS = range(4)
PAIRS = 16
SCALE = 3
"""Pixels of the picture for one of the model."""


def draw(path: Path) -> None:
    """Writes the picture; its samples are the first four of each class, its pairs spread over them."""
    pipeline: Any = ldmae.LDMAEPipeline.from_pretrained(ldmae.pretrained(NAME))
    pipeline.set_progress_bar_config(disable=True)
    samples = [
        picture
        for seed in SEEDS
        for picture in pipeline(
            list(CLASSES), guidance_scale=3.0, generator=torch.Generator().manual_seed(seed)
        ).images
    ]
    with tempfile.TemporaryDirectory() as cache:
        held_out = open_images(load_config(NAME).data, Path(cache))[1]
        labels = [held_out.classes.index(name) for name in CLASSES]
        by_class = [np.flatnonzero(held_out.labels == label) for label in labels]
        taken = sorted((place, label) for label, rows in enumerate(by_class) for place in range(len(rows)))
        rows = [int(by_class[label][place]) for place, label in taken[:PAIRS]]
        size = pipeline.vae.config.sample_size
        images = torch.stack([as_tensor(center_crop(held_out.read(row), size)) for row in rows])
    restored = reconstruct(pipeline.vae, images)
    parts = [
        Grid(samples, len(CLASSES), scale=SCALE, padding=SCALE).draw(),
        Grid(hwc(torch.cat([images, restored])), PAIRS, scale=SCALE / 2, padding=SCALE // 2).draw(),
    ]
    width = max(part.width for part in parts)
    whole = Image.new("RGB", (width, sum(part.height for part in parts) + 8 * SCALE), "white")
    whole.paste(parts[0], ((width - parts[0].width) // 2, 0))
    whole.paste(parts[1], ((width - parts[1].width) // 2, parts[0].height + 8 * SCALE))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def as_tensor(image: Image.Image) -> torch.Tensor:
    """Returns an RGB image as (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 127.5 - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="the PNG file to write")
    draw(parser.parse_args().path)
