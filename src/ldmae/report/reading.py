"""What pages are made of may be missing, half-written or foreign: reading that never stops a page.

A missing file is None without a word; one that can't be read is None and named among the problems.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, overload

MAX_TEXT = 400
"""Characters of a name or note that are shown."""


def read_text(path: Path, problems: list[str], name: str = "") -> str | None:
    """Returns a file's text; `name` is what problems call it, its own name by default."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    except OSError as error:
        problems.append(f"{name or path.name} could not be read: {error.strerror}")
    return None


def read_json(path: Path, problems: list[str], name: str = "") -> Any:
    """Returns what a JSON file holds; `name` is what problems call it, its own name by default."""
    text = read_text(path, problems, name)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        problems.append(f"{name or path.name} is not whole JSON")
    return None


def mapping(value: Any) -> dict[str, Any]:
    """Returns a JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def records(value: Any) -> list[dict[str, Any]]:
    """Returns the objects of a JSON list; what is no list has none."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """Returns a finite number, or None in place of anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and abs(value) <= 1e300 and math.isfinite(value) else None


@overload
def cut(text: None, length: int = ...) -> None: ...
@overload
def cut(text: str, length: int = ...) -> str: ...
def cut(text: str | None, length: int = MAX_TEXT) -> str | None:
    """Shortens a text that is longer than `length` and says by how much."""
    if text is None or len(text) <= length:
        return text
    return text[:length] + f"… ({len(text) - length:,} more characters)"
