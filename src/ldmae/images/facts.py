"""What was taken of images and what was not, in a line: nothing is passed over silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from ldmae.core.errors import counted

_NAMED = 3
"""How many names a fact gives."""


class Ignored:
    """Files that are passed over: how many of each ending, and the first few names."""

    def __init__(self, counts: Mapping[str, int] | None = None, names: Iterable[str] = ()) -> None:
        self.counts = Counter(dict(counts or {}))
        self.names = list(names)

    def add(self, name: str, kind: str | None = None) -> None:
        """Counts a file; by its ending, where no kind is given."""
        kind = kind or PurePath(name).suffix.lower()[:20] or "without an ending"
        self.counts[kind] += 1
        if len(self.names) < _NAMED:
            self.names.append(name)

    def join(self, other: Ignored) -> None:
        """Counts those of another place, too."""
        self.counts.update(other.counts)
        self.names = (self.names + other.names)[:_NAMED]

    def facts(self) -> list[str]:
        """Returns a fact, or none where nothing was passed over."""
        if not self.counts:
            return []
        total = sum(self.counts.values())
        kinds = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:6])
        more = ", …" if total > len(self.names) else ""
        names = ", ".join(name if len(name) <= 80 else f"…{name[-79:]}" for name in self.names)
        return [f"{counted(total, 'file')} ignored ({listed}): {names}{more}"]


def label_facts(labels: np.ndarray, classes: list[str], what: str) -> list[str]:
    """Returns facts on images without a label (-1), and on classes without any of `what`."""
    facts = []
    if without := int(np.count_nonzero(labels < 0)):
        facts.append(f"{counted(without, 'image')} without a label")
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    if len(absent := np.flatnonzero(counts == 0)):
        names = ", ".join(f'"{classes[k]}"' for k in absent[:_NAMED])
        more = ", …" if len(absent) > _NAMED else ""
        several = f"{len(absent):,} classes have no {what}: {names}{more}"
        facts.append(several if len(absent) > 1 else f"class {names} has no {what}")
    return facts


def share_facts(train: int, held_out: int, share: float) -> list[str]:
    """Returns a warning where the share held out is off by more than half of what was asked for."""
    got = held_out / (train + held_out)
    if abs(got - share) <= share / 2:
        return []
    return [
        f"{_percent(got)} held out is far from the {_percent(share)} that data.val asks for: near-duplicates "
        "stay on one side, and with few images the share varies"
    ]


def summary(train: Any, held_out: Any | None, share: float | None) -> str:
    """Returns one line on what was opened: images, classes, held-out ones, and the facts.

    `share` of all was asked for, None where others are held out.
    """
    total = len(train) + (0 if held_out is None or share is None else len(held_out))
    classes = f" in {len(train.classes):,} classes" if len(train.classes) > 1 else ""
    parts = [f"{train.name}: {counted(total, 'image')}{classes}"]
    if held_out is not None:
        of = "" if share is None else f" ({_percent(len(held_out) / total)}, requested {_percent(share)})"
        parts.append(f"{len(held_out):,} held out{of}")
    return "; ".join([*parts, *train.facts])


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
