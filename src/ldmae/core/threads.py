"""How many CPU threads to compute with: found by timing the work itself, one thread against more.

More threads are not always faster: they wait for each other after every operation, which costs more than it
gains where operations are small or another program uses a core. `benchmarks/threads.py` shows when.

What threads do while they wait (spin or sleep) is not chosen: torch's OpenMP library (libgomp) reads
GOMP_SPINCOUNT and OMP_WAIT_POLICY once, when it is loaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ldmae.core.errors import counted

_ROUNDS = 5
"""Turns that each number of threads gets; the median counts."""

_GAIN = 1.1
"""More threads are taken only where they are so many times as fast: they lose most beside other programs."""

_HOPELESS = 2.0
"""A number of threads that is so many times slower than another is not timed further."""

_AT_START = torch.get_num_threads()
"""Physical cores that the process may use, or OMP_NUM_THREADS."""


@dataclass(frozen=True)
class TimedThreads:
    """What numbers of threads were timed, and which is taken."""

    count: int
    """Threads to compute with."""
    seconds: dict[int, float]
    """Median seconds of a piece of work, by number of threads; empty where there was no choice."""

    def said(self, images: int) -> str:
        """Returns `computing with 2 threads (57.1 images/s, 38.9 with 1)`, or nothing without a choice."""
        rates = {n: f"{images / s:.3g}" for n, s in self.seconds.items()}
        others = "".join(f", {rate} with {n}" for n, rate in rates.items() if n != self.count)
        chosen = f"computing with {counted(self.count, 'thread')} ({rates.get(self.count)} images/s{others})"
        return chosen if rates else ""


def allowed_cores() -> int:
    """Returns how many cores this process may use (`taskset` and the like limit them)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_threads(processes: int = 1) -> int:
    """Returns the most threads that may pay: allowed cores a process, at most OMP_NUM_THREADS."""
    return max(1, min(_AT_START, allowed_cores() // processes))


def fastest_threads(
    work: Callable[[], object],
    most: int,
    seconds: float = 0.3,
    agree: Callable[[Any], Any] = lambda mine: mine,
) -> TimedThreads:
    """Times a piece of work with one thread, with `most`, and with powers of 4 between, in turns.

    Args:
        work: does the same each time.
        most: the largest number of threads; with 1 nothing is timed.
        seconds: about how long each turn takes, of which there are 5 for each number of threads. A turn does
            the work once at least.
        agree: makes what the main process found that of all who work together.

    Returns:
        The smallest number of threads that no larger one outdoes by 10 %. The process still computes with the
        number that was timed last.
    """
    numbers = [n for n in (1, 4, 16, 64) if n < most] + [most]
    if most == 1:
        return TimedThreads(1, {})
    for number in reversed(numbers):  # the first time is slower: kernels are chosen, memory is mapped
        torch.set_num_threads(number)
        work()
    repeats = agree(max(1, round(seconds / _time(work, 1))))
    turns: dict[int, list[float]] = {number: [] for number in numbers}
    for turn in range(_ROUNDS):
        for number in numbers if turn % 2 else reversed(numbers):
            torch.set_num_threads(number)
            turns[number].append(_time(work, repeats))
        best = min(median(values) for values in turns.values())
        numbers = agree([n for n in numbers if median(turns[n]) < _HOPELESS * best])
    found = {number: median(values) for number, values in turns.items()}
    count = next(n for n in found if all(found[n] <= found[m] * _GAIN for m in found if m > n))
    return agree(TimedThreads(count, found))


def _time(work: Callable[[], object], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - began) / repeats
