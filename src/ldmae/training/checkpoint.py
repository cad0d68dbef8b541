"""Training states on disk: everything that an exact resume needs, in one file, written atomically."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from ldmae.core.errors import UserError
from ldmae.core.files import atomic_path

_NAME = re.compile(r"step-(\d{8,})\.pt")


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Returns the training states of a folder as (step, path), oldest first."""
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep_every: int | None) -> None:
    """Writes the state reached after `step` steps, then deletes older ones that need not be kept."""
    with atomic_path(folder / f"step-{step:08d}.pt") as temporary:
        torch.save({"step": step, **state}, temporary)
    drop_old_checkpoints(folder, keep_every)


def drop_old_checkpoints(folder: Path, keep_every: int | None) -> None:
    """Deletes the last training state but two, unless its step is a multiple of `keep_every`.

    Older ones were kept by what `keep_every` was then.
    """
    for old, path in list_checkpoints(folder)[-3:-2]:
        if not (keep_every and old % keep_every == 0):
            path.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a training state onto the CPU.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}); delete it to resume from the previous one"
        ) from error
