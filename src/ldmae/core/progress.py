"""Progress bars with rate and remaining time, and plain lines where nobody watches a terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


def tell(text: str) -> None:
    """Prints a line as it is: brackets are no markup, and the terminal alone wraps it."""
    console.print(text, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Writes seconds as a reader wants them: `45 s`, `3 min 20 s`, `5 h 10 min`, `2 d 4 h`."""
    seconds = round(seconds)
    for unit, size, lesser, lesser_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // lesser_size
            return f"{seconds // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    return f"{seconds} s"


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, unit: str, start: int = 0, show: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """Yields `advance(n, note)`, which moves a bar on.

    Off a terminal a line is printed every tenth of the way. `start` units were done before, by an earlier
    run; `show` is False on all but the main process.
    """
    began = time.monotonic()
    done = start
    tenth = start * 10 // max(1, total)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not (show and console.is_terminal),
    )
    task = bar.add_task(description, total=total, completed=start, rate="", note="")

    def advance(n: int, note: str) -> None:
        nonlocal done, tenth
        done += n
        seconds = time.monotonic() - began
        rate = (done - start) / max(1e-9, seconds)
        bar.update(task, advance=n, rate=f"{rate:.1f} {unit}/s", note=note)
        if show and not console.is_terminal and done * 10 // max(1, total) > tenth and seconds > 1:
            tenth = done * 10 // max(1, total)
            remaining = duration((total - done) / max(1e-9, rate))
            console.print(
                f"{description}: {done}/{total}, {rate:.1f} {unit}/s, {remaining} left {note}".rstrip()
            )

    with bar:
        yield advance
