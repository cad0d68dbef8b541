"""Which item stands in which row of which step: a function of the seed and the step alone."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ldmae.core.errors import UserError
from ldmae.core.progress import tell
from ldmae.core.random import generator


def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Returns the (length,) permutation in which an epoch goes through the items."""
    return torch.randperm(length, generator=generator(seed, "order", epoch)).numpy()


def split_rows(batch_size: int, micro_batch_size: int | None, rank: int, world: int) -> list[range]:
    """Returns this process's rows of every whole batch, a range for each micro-batch.

    A process takes a contiguous share of the rows, so the mapping does not depend on the micro-batch size.
    All processes have as many micro-batches as the one with the most rows, for sharded parameters are
    gathered by all at once. A range is empty only where a process has no row at all; where shares differ by
    one, and `micro_batch_size` is 1, one micro-batch has two rows.
    """
    first, last = rank * batch_size // world, (rank + 1) * batch_size // world
    share, smallest, largest = last - first, batch_size // world, -(-batch_size // world)
    pieces = min(-(-largest // (micro_batch_size or largest)), max(1, smallest))
    return [range(first + share * i // pieces, first + share * (i + 1) // pieces) for i in range(pieces)]


class KeyedBatches(Sampler[list[tuple[int, int]]]):
    """Yields for each micro-batch of each step the (epoch, index) keys of its items.

    The epochs' permutations follow each other without a gap: a batch may end one epoch and begin the next, so
    every item is seen equally often and no batch is short.
    """

    def __init__(
        self, length: int, batch_size: int, pieces: Sequence[range], start: int, stop: int, seed: int
    ) -> None:
        self.length, self.batch_size, self.pieces = length, batch_size, pieces
        self.start, self.stop, self.seed = start, stop, seed

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.pieces)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start, self.stop):
            first_epoch = step * self.batch_size // self.length
            orders = {epoch: order for epoch, order in orders.items() if epoch >= first_epoch}
            for rows in self.pieces:
                keys = []
                for row in rows:
                    epoch, place = divmod(step * self.batch_size + row, self.length)
                    if epoch not in orders:
                        orders[epoch] = _epoch_order(self.seed, epoch, self.length)
                    keys.append((epoch, int(orders[epoch][place])))
                yield keys


def keyed_loader(
    dataset: Dataset[Any], batches: KeyedBatches, num_workers: int, device: torch.device
) -> DataLoader[Any]:
    """Builds a loader whose batches, for a device, do not depend on the number of workers."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=getattr(dataset, "collate", default_collate),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if num_workers else None,
    )


class WaitingNotice:
    """Says once a start that a training waits for data for more than a tenth of its time."""

    def __init__(self, stage: str, num_workers: int) -> None:
        self.stage, self.num_workers, self._lines, self._told = stage, num_workers, 0, False

    def __call__(self, share: float) -> None:
        """Takes note of the share of the time since the last line of metrics that went into waiting."""
        self._lines += 1
        # the first line's share has the start of the loading processes in it
        if self._lines == 1 or share <= 0.1 or self._told:
            return
        self._told = True
        tell(
            f"{self.stage} waits for data {share:.0%} of the time; load with more processes: "
            f"{self.stage}.training.num_workers={max(2, 2 * self.num_workers)} (now {self.num_workers})"
        )


def stream_batches(
    dataset: Any, pieces: Sequence[range], start: int, num_workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields micro-batches of a stream without end, epoch after epoch.

    Args:
        dataset: iterable, with `set_epoch`; this process's share of the stream.
        pieces: the rows of each micro-batch of a step.
        start: the step that a resumed training begins at; its epochs have orders of their own.
        num_workers: processes that load data.

    Raises:
        UserError: an epoch of the stream has no image.
    """
    sizes = itertools.cycle([len(piece) for piece in pieces])
    rows: list[dict[str, torch.Tensor]] = []
    size = next(sizes)
    for epoch in itertools.count(start):
        dataset.set_epoch(epoch)
        empty = True
        for row in DataLoader(dataset, batch_size=None, num_workers=num_workers):
            empty = False
            rows.append(row)
            if len(rows) == size:
                yield default_collate(rows)
                rows, size = [], next(sizes)
        if empty:
            raise UserError("the stream gave no image; check its address and its labels")
