"""Steps that leave no trace, to be timed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import torch

from ldmae.training.engine import Trainer, checked_output


@contextlib.contextmanager
def rehearsal(trainer: Trainer) -> Iterator[Callable[[], None]]:
    """Yields a function that does the forward and backward passes of a training step and keeps nothing.

    Each call takes the next batch of a loader of its own, whose processes work beside it as in training.
    Weights, optimizer, buffers, random state and the training's own order of data stay as they are. Compiled
    blocks run as they are written.

    Args:
        trainer: ready for its first step; not sharded.
    """
    objective = trainer.objective
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    batches = itertools.chain.from_iterable(trainer.batches() for _ in itertools.count())

    def rehearse() -> None:
        for batch, keys in trainer.looked_ahead(next(batches)):
            with trainer.accelerator.autocast():
                output = checked_output(objective(batch, keys), trainer.stage)
            # not backward(): it would leave gradients, and wait for other processes
            torch.autograd.grad(output.loss, parameters, allow_unused=True)

    eager = torch.compiler.set_stance("force_eager") if trainer.config.compile else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[]), eager:
        yield rehearse
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
