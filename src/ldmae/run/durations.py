"""Times a piece of work on a few images, and says what one takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

_FEW = 2
"""Images that a piece of work is tried on first."""


_PATIENCE = 1.0
"""Seconds above which a piece of work is tried on no more images."""


def seconds_of_an_image(
    work: Callable[[int], object], count: int, device: torch.device | None = None
) -> float:
    """Returns the seconds of an image in work on `count` of them.

    Where all of them take more than `_PATIENCE`, they are extrapolated from a few, by a line through two
    counts: what a call costs by itself (an optimizer's step, say) does not grow with the images.

    Args:
        work: called with a number of images.
        count: as many as the run takes at once.
        device: whose queue is waited for.
    """
    few = min(_FEW, count)
    work(few)  # the first time is slower
    seconds = min(seconds_of(lambda: work(few), device) for _ in range(2))
    if count == few or seconds > _PATIENCE:
        return seconds / few
    more = min(2 * few, count)
    growth = (min(seconds_of(lambda: work(more), device) for _ in range(2)) - seconds) / (more - few)
    expected = (seconds + max(0.0, growth) * (count - few)) / count
    if expected * count > _PATIENCE:
        return expected
    try:
        work(count)
    except torch.OutOfMemoryError:  # beside what the training holds
        return expected
    return median(seconds_of(lambda: work(count), device) for _ in range(3)) / count


def seconds_of(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Returns the seconds of a piece of work, all that it asks of the device included."""
    began = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
