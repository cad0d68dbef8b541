"""Torch datasets over the sources: what a data loader's workers do."""

# H W image size in pixels

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.core.random import generator
from ldmae.images.settings import AugmentConfig
from ldmae.images.streams import StreamSource
from ldmae.images.transforms import augment, center_crop, to_tensor


class ImageDataset(Dataset[dict[str, Tensor]]):
    """A source's images as tensors; indexed by (epoch, index), for the augmentation is keyed by both.

    Args:
        source: any source with random access.
        size: H = W of the result in pixels.
        seed: key of the augmentation.
        augment: random crop and flip; None takes ADM's centre crop, the same in every epoch.
    """

    def __init__(self, source: ImageSource, size: int, seed: int = 0, augment: AugmentConfig | None = None):
        self.source = source
        self.size = size
        self.seed = seed
        self.augment = augment

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `{"images": (3, size, size) float32 in [-1, 1], "labels": () int64}`.

        Raises:
            UserError: the image can no longer be read.
        """
        epoch, index = key
        try:
            image = self.source.read(index)
        except Exception as error:  # decoders raise whatever they like
            raise UserError(
                f"cannot read {self.source.describe(index)} ({error}), which was readable when the images "
                f"were checked; put "
                "it back, then type the same command again"
            ) from error
        if self.augment is None:
            image = center_crop(image, self.size)
        else:
            image = augment(image, self.size, self.augment, generator("augment", self.seed, epoch, index))
        return {"images": to_tensor(image), "labels": torch.tensor(int(self.source.labels[index]))}


class StreamDataset(IterableDataset[dict[str, Tensor]]):
    """A stream's images as tensors, one epoch at a time, each process and worker its share.

    Args:
        source: the stream.
        size: H = W of the result in pixels.
        seed: key of order and augmentation.
        augment: random crop and flip, or None for the centre crop.
        rank: this process among `world`.
        world: number of processes.
        part: `train`, `held_out` or `all`.
    """

    def __init__(
        self,
        source: StreamSource,
        size: int,
        seed: int = 0,
        augment: AugmentConfig | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        part: str = "train",
    ):
        self.source, self.size, self.seed, self.augment = source, size, seed, augment
        self.rank, self.world, self.part = rank, world, part
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration goes through."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        items = self.source.iterate(self.seed, self.epoch, self.rank, self.world, part=self.part)
        for k, (image, label) in enumerate(items):
            yield {"images": to_tensor(self._sized(image, k)), "labels": torch.tensor(label)}

    def _sized(self, image: Image.Image, k: int) -> Image.Image:
        if self.augment is None:
            return center_crop(image, self.size)
        worker = torch.utils.data.get_worker_info()
        key = ("augment", self.seed, self.epoch, self.rank, 0 if worker is None else worker.id, k)
        return augment(image, self.size, self.augment, generator(*key))
