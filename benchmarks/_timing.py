"""Times alternatives side by side: turn by turn in one run, so that what else the machine does hits both."""

import time
from collections.abc import Callable


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
    print(f"| {what} | {count / seconds[ours]:,.0f} {unit}/s | {ratio:.2f} × | {times} |")


def print_head() -> None:
    """Prints the table's head."""
    print("| what | rate | faster than the baseline by | medians |\n| --- | --- | --- | --- |")
