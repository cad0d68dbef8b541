"""Torch datasets over the sources: what a data loader's workers do, and what is left to the device."""

# B batch, H W image size in pixels

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate
from torchvision.io import ImageReadMode, decode_jpeg

from ldmae.config.data import AugmentConfig
from ldmae.contracts import ImageSource
from ldmae.core.device import moved
from ldmae.core.errors import UserError
from ldmae.images.augmentation import Crop, augment, cut, draw_crop
from ldmae.images.base import open_image
from ldmae.images.decoding import Picture
from ldmae.images.streams import StreamSource
from ldmae.images.transforms import center_crop, to_unit_range


def _sized(picture: Picture, size: int, config: AugmentConfig | None, key: tuple[int | str, ...]) -> Tensor:
    """Returns the pixels (size, size, 3) uint8 of a random crop drawn by key, or of the centre."""
    if config is None:
        return torch.from_numpy(np.array(center_crop(picture.image(), size)))
    return augment(picture, size, config, *key)


def _finish_images(batch: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Moves a batch to its device as bytes, and there makes `images` (B, 3, H, W) in [-1, 1] of `pixels`."""
    batch = moved(batch, device)
    return {"images": to_unit_range(batch.pop("pixels")), **batch}


class ImageDataset(Dataset[dict[str, Tensor]]):
    """A source's images as pixels; indexed by (epoch, index), for the augmentation is keyed by both.

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
        """Returns `{"pixels": (H, W, 3) uint8, "labels": () int64}`; `finish` makes images of a batch.

        With `augment.gpu_decoding` a JPEG file comes as its `content` and the `crop` to cut from it.

        Raises:
            UserError: the image can no longer be read.
        """
        epoch, index = key
        draws = ("augment", self.seed, epoch, index)
        try:
            picture = open_image(self.source, index)
            if self.augment is not None and self.augment.gpu_decoding and picture.format == "JPEG":
                crop = draw_crop(*picture.size, self.size, self.augment, *draws)
                content = torch.frombuffer(bytearray(picture.content), dtype=torch.uint8)
                item = {"content": content, "crop": torch.tensor(crop)}
            else:
                item = {"pixels": _sized(picture, self.size, self.augment, draws)}
        except UserError:  # of a file that was replaced
            raise
        except Exception as error:  # decoders raise whatever they like
            raise UserError(
                f"cannot read {self.source.describe(index)} ({error}), which was readable when the images "
                f"were checked; put it back, then run the same command again"
            ) from error
        return {**item, "labels": torch.tensor(int(self.source.labels[index]))}

    @staticmethod
    def collate(items: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Makes a batch of items, some of which may be files that the GPU is to decode."""
        files = [row for row, item in enumerate(items) if "content" in item]
        decoded = [item["pixels"] for item in items if "pixels" in item]
        if not files:
            return default_collate(items)
        return {
            "labels": torch.stack([item["labels"] for item in items]),
            "contents": [items[row]["content"] for row in files],
            "crops": torch.stack([items[row]["crop"] for row in files]),
            "rows": torch.tensor(files),
            **({"pixels": torch.stack(decoded)} if decoded else {}),
        }

    def finish(self, batch: dict[str, Any], device: torch.device | str) -> dict[str, Tensor]:
        """Moves a batch of items to its device and returns `images` (B, 3, H, W) in [-1, 1] and `labels`.

        Raises:
            UserError: the GPU cannot decode one of the files.
        """
        if "contents" not in batch:
            return _finish_images(batch, device)
        try:
            decoded = decode_jpeg(batch["contents"], ImageReadMode.RGB, device=device)
        except RuntimeError as error:
            raise UserError(
                f"nvJPEG cannot decode a file ({error}); set augment.gpu_decoding=false"
            ) from error
        labels, rows = batch["labels"].to(device), batch["rows"].tolist()
        images = torch.empty(len(labels), 3, self.size, self.size, device=device)
        for row, image, crop in zip(rows, decoded, batch["crops"].tolist(), strict=True):
            images[row] = cut(image, Crop(*crop), self.size)
        if "pixels" in batch:
            others = sorted(set(range(len(labels))) - set(rows))
            images[others] = batch["pixels"].to(device).movedim(-1, 1).float()
        return {"images": images.div_(127.5).sub_(1.0), "labels": labels}

    def images(self, indices: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
        """Returns images of the first epoch, (B, 3, H, W) in [-1, 1]."""
        return self.finish(self.collate([self[(0, index)] for index in indices]), device)["images"]


class StreamDataset(IterableDataset[dict[str, Tensor]]):
    """A stream's training images as pixels, one epoch at a time, each process and worker its share.

    Args:
        source: the stream.
        size: H = W of the result in pixels.
        seed: key of order and augmentation.
        augment: random crop and flip, or None for the centre crop.
        rank: this process among `world`.
        world: number of processes.
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
    ):
        self.source, self.size, self.seed, self.augment = source, size, seed, augment
        self.rank, self.world = rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration goes through."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        key = ("augment", self.seed, self.epoch, self.rank, 0 if worker is None else worker.id)
        k = 0

        def sized(picture: Picture) -> Tensor:
            return _sized(picture, self.size, self.augment, (*key, k))

        items = self.source.iterate(self.seed, self.epoch, self.rank, self.world, take=sized)
        for k, (pixels, label) in enumerate(items, start=1):  # noqa: B007, the next image's key
            yield {"pixels": pixels, "labels": torch.tensor(label)}

    finish = staticmethod(_finish_images)
