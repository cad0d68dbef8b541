"""Reading cached latents, beside opening the shard anew for each item, as LightningDiT's loader does.

Usage: python benchmarks/latents.py
"""

import tempfile
from pathlib import Path

import torch
from _timing import print_head, print_row, side_by_side
from safetensors import safe_open
from safetensors.torch import save_file

from ldmae.latents.shards import LatentDataset, LatentShards, draw_latent

CHANNELS, GRID, SHARDS, PER_SHARD, READS = 16, 32, 4, 500, 256


def main() -> None:
    torch.set_num_threads(1)  # as the loading processes do
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shard in range(SHARDS):
            moments = torch.randn(PER_SHARD, 2 * CHANNELS, GRID, GRID)
            tensors = {"latents": moments, "latents_flip": moments.flip(-1).contiguous()}
            tensors["labels"] = torch.zeros(PER_SHARD, dtype=torch.long)
            save_file(tensors, folder / f"latents_rank00_shard{shard:03d}.safetensors")
        shards = LatentShards(folder)
        zero, one = torch.zeros(CHANNELS, 1, 1), torch.ones(CHANNELS, 1, 1)
        ours = LatentDataset(shards, CHANNELS, zero, one, seed=0)
        chosen = torch.randperm(len(ours), generator=torch.Generator().manual_seed(0))[:READS].tolist()
        source = torch.Generator().manual_seed(0)

        def opening_each() -> None:
            for index in chosen:
                with safe_open(shards.paths[index // PER_SHARD], framework="pt") as file:
                    stored = file.get_slice("latents")[index % PER_SHARD]
                    draw_latent(stored, CHANNELS, source)

        def mapped() -> None:
            for index in chosen:
                ours[(0, index)]

        print(f"{READS} latents of {CHANNELS} × {GRID} × {GRID} with their log variances, drawn\n")
        print_head()
        seconds = side_by_side({"mapped": mapped, "opened for each": opening_each})
        print_row("reading latents", seconds, "opened for each", READS, "latents")


if __name__ == "__main__":
    main()
