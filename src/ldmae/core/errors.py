"""The one error class that is meant for users."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """A mistake that the user can fix.

    The message says what, what was got, what was expected, and the next move. The command line
    prints the message alone and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # torch hands on the error of a data loading process with that process's traceback before it
        super().__init__(
            message.rpartition("UserError: ")[2].rstrip() if "\nOriginal " in message else message
        )


@contextlib.contextmanager
def loading_errors() -> Iterator[None]:
    """Turns the death of a data loading process, which as a rule lacked memory, into a message.

    Raises:
        UserError: it died, or could not hand over a batch.
    """
    try:
        yield
    except RuntimeError as error:
        if not LOADER_DIED.search(str(error)):
            raise
        reason = str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")
        raise UserError(
            f"a data loading process failed, usually for lack of (shared) memory: {reason}. "
            "Provide more, for example with docker's --shm-size, or load in the main process with "
            "num_workers=0; then run the same command again"
        ) from error


LOADER_DIED = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)|</torch_|shm_open")
"""What torch says of a data loading process that died or found no shared memory."""


def check_range(name: str, value: float, low: float, high: float, move: str) -> None:
    """Refuses a value outside [low, high], or nan; `name` begins the message, `move` ends it."""
    if not low <= value <= high:
        raise UserError(f"{name} must be from {low:.10g} to {high:.10g}, got {value}; {move}")


def check_enough(what: str, needed: int, count: int, things: str, move: str) -> None:
    """Refuses fewer than `needed` things; `what` needs them, `things` is what is counted, in the plural."""
    if count < needed:
        raise UserError(f"{what} needs at least {needed} {things}, got {count}; {move}")


def check_known(what: str, name: str, known: Iterable[str], owner: str = "") -> None:
    """Refuses a name that is none of the known ones, with the nearest of them.

    `what` has the name, `owner` has only these; the package by default.
    """
    known = list(map(str, known))
    if name not in known:
        lacks, has = (f"{owner} has", "it has") if owner else ("there is", "there are")
        raise UserError(f"{lacks} no {what} {name!r}{nearest(name, known)}; {has}: {', '.join(known)}")


def reason_of(error: BaseException) -> str:
    """Returns what an exception says, in one line for users."""
    text = str(error).partition("\n    full_key: ")[0]  # OmegaConf names the setting once more
    reason = " ".join(text.split())[:300] or type(error).__name__
    # Python advises programmers to raise its limit
    return "a number of thousands of digits is out of range" if "int_max_str_digits" in reason else reason


def shortened(names: Iterable[str], limit: int = 12) -> str:
    """Returns the names as one text, the first few where they are many."""
    names = list(names)
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")


def counted(count: int, thing: str) -> str:
    """Returns a number and what is counted: `1 image`, `2 images`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def closest(name: str, valid: Iterable[str], cutoff: float = 0.65) -> str | None:
    """Returns the valid name that is `name:…`, or else most like it, to a `cutoff` in [0, 1], or None."""
    valid = list(valid)
    close = [each for each in valid if each.startswith(f"{name}:")]
    return next(iter(close or difflib.get_close_matches(name, valid, n=1, cutoff=cutoff)), None)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns `; did you mean X?` for the valid name closest to `name`, or an empty string."""
    close = closest(name, valid)
    return f"; did you mean {close!r}?" if close is not None else ""
