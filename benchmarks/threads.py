"""What `threads: auto` chooses for the demo, beside one thread: alone and beside a busy program.

Usage: python benchmarks/threads.py [--only CONDITION …]

Each condition is a process of its own. `AVX2` hides all but AVX2 from torch, without bf16; `busy` has another
program use a core all the while; `one core` allows a single one. The run chooses by its first steps of
pre-training, as any run; then one thread and all take turns.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from _timing import side_by_side

from ldmae.config import load_config
from ldmae.contracts import BatchKeys
from ldmae.core.device import reuse_freed_memory
from ldmae.core.threads import most_threads
from ldmae.run.plan import example_rows
from ldmae.run.run import Run
from ldmae.run.schedule import execute_stages, open_run
from ldmae.run.trainings import untrained_objective
from ldmae.training.engine import Trainer
from ldmae.training.rehearsal import rehearsal

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
CONDITIONS = [f"{isa}, {load}" for isa in ("all", "AVX2") for load in ("idle", "busy", "one core")]


class _EnoughError(Exception):
    """Ends a training that was to be timed only."""


def measure(precision: str) -> None:
    """Prints as JSON the threads chosen, and the seconds of a step by threads for each training."""
    reuse_freed_memory()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(load_config("emoji", [f"mixed_precision={precision}"]), Path(folder))

        def take_turns(trainer: Trainer) -> None:
            with rehearsal(trainer) as step:
                for stage, work in ((trainer.stage, step), ("diffusion", _diffusion_step(run))):
                    rivals = {str(count): _with_threads(count, work) for count in sorted({1, most_threads()})}
                    found[stage] = side_by_side(rivals, warmup=1)
            raise _EnoughError

        run.on_start.append(take_turns)
        with contextlib.suppress(_EnoughError):
            execute_stages(run, "autoencoder")
    print(json.dumps({"chosen": run.records.threads(), "seconds": found}))


def _diffusion_step(run: Run) -> Callable[[], None]:
    config, auto = run.config, run.config.autoencoder
    shape = (auto.latent_channels, config.image_size // auto.patch_size)
    objective = untrained_objective(config, "diffusion", shape, len(run.train.classes))
    count = config.diffusion.training.batch_size
    batch, keys = example_rows(config, "diffusion", shape, count), BatchKeys(0, 0, range(count), count)

    def step() -> None:
        with run.accelerator.autocast():
            loss = objective(batch, keys).loss
        torch.autograd.grad(loss, list(objective.parameters()), allow_unused=True)

    return step


def _with_threads(count: int, work: Callable[[], None]) -> Callable[[], None]:
    def rival() -> None:
        torch.set_num_threads(count)
        work()

    return rival


def rows(condition: str) -> list[str]:
    """Returns the rows of a condition: one for each training."""
    isa, load = condition.split(", ")
    command = [sys.executable, __file__, "--precision", "no" if isa == "AVX2" else "auto"]
    command = ["taskset", "-c", "0", *command] if load == "one core" else command
    environment = {**os.environ, **(AVX2 if isa == "AVX2" else {})}
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if load == "busy" else None
    try:
        printed = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
    finally:
        if other is not None:
            other.kill()
    measured = json.loads(printed.splitlines()[-1])
    chosen, lines = measured["chosen"], []
    for stage, seconds in measured["seconds"].items():
        one, most = (seconds[key] for key in (min(seconds, key=int), max(seconds, key=int)))
        ratio = seconds[str(chosen)] / one
        times = f"{one * 1e3:.0f} | {most * 1e3:.0f}"
        lines.append(f"| {condition} | {stage} | {times} | {chosen} | {ratio:.2f} × |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=CONDITIONS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.precision:
        measure(arguments.precision)
        return
    print(f"{most_threads()} threads at most\n")
    print("| instructions, load | step of | 1 thread, ms | all threads, ms | chosen | time by that of 1 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for condition in arguments.only or CONDITIONS:
        print("\n".join(rows(condition)), flush=True)


if __name__ == "__main__":
    main()
