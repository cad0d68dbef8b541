"""The files of metrics in a folder: one for each measurement, and `results.json` of all.

Their format is described in docs/reference/results-format.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ldmae.contracts import RESULTS_SCHEMA
from ldmae.core.errors import UserError
from ldmae.core.files import atomic_path, read_json, write_json
from ldmae.core.provenance import Record
from ldmae.evaluation.api import MEASUREMENTS, OF_GENERATED, Measured

_RESULTS = {
    "results": [
        {
            **{"name": str, "value": (int, float), "unit": str, "better": str, "note": str},
            **{"counts": dict, "spread": dict, "reference": dict, "trained_on_metric": bool},
        }
    ]
}
"""The shape of a file of metrics."""


def read_results(path: Path) -> list[dict[str, Any]]:
    """Returns the metrics in `results.json`, or in one measurement's file.

    Raises:
        UserError: the file is missing, damaged, of an older version, or holds something else.
    """
    return _read(path)["results"]


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path, {"results": list})
    if found.get("schema") != RESULTS_SCHEMA:
        raise UserError(
            f"{path} is of schema {found.get('schema')}, this version reads {RESULTS_SCHEMA}; measure again "
            "with `ldmae evaluate`, or delete it"
        )
    return read_json(path, _RESULTS)


def write_results(
    folder: Path, name: str, title: str, measured: Measured, record: Record | None = None
) -> None:
    """Writes a measurement's metrics and pictures, and merges all metrics into `results.json`.

    The record says what it was made of, where that is known, for `results_record`.
    """
    path = folder / "results" / f"{name}.json"
    if measured.pictures:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path.with_suffix(".npz")) as temporary:
            pictures: dict[str, Any] = measured.pictures
            np.savez_compressed(temporary, **pictures)
    entries = [{"measurement": name, **metric.to_dict()} for metric in measured.metrics]
    found = {"schema": RESULTS_SCHEMA, "title": title, "results": entries}
    write_json(path, found | {"record": vars(record or Record(status="done"))})
    merge_results(folder)


def merge_results(folder: Path) -> None:
    """Writes `results.json` of what is in `results/`, in the order of `MEASUREMENTS`; others follow."""
    order = [*MEASUREMENTS, *OF_GENERATED]
    titles, merged = {}, []
    for path in sorted(
        (folder / "results").glob("*.json"),
        key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.stem),
    ):
        found = _read(path)
        titles[path.stem] = found.get("title", path.stem)
        merged += found["results"]
    write_json(folder / "results.json", {"schema": RESULTS_SCHEMA, "titles": titles, "results": merged})


def results_record(path: Path) -> Record | None:
    """Returns what a measurement's file was made of; None where it is missing or can't be used."""
    try:
        return Record.from_json(_read(path)["record"]) if path.exists() else None
    except (UserError, KeyError, TypeError):
        return None


def remove_results(folder: Path, name: str) -> None:
    """Removes a measurement's metrics and pictures."""
    for path in (folder / "results" / f"{name}.json", folder / "results" / f"{name}.npz"):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
