"""A few images, and shards of latents to read."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from ldmae.core.random import generator


class Images(Dataset):
    """Items (0, index), as the images stage gives them without augmentation."""

    def __init__(self, length: int = 10, broken_at: int | None = None) -> None:
        self.length, self.broken_at = length, broken_at
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        assert epoch == 0
        if index == self.broken_at:
            raise KeyboardInterrupt
        self.read.append(index)
        image = torch.rand(3, 16, 16, generator=generator("image", index)) * 2 - 1
        return {"images": image, "labels": torch.tensor(index % 3)}


def write_shard(folder: Path, latents: Tensor, labels: Tensor | None = None, **others: Tensor) -> Path:
    """Writes the next shard of a folder as LightningDiT's tools do, without a fingerprint."""
    folder.mkdir(exist_ok=True)
    number = len(list(folder.glob("*.safetensors")))
    path = folder / f"latents_rank00_shard{number:03d}.safetensors"
    labels = torch.arange(len(latents)) if labels is None else labels
    save_file({"latents": latents, "labels": labels, **others}, path)
    return path
