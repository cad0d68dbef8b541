"""From image files to tensors, beside torchvision's Pillow pipeline; with a run, how long it waited for data.

Usage: python benchmarks/loading.py [RUN]

500 × 400 photographs cut from scikit-image's, in one thread and one process, as a loading process works. Both
pipelines draw crops of 0.75 to 1 of the area, resize bicubically, mirror, and collate batches of 64.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from _timing import print_head, print_row, side_by_side
from PIL import Image
from skimage import data
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ldmae.config.data import AugmentConfig
from ldmae.core.device import reuse_freed_memory
from ldmae.images.builtin import open_builtin
from ldmae.images.dataset import ImageDataset
from ldmae.images.sources import FolderSource

WIDTH, HEIGHT, COUNT, BATCH = 500, 400, 64, 64
FORMATS = {"jpg": {"quality": 90}, "png": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a run folder: how long its trainings waited")
    if (run := parser.parse_args().run) is not None:
        waiting(run)
        return
    torch.set_num_threads(1)  # as a loading process does
    reuse_freed_memory()  # as the command line does
    print_head()
    for extension, options in FORMATS.items():
        with tempfile.TemporaryDirectory() as name:
            size = write_photos(Path(name) / "photos", extension, options)
            for pixels in (128, 256):
                title = f"{extension}, {size / 1e3:.0f} kB, to {pixels} px"
                compare(title, Path(name), pixels)
    emoji = ImageDataset(open_builtin("emoji"), 48, 0, AugmentConfig())
    seconds = side_by_side({"emoji": lambda: [emoji[(0, k)] for k in range(256)]})
    print_row("built-in emoji to 48 px", seconds, "emoji", 256, "images")


def write_photos(folder: Path, extension: str, options: dict[str, int], count: int = COUNT) -> float:
    """Writes crops of large photographs; returns their mean size in bytes."""
    folder.mkdir()
    photos = [Image.fromarray(photo()) for photo in (data.astronaut, data.coffee)]
    draws, sizes = np.random.default_rng(0), []
    for k in range(count):
        photo, path = photos[k % len(photos)], folder / f"{k:03d}.{extension}"
        left = int(draws.integers(photo.width - WIDTH + 1))
        top = int(draws.integers(photo.height - HEIGHT + 1)) if photo.height > HEIGHT else 0
        photo.crop((left, top, left + WIDTH, top + HEIGHT)).save(path, **options)
        sizes.append(path.stat().st_size)
    return float(np.mean(sizes))


def compare(title: str, folder: Path, size: int) -> None:
    source = FolderSource(folder)
    ours = ImageDataset(source, size, 0, AugmentConfig())
    steps = [
        transforms.RandomResizedCrop(
            size, scale=(0.75, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
        ),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    theirs = ImageFolder(str(folder), transforms.Compose(steps))
    keys = [(0, index) for index in range(len(ours))]

    def loaded() -> list:
        return list(DataLoader(ours, BATCH, sampler=keys))

    def normalised() -> list:
        return [ours.finish(batch, "cpu") for batch in loaded()]

    def torchvision() -> list:
        return list(DataLoader(theirs, BATCH))

    seconds = side_by_side({"uint8": loaded, "torchvision": torchvision}, turns=5)
    print_row(f"{title}, normalised on the device", seconds, "torchvision", len(ours), "images")
    seconds = side_by_side({"float": normalised, "torchvision": torchvision}, turns=5)
    print_row(f"{title}, normalised on the same core", seconds, "torchvision", len(ours), "images")


def waiting(run: Path) -> None:
    """Prints the share of a training step spent waiting for data, as metrics.jsonl of a run has it."""
    shares: dict[str, list[float]] = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "data_share" in line:
            shares.setdefault(line["stage"], []).append(line["data_share"])
    print("| stage | median share of the step spent waiting for data |\n| --- | --- |")
    for stage, values in shares.items():
        print(f"| {stage} | {100 * sorted(values)[len(values) // 2]:.2f} % |")


if __name__ == "__main__":
    main()
