"""Which item stands in which row of which step: a function of the seed and the step alone."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ldmae.core.random import generator


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Returns the (length,) permutation in which an epoch goes through the items."""
    return torch.randperm(length, generator=generator(seed, "order", epoch)).numpy()


def split_rows(batch_size: int, micro_batch_size: int | None, rank: int, world: int) -> list[range]:
    """Returns this process's rows of every whole batch, a range for each micro-batch.

    A process takes a contiguous share of the rows, so the mapping does not depend on the micro-batch size.
    """
    first, last = rank * batch_size // world, (rank + 1) * batch_size // world
    pieces = -(-(last - first) // (micro_batch_size or last - first))
    edges = [first + (last - first) * i // pieces for i in range(pieces + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


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
                        orders[epoch] = epoch_order(self.seed, epoch, self.length)
                    keys.append((epoch, int(orders[epoch][place])))
                yield keys


def single_thread(worker: int) -> None:
    """Keeps a loading process to one core, so that it does not fight the training for the others."""
    torch.set_num_threads(1)


def keyed_loader(dataset: Dataset[Any], batches: KeyedBatches, num_workers: int) -> DataLoader[Any]:
    """Builds a loader whose batches do not depend on the number of workers."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        worker_init_fn=single_thread,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if num_workers else None,
    )
