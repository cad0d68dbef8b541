"""metrics.jsonl: one JSON object a line, appended as training goes, cut back to the checkpoint on resume."""

import json
from pathlib import Path
from typing import Any

from ldmae.core.files import disk_errors, write_text


def append_metrics(path: Path, line: dict[str, Any]) -> None:
    """Appends one line; what a kill leaves of it is dropped by the next resume."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def cut_back(path: Path, stage: str, step: int) -> None:
    """Drops what a stage wrote after `step` (it is trained again) and a half-written last line."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line.get("stage") != stage or line.get("step", 0) <= step:
            kept.append(text)
    write_text(path, "".join(f"{text}\n" for text in kept))
