"""What a run folder holds, to compare it bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

PASSING = ("seconds", "images_per_second", "data_share", "finished", "_name_or_path")
"""What differs between two runs that are the same: times, and where diffusers read a model from."""


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def _bits(value: Any) -> Any:
    """Returns something that compares equal where all tensors and arrays in `value` do, bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def _read(path: Path) -> Any:
    """Returns what a file holds, without what may differ."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return file.metadata(), {name: _bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".pt":
        return _bits(torch.load(path, weights_only=True))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return _bits(dict(arrays))
    if path.suffix == ".json":
        return _lasting(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_lasting(json.loads(line)) for line in path.read_text().splitlines()]
    return None if path.suffix == ".html" else path.read_bytes()


def read_run(folder: Path) -> dict[str, Any]:
    """Returns all that a run folder holds, by file, so that two runs can be compared bit for bit.

    All but `run.json`, which tells how it was started.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(folder)): _read(path) for path in files}


def assert_same_run(one: Path, other: Path) -> None:
    """Compares two run folders, all files but the report: weights, training states, pixels, metrics."""
    a, b = read_run(one), read_run(other)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
