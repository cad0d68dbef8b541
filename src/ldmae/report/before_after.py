"""What a decoder that was trained alone gained and lost: a table of metrics, and reconstructions."""

# n images, H W their height and width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ldmae.core.files import write_text
from ldmae.report.formatting import format_value
from ldmae.report.grids import image_rows, save_png
from ldmae.report.tables import ARROWS, DAGGER, Table, footnotes

_COLUMNS = 8
"""Images that are shown of each set."""


@dataclass(frozen=True)
class Section:
    """Metrics and reconstructions of a set of images, by `before` and `after`."""

    name: str
    title: str
    metrics: dict[str, list[dict[str, Any]]]
    folders: dict[str, Path]
    """Where `results/reconstruction.npz` is."""


def write_change(sections: Sequence[Section], table: Path, picture: Path) -> None:
    """Writes the metrics of all sections as Markdown, and a PNG of originals and reconstructions."""
    parts, rows = [], {}
    for section in sections:
        parts += _tables(section)
        for side, folder in section.folders.items():
            with np.load(folder / "results" / "reconstruction.npz") as pictures:
                rows[f"{section.name}: original"] = pictures["originals"]  # (n, H, W, 3)
                rows[f"{section.name}: {side}"] = pictures["reconstructions"]
    write_text(table, "\n\n".join(dict.fromkeys(parts)) + "\n")
    save_png(image_rows(rows, columns=_COLUMNS), picture)


def _tables(section: Section) -> list[str]:
    after = {metric["name"]: metric for metric in section.metrics["after"]}
    rows = {}
    for before in section.metrics["before"]:
        metric = after[before["name"]]
        mark = DAGGER if metric["trained_on_metric"] else ""
        label = f"{before['name']}{mark} {ARROWS.get(before['better'], '')}".strip()
        values = (before["value"], metric["value"], metric["value"] - before["value"])
        rows[label] = [format_value(value) for value in values]
    counts = ", ".join(f"{count:,} {kind}" for kind, count in section.metrics["after"][0]["counts"].items())
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["before", "after", "change"])
    frame.index.name = "Metric"
    parts = [f"{section.title} ({counts}):\n\n{Table(frame).markdown()}"]
    if any(DAGGER in row for row in rows):
        parts.append(f"{DAGGER} The new decoder was trained on this metric.")
    return parts + footnotes([*rows])
