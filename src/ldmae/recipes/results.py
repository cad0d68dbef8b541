"""The files of figures in a folder: one for each measurement, and `results.json` of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmae.contracts import Result
from ldmae.core.files import read_json, write_json

RESULTS = {
    "results": [{"name": str, "value": (int, float), "unit": str, "better": str, "counts": dict, "note": str}]
}
"""The shape of a file of figures."""


def read_results(path: Path) -> list[dict[str, Any]]:
    """Returns the figures in `results.json`, or in one measurement's file.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    return read_json(path, RESULTS)["results"]


def write_results(folder: Path, measurement: str, results: list[Result], **made: str) -> None:
    """Writes one measurement's file, with what it was made of, and merges all into `results.json`."""
    entries = [{**result.to_dict(), "measurement": measurement} for result in results]
    document: dict[str, Any] = {"schema": 1, "results": entries, **made}
    write_json(folder / "results" / f"{measurement}.json", document)
    merge_results(folder)


def merge_results(folder: Path) -> None:
    """Writes `results.json` of what lies in `results/`."""
    merged = []
    for path in sorted((folder / "results").glob("*.json")):
        merged += read_results(path)
    write_json(folder / "results.json", {"schema": 1, "results": merged})
