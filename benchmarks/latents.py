"""Latents: reading them beside a loader that opens the shard for each item, and encoding beside its parts.

Usage: python benchmarks/latents.py [reading] [encoding] [--images 4096] [--preset NAME]

The plain loader does what LightningDiT's and LDMAE's official loaders do for an item: it opens the shard,
takes one row of `latents` or `latents_flip` and its label, draws from the posterior, normalises. A batch is
stacked.
"""

import argparse
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from _timing import print_head, print_row, side_by_side
from loading import write_photos
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ldmae import AutoencoderVMAE
from ldmae.config import as_dict, load_config
from ldmae.config.data import LatentsConfig
from ldmae.core.device import reuse_freed_memory
from ldmae.images.dataset import ImageDataset
from ldmae.images.sources import FolderSource
from ldmae.latents.encode import encode_images
from ldmae.latents.shards import LatentDataset, LatentShards

CHANNELS, GRID, SHARDS, PER_SHARD, BATCH = 16, 32, 2, 2000, 256


class PlainLoader(Dataset[tuple[Tensor, Tensor]]):
    """Opens the shard of each item; moments are drawn from here, as the official loader does."""

    def __init__(self, paths: list[Path], mean: Tensor, std: Tensor) -> None:
        self.places = [(path, row) for path in paths for row in range(PER_SHARD)]
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, row = self.places[index]
        with safe_open(path, framework="pt", device="cpu") as shard:
            name = "latents" if torch.rand(()) < 0.5 else "latents_flip"
            feature = shard.get_slice(name)[row : row + 1]  # (1, C or 2C, h, w)
            label = shard.get_slice("labels")[row : row + 1]
        if feature.shape[1] == 2 * CHANNELS:
            mean, logvar = feature.chunk(2, dim=1)
            feature = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        return ((feature - self.mean) / self.std).squeeze(0), label.squeeze(0)


def reading() -> None:
    print(f"\nBatches of {BATCH} random latents of {CHANNELS} x {GRID} x {GRID}, shards of {PER_SHARD}\n")
    print_head()
    mean, std = torch.zeros(CHANNELS, 1, 1), torch.ones(CHANNELS, 1, 1)
    for title, channels, dtype in (
        ("moments, float32", 2 * CHANNELS, torch.float32),
        ("moments, float16", 2 * CHANNELS, torch.float16),
        ("means, float32", CHANNELS, torch.float32),
    ):
        with tempfile.TemporaryDirectory() as name:
            for shard in range(SHARDS):
                stored = torch.randn(PER_SHARD, channels, GRID, GRID).to(dtype)
                tensors = {"latents": stored, "latents_flip": stored.flip(-1).contiguous()}
                tensors["labels"] = torch.zeros(PER_SHARD, dtype=torch.long)
                save_file(tensors, Path(name) / f"latents_rank00_shard{shard:03d}.safetensors")
                del stored, tensors
            shards = LatentShards(name)
            ours = LatentDataset(shards, CHANNELS, mean, std, seed=0)
            plain = PlainLoader(shards.paths, mean, std)
            source = torch.Generator().manual_seed(0)
            chosen = torch.randperm(len(ours), generator=source)[:BATCH].tolist()
            keys = [(0, index) for index in chosen]
            batch = ours.__getitems__(keys)
            copy = torch.empty_like(batch["stored"])
            rivals = {
                "a loading process": lambda ours=ours, keys=keys: ours.__getitems__(keys),
                "bytes copied": lambda copy=copy, batch=batch: copy.copy_(batch["stored"]),
                "drawn on the device": lambda ours=ours, batch=batch: ours.finish(dict(batch), "cpu"),
                "opened for each": lambda plain=plain, chosen=chosen: default_collate(
                    [plain[index] for index in chosen]
                ),
            }
            print_row(title, side_by_side(rivals, turns=5), "opened for each", BATCH, "latents")


def encoding(count: int, preset: str | None) -> None:
    """Times loading alone, the device alone, and `encode_images`, which overlaps the two and writing.

    "Both at once" is loading beside the device, where neither waits for the other: what processes take from
    each other, as cores that share caches and clock do, it shows too.
    """
    shape, size = SMALL, 128
    if preset is not None:
        config = load_config(preset)
        shape, size = as_dict(config.autoencoder.model), config.image_size
    print(f"\nEncoding 500 x 400 JPEG at {size} px, one loading process, one thread on the device\n")
    torch.manual_seed(0)
    autoencoder = AutoencoderVMAE(sample_size=size, **shape).eval()
    config = LatentsConfig(batch_size=16, num_workers=1)
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name) / "photos", "jpg", {"quality": 90}, count=count)
        images = ImageDataset(FolderSource(name), size)
        keys = [(0, index) for index in range(len(images))]
        batch = images.finish(default_collate([images[key] for key in keys[:16]]), "cpu")["images"]

        def load() -> None:
            for _ in DataLoader(images, config.batch_size, sampler=keys, num_workers=1):
                pass

        def compute() -> None:
            with torch.no_grad():
                for _ in range(2 * len(images) // config.batch_size):  # once, and once mirrored
                    autoencoder.encode(batch)

        def both() -> None:
            beside = threading.Thread(target=load)
            beside.start()
            compute()
            beside.join()

        def whole() -> None:
            folder = Path(tempfile.mkdtemp(dir=name))
            encode_images(autoencoder, images, folder, config, "benchmark")

        seconds = side_by_side(
            {"encode_images": whole, "loading": load, "device": compute, "both": both}, turns=3, warmup=1
        )
    slower = max(seconds["loading"], seconds["device"])
    print(
        "| encode_images | loading alone | device alone | both at once | of the slower one's rate | of both |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    rates = " | ".join(f"{count / value:,.3g} images/s" for value in seconds.values())
    shares = [f"{limit / seconds['encode_images']:.0%}" for limit in (slower, seconds["both"])]
    print(f"| {rates} | {' | '.join(shares)} |")


SMALL: dict[str, Any] = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("hidden_size", 96), ("num_hidden_layers", 2), ("num_attention_heads", 4))
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["reading", "encoding", []], help="by default both")
    parser.add_argument("--images", type=int, default=4096, help="images to encode")
    parser.add_argument("--preset", help="encode with its VMAE at its size; by default a small one at 128 px")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the loading processes do
    reuse_freed_memory()  # as the command line does
    parts = arguments.parts or ("reading", "encoding")
    if "reading" in parts:
        reading()
    if "encoding" in parts:
        encoding(arguments.images, arguments.preset)


if __name__ == "__main__":
    main()
