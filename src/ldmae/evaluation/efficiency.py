"""What an autoencoder costs: parameters, bytes, operations, images a second, memory."""

# B batch, C latent channels, h w latent grid

from __future__ import annotations

import contextlib
import copy
import ctypes
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ldmae.contracts import Metric
from ldmae.core.autoencoding import decode, encode_moments, placement
from ldmae.core.device import device_name
from ldmae.core.errors import UserError
from ldmae.core.flops import count_autoencoder_flops
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.subject import Subject

_PAPER_COST = {
    "AE, DAE, VAE, SD-VAE": {"parameters": 83_819_683, "weights in MB": 319.7, "GFLOPs": 17331.0},
    "VMAE": {"parameters": 11_191_412, "weights in MB": 42.7, "GFLOPs": 704.0},
}
"""What the paper prints of two models (arXiv 2507.09984), which are known by their parameters with buffers.

It stands beside our counts; the paper's GFLOPs could not be remade.
"""


def count_parameters(autoencoder: Any) -> tuple[int, int, int]:
    """Returns the trainable parameters, all with buffers (such as position tables), and all their bytes.

    A model that was frozen whole, as one is to be measured, counts as trainable.
    """
    parameters = list(autoencoder.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad] or parameters
    everything = [*parameters, *autoencoder.buffers()]
    return (
        sum(tensor.numel() for tensor in trained),
        sum(tensor.numel() for tensor in everything),
        sum(tensor.numel() * tensor.element_size() for tensor in everything),
    )


def _measure_size(autoencoder: Any, size: int) -> list[Metric]:
    """Counts parameters, bytes and operations for one image of `size` × `size` pixels; times nothing."""
    trainable, everything, weight = count_parameters(autoencoder)
    flops = count_autoencoder_flops(autoencoder, size)
    note = f"one image of {size} px; a multiply-add counts 2; products, convolutions and attention only"
    of_weights, of_flops = _paper_says(everything)
    return [
        Metric(name="parameters", value=trainable, better="lower", note="trainable ones"),
        Metric(name="parameters with buffers", value=everything, better="lower"),
        Metric(
            name="weights",
            value=weight,
            unit="B",
            better="lower",
            note=f"with buffers, as loaded{of_weights}",
        ),
        Metric(name="FLOPs", value=flops.total, better="lower", note=f"encode + decode, {note}{of_flops}"),
        Metric(name="FLOPs encode", value=flops.encode, better="lower", note=note),
        Metric(name="FLOPs decode", value=flops.decode, better="lower", note=note),
    ]


def _paper_says(parameters: int) -> tuple[str, str]:
    """Returns what the paper prints of a model with so many parameters, of its weights and of its FLOPs."""
    for cost in _PAPER_COST.values():
        if abs(parameters - cost["parameters"]) < 1000:  # VMAE's mask token may be there or not
            return (
                f"; the paper prints {cost['weights in MB']:g} MB of this model",
                f"; the paper prints {cost['GFLOPs']:g} GFLOPs of this model at 256 px, counted in a way "
                "that we could not reproduce",
            )
    return "", ""


@torch.no_grad()
def measure_speed(
    autoencoder: Any, size: int, batch_size: int = 16, dtype: torch.dtype = torch.float32, turns: int = 7
) -> list[Metric]:
    """Times encode and decode on the device where the autoencoder lies, and measures their peak memory.

    Args:
        autoencoder: any with `encode` and `decode`; a copy is taken where it has another dtype.
        size: pixels along a side of the images.
        batch_size: images at once.
        dtype: of weights and activations.
        turns: timed turns, after 2 that are not; the rate is that of the median turn.

    Returns:
        Images a second, and the peak memory beyond what was held before (weights and the batch): on CUDA what
        torch allocated; on a CPU how far the process's resident memory grew, which misses what reuses memory
        that the process still held from before (on glibc it is given back first), and without Linux's /proc
        what stays below an earlier peak: a fresh process measures it best.

    Raises:
        UserError: the batch does not fit the device.
    """
    device, own = placement(autoencoder)
    if own != dtype:
        autoencoder = copy.deepcopy(autoencoder).to(dtype)
        dtype = placement(autoencoder)[1]  # one without registered weights stays as it is
    source = torch.Generator().manual_seed(0)  # speed does not depend on the picture
    images = (torch.rand(batch_size, 3, size, size, generator=source) * 2 - 1).to(device, dtype)
    try:
        latents = encode_moments(autoencoder, images)[0]
        works = {
            "encode": lambda: encode_moments(autoencoder, images),
            "decode": lambda: decode(autoencoder, latents),
        }
        note = f"{batch_size} at once, {size} px, {str(dtype).removeprefix('torch.')}, {device_name(device)}"
        metrics = []
        for name, work in works.items():
            memory, how = peak_memory(work, device)
            seconds = [seconds_of(work, device) for _ in range(turns + 2)]
            rate = batch_size / median(seconds[2:])
            metrics += [
                Metric(name=f"{name} rate", value=rate, unit="images/s", better="higher", note=note),
                Metric(name=f"{name} memory", value=memory, unit="B", better="lower", note=f"{note}; {how}"),
            ]
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{batch_size} images of {size} px do not fit the memory of {device_name(device)}; "
            "measure speed on fewer at once"
        ) from error
    return metrics


def seconds_of(work: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Returns how long a piece of work takes, until the device is done with it."""
    began = time.perf_counter()
    work()
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - began


def peak_memory(work: Callable[[], object], device: torch.device) -> tuple[int, str]:
    """Returns the bytes that a piece of work takes at its peak, and how they were measured."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        taken = torch.cuda.max_memory_allocated(device) - before
        return taken, "beyond weights and batch, as torch allocated"
    if device.type != "cpu":
        return 0, "not measured on this kind of device"
    with contextlib.suppress(OSError, AttributeError):  # what was freed goes back to the system (glibc)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):  # the high-water mark starts anew (Linux)
        Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    work()
    return high_water() - before, "growth of the process's resident memory; a fresh process measures best"


def high_water() -> int:
    """Returns the highest resident memory of this process in bytes."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest << 10


def _measure(subject: Subject) -> Measured:
    config, dtype = subject.config, getattr(torch, subject.config.speed_dtype)
    size = _measure_size(subject.autoencoder, subject.size)
    speed = measure_speed(subject.autoencoder, subject.size, config.speed_batch_size, dtype)
    return Measured([*size, *speed])


EFFICIENCY = Measurement(
    name="efficiency",
    title="Cost",
    measure=_measure,
    reads=frozenset({"speed_batch_size", "speed_dtype"}),
    inputs=lambda subject: device_name(subject.device),
)
