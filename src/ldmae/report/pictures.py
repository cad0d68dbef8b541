"""Pictures that lie inside the page: found in a run folder, made small enough, written as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldmae.report import figures

UNREADABLE = Exception
"""What reading a picture or an array raises: decoders raise whatever they like."""


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    uri: str
    width: int
    height: int


class _Files(Sequence[Image.Image]):
    """Image files that are opened when they are asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        with Image.open(self.paths[index]) as image:
            return image.copy()


def samples_picture(folder: Path, record: dict[str, Any], budget: int, problems: list[str]) -> Picture | None:
    """Returns the grid of samples, laid out anew from its images where it is missing.

    Args:
        folder: the run's `samples`.
        record: what `samples.json` says.
        budget: see `encode_picture`.
        problems: takes the names of files that can't be read.
    """
    grid = folder / "grid.png"
    if grid.exists():
        try:
            with Image.open(grid) as image:
                return encode_picture(image.convert("RGB"), budget)
        except UNREADABLE:
            problems.append("samples/grid.png could not be read")
    files = _Files(sorted((folder / "images").glob("*.png")))
    labels, names = record.get("labels"), record.get("class_names")
    if len(files) and isinstance(labels, list) and isinstance(names, list):
        try:
            picture = figures.class_grid(files, [int(label) for label in labels][: len(files)], names)
            return encode_picture(picture, budget)
        except UNREADABLE:
            problems.append("samples/images could not be read")
    return None


def reconstructions_picture(path: Path, budget: int, problems: list[str]) -> Picture | None:
    """Returns originals above their reconstructions, from the arrays that the evaluation leaves.

    Args:
        path: the `.npz` file.
        budget: see `encode_picture`.
        problems: takes the names of files that can't be read.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = ("originals", "reconstructions", "masked_inputs", "masked_reconstructions")
            pairs = {name: arrays[name] for name in names if name in arrays}
        return encode_picture(figures.reconstruction_pairs(**pairs), budget)
    except UNREADABLE:
        problems.append(f"{path.name} could not be read")
    return None


def components_picture(path: Path, budget: int, problems: list[str]) -> Picture | None:
    """Returns images above their latents' principal components; see `reconstructions_picture`."""
    return _two_rows(path, {"original": "originals", "components": "components"}, budget, problems)


def copies_picture(path: Path, budget: int, problems: list[str]) -> Picture | None:
    """Returns samples above their nearest training images; see `reconstructions_picture`."""
    return _two_rows(path, {"generated": "generated", "nearest": "nearest"}, budget, problems)


def _two_rows(path: Path, named: dict[str, str], budget: int, problems: list[str]) -> Picture | None:
    """Returns the images of two arrays, by their rows' labels, one row above the other."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rows = {label: arrays[name] for label, name in named.items()}
        columns = min(8, *(len(row) for row in rows.values()))
        tiles = [Image.fromarray(tile) for row in rows.values() for tile in row[:columns]]
        return encode_picture(figures.image_grid(tiles, columns, row_labels=list(rows)), budget)
    except UNREADABLE:
        problems.append(f"{path.name} could not be read")
    return None


def interpolation_picture(path: Path, budget: int, problems: list[str]) -> Picture | None:
    """Returns the strips from one image to another, small ones enlarged; see `reconstructions_picture`."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            strip = Image.fromarray(arrays["strip"]).convert("RGB")
        return encode_picture(figures.resized(strip, float(max(1, 800 // strip.width))), budget)
    except UNREADABLE:
        problems.append(f"{path.name} could not be read")
    return None


def encode_picture(image: Image.Image, budget: int, longest: int = 6000) -> Picture:
    """Encodes a picture into the page in at most about `budget` bytes: without loss if it fits, else smaller.

    Args:
        image: RGB.
        budget: bytes before base64.
        longest: pixels of the longer side at most.
    """
    image = image.copy()
    image.thumbnail((min(1600, longest), longest))
    best = b""
    if image.width * image.height < 4_000_000:
        best = _encoded(image, lossless=True)
    while not best or len(best) > budget:
        best = _encoded(image, quality=85)
        if max(image.size) <= 16:
            break
        if len(best) > budget:
            factor = 0.95 * (budget / len(best)) ** 0.5
            image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))
    return Picture(data_uri(best, "image/webp"), image.width, image.height)


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", **options)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Returns a file's content as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
