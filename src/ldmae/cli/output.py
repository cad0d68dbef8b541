"""What the command line prints: one message for a mistake, all of it from the main process alone."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import typer

from ldmae.core.errors import UserError
from ldmae.core.files import at_home


def run_app(application: Callable[..., Any]) -> int:
    """Runs the command line and returns the exit code.

    2, with one message and no traceback, for a user's mistake; 130 where the user interrupted. Any other
    exception is a bug and keeps its traceback.
    """
    # Two busy programs on one machine collapse while OpenMP's idle threads spin (150 ms became 4 s).
    # Not spinning is a fifth slower when idle; 20,000 turns are not. torch reads it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    with contextlib.suppress(AttributeError):  # replaced by something that is no text file
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore  # to a terminal that knows ASCII alone
    sys.argv[1:] = map(at_home, sys.argv[1:])  # the shell leaves it in quotes and behind `key=`
    try:
        application()
    except UserError as error:
        return _refused(str(error))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _refused(f"a name is too long for the file system: {str(error.filename)[:100]}…")
        if error.errno not in (errno.EEXIST, errno.ENOTDIR) or error.filename is None:
            raise
        return _refused(f"{error.filename} is no folder, or is below a file; name another folder")
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:  # how Typer ends: after help, a wrong option, an interrupt, or success
        if isinstance(stop.code, str):  # of a program of one's own
            return _refused(stop.code)
        code, frames = stop.code or 0, [frame for frame, _ in traceback.walk_tb(stop.__traceback__)]
        while frames[-1].f_globals.get("__name__") == "_sitebuiltins":  # exit() and quit()
            frames.pop()
        ended = str(frames[-1].f_globals.get("__name__")).partition(".")[0]
        if code == 0 and ended not in ("click", "typer", "argparse"):
            return _refused(f"{frames[-1].f_code.co_filename} ended the program; take sys.exit() out of it")
        return _interrupted() if code == 130 else code
    return 0


def _refused(message: str) -> int:
    from rich.markup import escape

    _print_error(f"[bold red]error:[/] {escape(message)}")
    return 2


def _interrupted() -> int:
    _print_error("interrupted; what was saved is kept, and a command that can resume goes on from there")
    return 130


def _print_error(text: str) -> None:
    """Prints to stderr, once where several processes meet the same mistake."""
    from rich.console import Console

    if not main_process():
        # The launcher ends all processes as soon as one has failed: whoever is still here in a while is the
        # only one to know.
        time.sleep(5)
        text = f"process {os.environ['RANK']}: {text}"
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def main_process() -> bool:
    """Says whether this process is the one that prints; launchers number the others."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Prints what a verb made, from the main process."""
    if main_process():
        typer.echo(text)
