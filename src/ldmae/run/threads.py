"""How many CPU threads a run computes with: chosen once, noted, and the same whenever it is started again."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from ldmae.core.autoencoding import encode_moments
from ldmae.core.device import device_name
from ldmae.core.errors import UserError
from ldmae.core.progress import tell
from ldmae.core.provenance import Records
from ldmae.core.threads import TimedThreads, fastest_threads, most_threads
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.loading import is_run_folder
from ldmae.run.run import Run
from ldmae.training.engine import Trainer
from ldmae.training.rehearsal import rehearsal
from ldmae.training.sharding import is_sharded

_SLOWER = 3.0
"""A run says so when its steps take so many times as long as at its start."""

_PIXELS = 2**17
"""Pixels in a piece of work that is timed."""

_STEPS = 20
"""Steps whose median is compared."""


def _settle_threads(run: Run, name: str, time_them: Callable[[], TimedThreads], amount: int) -> None:
    """Sets the number of threads that a stage computes with on a CPU, and notes it in the stage's record.

    It is the settings' number, else that which the stage began with, else that of the run's first training,
    else what `time_them` finds, in all processes together, of work on `amount` images.
    """
    if run.accelerator.device.type != "cpu":
        return
    records, record = run.records, run.records.stages[name]
    began, most = record.threads or records.threads(), most_threads(_processes_here(run))
    if run.config.threads != "auto":
        count, said = int(run.config.threads), ""
        if began and count != began:
            said = f"threads={count} in place of {began}: results will differ in their last bits"
    elif began:
        count, said = began, ""
        if began > most:
            said = (
                f"{name} computes with {began} threads, as when it started; {most} are available now: "
                f"threads={most} is faster, and changes the results in their last bits"
            )
    else:
        timed = time_them()
        count, said = timed.count, timed.said(amount)
    if said and run.main:
        tell(said)
    torch.set_num_threads(count)
    records.note_threads(name, count, device_name(run.accelerator.device))


def settle_for_training(run: Run, trainer: Trainer) -> None:
    """Settles the threads of a training that is ready for its first step, by timing steps of it."""

    def time_them() -> TimedThreads:
        if trainer.step or is_sharded(run.accelerator):  # begun by a version that kept no record
            return TimedThreads(torch.get_num_threads(), {})
        with rehearsal(trainer) as step:
            began = time.perf_counter()
            step()
            left = (time.perf_counter() - began) * trainer.config.steps
            return fastest_threads(step, most_threads(_processes_here(run)), min(0.3, left / 100), _of_main)

    _settle_threads(run, trainer.stage, time_them, trainer.config.batch_size)


def settle_for_encoding(run: Run, autoencoder: Any) -> None:
    """Settles the threads for latents; where no training has chosen, by timing the encoder."""
    work, amount = encoding(autoencoder, run.config.image_size, run.config.latents.batch_size)

    def time_them() -> TimedThreads:
        return fastest_threads(work, most_threads(_processes_here(run)), 0.1, _of_main)

    _settle_threads(run, "latents", time_them, amount)


def settle_alone(
    work: Callable[[], object],
    amount: int,
    device: torch.device,
    threads: str = "auto",
    source: str = "",
) -> None:
    """Sets the number of CPU threads for a process that works on no run: to sample, measure or encode.

    It is the settings' number, or that which the run folder `source` was trained with, or found by timing
    `work`, a piece of it on `amount` images.
    """
    if device.type != "cpu":
        return
    known = int(threads) if threads != "auto" else _recorded_threads(source)
    timed = TimedThreads(known, {}) if known else fastest_threads(work, most_threads(), 0.1)
    torch.set_num_threads(timed.count)
    if said := timed.said(amount):
        tell(said)


def _recorded_threads(source: str) -> int:
    """Returns the threads that a run folder's models were trained with; 0 where that is not known."""
    try:
        return Records(Path(source)).threads() if is_run_folder(source) else 0
    except UserError:  # of another version: it is used, and not resumed
        return 0


def encoding(autoencoder: Any, size: int, at_most: int) -> tuple[Callable[[], object], int]:
    """Returns a piece of an encoder's work, for timing, and the images in it."""
    amount = max(1, min(at_most, _PIXELS // size**2))
    images = torch.zeros(amount, 3, size, size)
    return torch.no_grad()(lambda: encode_moments(autoencoder, images)), amount


def velocity(pipeline: LDMAEPipeline, images: int) -> Callable[[], object]:
    """Returns a piece of a pipeline's work, for timing: an evaluation of its diffusion model."""
    transformer = pipeline.transformer
    side, channels = transformer.config["sample_size"], transformer.config["in_channels"]
    latents = torch.zeros(images, channels, side, side, device=transformer.device, dtype=transformer.dtype)
    times, labels = latents.new_full((images,), 0.5), torch.zeros_like(latents[:, 0, 0, 0], dtype=torch.long)
    return torch.no_grad()(lambda: transformer(latents, times, labels))


def _of_main(mine: Any) -> Any:
    return broadcast_object_list([mine])[0]


def _processes_here(run: Run) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE") or run.accelerator.num_processes)


class SlowSteps:
    """Says once when steps of a training have become several times slower than at its start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._marks = clock, list[float]()
        self._first, self._told = 0.0, False

    def __call__(self, trainer: Trainer) -> None:
        """Takes note of a step that was just done."""
        if self._told or not trainer.accelerator.is_main_process:
            return
        self._marks.append(self._clock())
        if len(self._marks) <= _STEPS:
            return
        seconds = median(b - a for a, b in itertools.pairwise(self._marks))
        self._marks = self._marks[-1:]
        self._first = self._first or seconds
        if seconds >= _SLOWER * self._first:
            self._told = True
            tell(self._message(trainer, seconds))

    def _message(self, trainer: Trainer, seconds: float) -> str:
        threads = torch.get_num_threads()
        message = (
            f"{trainer.stage}: a step now takes {seconds:.2g} s, it took {self._first:.2g} s at the start. "
            "Another program seems to use the machine; stop it"
        )
        if trainer.accelerator.device.type == "cpu" and threads > 1:
            message += (
                f". Or press Ctrl+C and resume with threads=1, which suffers less than {threads} threads; "
                "the results then differ in their last bits"
            )
        return message
