"""Times alternatives side by side: turn by turn in one run, so that what else the machine does hits both."""

import os
import platform
import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path


def machine() -> str:
    """Returns what a figure was measured on: processor, cores, what it computes bf16 with, versions."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = {key: re.search(rf"^{key}\s*: (.*)$", info, re.MULTILINE) for key in ("model name", "flags")}
    name = found["model name"][1] if found["model name"] else platform.machine()
    flags = found["flags"][1].split() if found["flags"] else []
    units = [label for flag, label in UNITS.items() if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"Python {platform.python_version()}, torch {metadata.version('torch')}"
    return f"{name} ({', '.join(units) or 'neither AVX2 nor AVX-512'}), {cores} cores, {versions}"


UNITS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}


def side_by_side(
    rivals: dict[str, Callable[[], object]], turns: int = 9, warmup: int = 2
) -> dict[str, float]:
    """Returns the median seconds of each rival over `turns` alternating turns."""
    for rival in rivals.values():
        for _ in range(warmup):
            rival()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(turns):
        for name, rival in rivals.items():
            began = time.perf_counter()
            rival()
            seconds[name].append(time.perf_counter() - began)
    return {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}


def print_row(what: str, seconds: dict[str, float], baseline: str, count: int, unit: str) -> None:
    """Prints one line: the time of each, the rate of the first, and its ratio to the baseline."""
    ours = next(iter(seconds))
    ratio = seconds[baseline] / seconds[ours]
    times = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
    rate = count / seconds[ours]
    shown = f"{rate:,.{0 if rate >= 10 else 1 if rate >= 1 else 2}f} {unit}/s"
    print(f"| {what} | {shown} | {ratio:.2f} × | {times} |")


def print_head() -> None:
    """Prints the table's head."""
    print("| what | rate | faster than the baseline by | medians |\n| --- | --- | --- | --- |")
