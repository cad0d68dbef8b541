"""Devices, and the kernels chosen for them: one committed table, never tuned at run time.

The choices were measured with `benchmarks/attention.py`; see docs/results/speed.md.
"""

# B batch, H heads, N tokens, D head width

import ctypes
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmae.core.errors import UserError, counted, reason_of


def pick_device(name: str = "auto") -> torch.device:
    """Returns the named device, or the best one there is for `auto`: CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: there is no such device on this machine.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there.get(name.partition(":")[0]):
        usable = ", ".join(kind for kind in there if there[kind])
        raise UserError(f"there is no device {name!r} here; take one of: auto, {usable}")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"there is no device {name!r} ({reason_of(error)}); an example: cuda:0") from error


def moved(batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Moves a batch's tensors to a device, without waiting where their memory is pinned."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def finished(dataset: Any, batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Moves a loaded batch to a device, where the dataset's `finish`, if it has one, does what is left of it.

    Loading processes hand on what is small (bytes of pixels, stored moments); arithmetic is the device's.
    """
    return getattr(dataset, "finish", moved)(batch, device)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes softmax(q kᵀ / √D) v by the device's best kernel.

    Args:
        q: (B, H, N, D) queries.
        k: (B, H, N, D) keys.
        v: (B, H, N, D) values.

    Returns:
        (B, H, N, D).
    """
    limit = _PLAIN_ATTENTION_TOKENS["with gradient" if torch.is_grad_enabled() else "without"]
    if q.device.type == "cpu" and q.dtype != torch.float32 and q.shape[-2] <= limit:
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
        return weights.to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


_PLAIN_ATTENTION_TOKENS = {"with gradient": 1024, "without": 256}
"""On a CPU in half precision three plain products beat the fused kernel up to so many tokens; without
gradients they would on some processors up to 1,024, in 25 times the memory."""


def check_processes(joined: int) -> None:
    """Refuses a launch of more processes than joined, each of which would train into the same folder."""
    launched = os.environ.get("WORLD_SIZE", "")
    if launched.isdigit() and int(launched) > joined:
        raise UserError(
            f"{launched} processes were launched that do not see each other: each would train alone; "
            "without a GPU set ACCELERATE_USE_CPU=true, for one process unset WORLD_SIZE"
        )


def resolve_precision(wanted: str, device: str) -> str:
    """Returns `no`, `bf16` or `fp16`; `auto` becomes bf16 where the device computes in it.

    Raises:
        UserError: there is no such device, or it does not train in this precision.
    """
    kind = pick_device(device).type
    if wanted == "fp16" and kind == "cpu":
        raise UserError("mixed_precision=fp16 needs a GPU, this is a CPU; take bf16, no or auto")
    if wanted != "auto":
        return wanted
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if kind == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if fast else "no"
    return "no"


def reuse_freed_memory() -> None:
    """Lets glibc keep freed memory for the next tensor instead of giving each large one back to the system.

    On a CPU every large activation is otherwise mapped, cleared and unmapped anew;
    `benchmarks/memory_reuse.py` times networks with and without. A no-op where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):
        return


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def device_name(device: torch.device) -> str:
    """Returns what a report calls a device, such as `CPU, 2 threads` or `NVIDIA H100`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = counted(torch.get_num_threads(), "thread")
    return f"CPU, {threads}" if device.type == "cpu" else device.type.upper()
