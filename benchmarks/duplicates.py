"""How often near-duplicates are found, and pictures that are none are taken for some, by kind of picture.

Command: python benchmarks/duplicates.py [--count 200]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ldmae.images.builtin import open_builtin
from ldmae.images.index import build_index
from ldmae.images.sources import FolderSource

SIDE = 96


def faint_noise(seed: int) -> Image.Image:
    """Returns grey with noise of two levels."""
    pixels = 128 + np.random.default_rng(seed).normal(0, 2, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def text(seed: int) -> Image.Image:
    """Returns lines of words, black on white."""
    rng, image = np.random.default_rng(seed), Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    for row in range(6, SIDE - 6, 12):
        x = 6
        while x < SIDE - 12:
            width = int(rng.integers(4, 16))
            draw.rectangle((x, row, min(x + width, SIDE - 6), row + 6), fill="black")
            x += width + 3
    return image


def spots(count: int, radius: int) -> Callable[[int], Image.Image]:
    """Returns a maker of light spots on black."""

    def make(seed: int) -> Image.Image:
        image = Image.new("RGB", (SIDE, SIDE))
        draw = ImageDraw.Draw(image)
        for x, y in np.random.default_rng(seed).integers(8, SIDE - 8, (count, 2)).tolist():
            draw.point((x, y), fill=(220, 220, 220))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(220, 220, 220))
        return image

    return make


def drawn(make: Callable[[int], Image.Image], count: int) -> list[Image.Image]:
    """Returns pictures of a kind, each different."""
    return [make(seed) for seed in range(count)]


def builtin(name: str, count: int) -> list[Image.Image]:
    """Returns pictures of a built-in set, spread over it; overlapping crops of photographs are left out."""
    source = open_builtin(name)
    chosen = np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()
    return [source.read(k) for k in chosen]


def copies(image: Image.Image) -> Iterator[tuple[str, Image.Image, dict[str, object]]]:
    """Yields an image changed as near-duplicates are, with the options of its file."""
    small = tuple(round(side * 2 / 3) for side in image.size)
    yield "saved again (JPEG, 60)", image, {"format": "JPEG", "quality": 60}
    yield "resized to 2/3", image.resize((small[0], small[1]), Image.Resampling.BICUBIC), {"format": "PNG"}
    yield "mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), {"format": "PNG"}


def grouped(images: list[Image.Image], change: int | None) -> np.ndarray:
    """Returns each image's group, (N,), or with `change` the group of each and its copy, (N, 2)."""
    with tempfile.TemporaryDirectory() as folder:
        for k, image in enumerate(images):
            image.save(Path(folder, f"{k:05}-a.png"))
            if change is not None:
                _, copy, options = list(copies(image))[change]
                copy.save(Path(folder, f"{k:05}-b.{str(options['format']).lower()}"), **options)
        group = build_index(FolderSource(folder), None, progress=False).group
    return group if change is None else group.reshape(-1, 2)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    count = parser.parse_args().count
    kinds = {
        "text lines": drawn(text, count),
        "dots": drawn(spots(14, 2), count),
        "cells": drawn(spots(9, 7), count),
        "stars": drawn(spots(14, 0), count),
        "faint noise": drawn(faint_noise, count),
        **{name: builtin(name, count) for name in ("emoji", "digits", "photos")},
    }
    names = [name for name, _, _ in copies(kinds["dots"][0])]
    print(
        "| pictures | different, taken for near-duplicates | "
        + " | ".join(f"found: {n}" for n in names)
        + " |"
    )
    print("| --- |" + " ---: |" * (1 + len(names)))
    for kind, images in kinds.items():
        alike = len(images) - len(np.unique(grouped(images, None)))
        found = [(pairs := grouped(images, change))[:, 0] == pairs[:, 1] for change in range(len(names))]
        rates = " | ".join(f"{same.mean():.0%}" for same in found)
        print(f"| {kind} ({len(images)}) | {alike / len(images):.1%} | {rates} |")


if __name__ == "__main__":
    main()
