"""The folder that a run, or metrics, are written to: locked, and not a comparison's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ldmae.core.errors import UserError
from ldmae.core.locks import locked


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Locks a folder for a run or its metrics, as `locked` does; it is not a comparison's."""
    refuse_comparison(folder)
    with locked(folder):
        yield


def refuse_comparison(folder: Path) -> None:
    """Raises a UserError for the folder of a comparison, whose results a run's would replace."""
    if any((folder / "results" / name).exists() for name in ("units", "comparison.json")):
        raise UserError(
            f"{folder} holds a comparison's results, which this would replace; name another folder with --out"
        )
