"""Damaged inputs of every kind end in a UserError or are read, within 5 s and 1 GB each.

The cases follow from numbers: a failure names the one to run alone, `FUZZ=latents:17 pytest tests/fuzz`.
`make fuzz CASES=5000` runs more of them.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ldmae.core.errors import UserError

from .kinds import KINDS

CASES = int(os.environ.get("FUZZ_CASES", "96"))
"""Of all kinds together."""
SECONDS, BYTES = 5, 2**30
BATCH = 50


class TooSlow(BaseException):
    """No Exception, which what is tested may catch."""


def _stop(*_: object) -> None:
    raise TooSlow


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return pages * resource.getpagesize()


def _peak() -> int:
    """Returns the most bytes that this program ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)


def _fails(kind: str, number: int, folder: Path) -> str | None:
    """Runs a case and returns what is wrong with how it ended."""
    before, peak = _resident(), _peak()
    folder.mkdir()
    signal.signal(signal.SIGPROF, _stop)  # of the processor's time: others may hold this program up
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        KINDS[kind](folder, Random(f"{kind}:{number}"))
    except UserError as error:
        if len(str(error)) > 5000:
            return f"a message of {len(str(error))} characters"
    except TooSlow:
        return f"more than {SECONDS} s"
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
        return f"{type(error).__name__}: {str(error)[:200]} at {where}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(folder, ignore_errors=True)
    return "more than 1 GB" if before and _peak() > max(peak, before + BYTES) else None


def _chosen() -> list[Any]:
    if "FUZZ" in os.environ:
        kind, _, number = os.environ["FUZZ"].partition(":")
        return [(kind, range(int(number), int(number) + 1))]
    each = max(1, CASES // len(KINDS))
    starts = range(0, each, BATCH)
    return [(kind, range(first, min(first + BATCH, each))) for kind in KINDS for first in starts]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "numbers"), _chosen(), ids=lambda value: str(getattr(value, "start", value))
)
def test_damaged_input_ends_in_a_user_error_within_bounds(kind, numbers, tmp_path):
    failed = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in numbers:
            if (wrong := _fails(kind, number, tmp_path / str(number))) is not None:
                failed[f"{kind}:{number}"] = wrong
    assert not failed, "\n".join(f"FUZZ={case}: {wrong}" for case, wrong in failed.items())
