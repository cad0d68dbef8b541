"""Numbers in settings, each with the range that it may have, declared at its field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from ldmae.core.errors import UserError

MOST = 10**9
"""Of steps and images: more than anybody trains, and far from what a 64-bit number holds."""
MOST_AT_ONCE = 10**6
"""Of a batch."""
MOST_PROCESSES = 1024
MOST_PIXELS = 16_384
"""Along a side."""
_REAL: Any = Real  # numpy's numbers, too
SEEDS: dict[str, Any] = {"ge": -(2**63), "le": 2**63 - 1}
"""What torch takes."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, or of each in a list; the names are pydantic's."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    hint: str = ""

    def check(self, name: str, value: Any, optional: bool = False) -> None:
        """Raises a UserError for a number outside, NaN among them; None is left to others."""
        for number in value if isinstance(value, list | tuple) else [value]:
            wanted = None if number is None else self._wanted(number)
            if wanted is not None:
                null, hint = " or null" if optional else "", f"; {self.hint}" if self.hint else ""
                raise UserError(f"{name} must be {wanted}{null}, got {value}{hint}")

    def _wanted(self, number: Any) -> str | None:
        if not isinstance(number, _REAL) or math.isnan(number):
            return "a number"
        if self.ge is not None and number < self.ge:
            return f"at least {self.ge:,.10g}"
        if self.gt is not None and number <= self.gt:
            return f"above {self.gt:,.10g}"
        if self.le is not None and number > self.le:
            return f"at most {self.le:,.10g}"
        if self.lt is not None and number >= self.lt:
            return f"below {self.lt:,.10g}"
        return None


def number(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    hint: str = "",
) -> Any:
    """Declares a field of a settings class that is a number, or a list of some, within bounds.

    Args:
        default: its value where nothing is set; a list is copied.
        ge: the least.
        gt: what it must be above, in place of `ge`.
        le: the most.
        lt: what it must be below, in place of `le`.
        hint: what an error message ends with, such as what is usual.
    """
    metadata = {"range": Range(ge, gt, le, lt, hint)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_numbers(settings: type, values: Mapping[str, Any]) -> None:
    """Checks arguments against the ranges of the settings of the same names.

    Raises:
        UserError: one is outside.
    """
    for entry in fields(settings):
        if entry.name in values and (bounds := entry.metadata.get("range")) is not None:
            bounds.check(entry.name, values[entry.name])


class Bounded:
    """A settings dataclass whose numbers are checked against the ranges of their fields."""

    group = ""  # no field: what error messages put before a field's name

    def __post_init__(self) -> None:
        for entry in fields(self):  # pyright: ignore[reportArgumentType]
            if (bounds := entry.metadata.get("range")) is not None:
                value = getattr(self, entry.name)
                bounds.check(f"{self.group}{entry.name}", value, optional=entry.default is None)
