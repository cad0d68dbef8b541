"""Atomic writes and fingerprints: a half-written file is never read, and every artefact knows its maker."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ldmae.core.errors import UserError

if TYPE_CHECKING:  # settings are read without torch
    from torch import Tensor

TEMPORARY_PREFIX = ".writing-"
_REPLACED_PREFIX = f"{TEMPORARY_PREFIX}replaced-"


@contextlib.contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turns what the operating system says against a write into a message.

    Raises:
        UserError: the disk is full or refuses the write.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(path) from error
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; check the folder's permissions"
        ) from error
    except (RuntimeError, SafetensorError) as error:  # both wrap the operating system's error in a text
        if _DISK.search(str(error)):
            raise _full(path) from error
        raise


_DISK = re.compile(r"No space left|os error \d+|PytorchStreamWriter|inline_container")


def _full(path: Path | str) -> UserError:
    return UserError(
        f"no space left to write {path}; earlier files are untouched. Free some, then type the same command"
    )


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`.

    On leaving, what was written there is synced and renamed to `path`.
    Readers see the old file or the new one, never a part. Nothing is left behind on an exception.

    Raises:
        UserError: the disk is full or refuses the write.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which takes its place on leaving.

    Raises:
        UserError: the disk is full or refuses the write.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
        old = path.with_name(f"{_REPLACED_PREFIX}{path.name}")
        try:
            yield temporary
            temporary.chmod(0o755)
            for written in (*temporary.rglob("*"), temporary):
                _sync(written)
            if path.exists():  # a full folder cannot be renamed over another: the old one steps aside
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files that a killed process left in a folder; only for whoever holds its lock.

    A folder that had stepped aside for one that never came takes its place again.
    """
    for path in sorted(folder.rglob(f"{TEMPORARY_PREFIX}*")):
        replaced = path.with_name(path.name.removeprefix(_REPLACED_PREFIX))
        if replaced != path and path.exists() and not replaced.exists():
            path.rename(replaced)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until a file or the entries of a folder lie on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not JSON ({error}); fetch it again, or delete it where a run makes it anew"
        ) from error


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """Returns a short hash of a sequence of texts or bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def fingerprint_model(model: Any) -> str:
    """Returns a short hash of what a model computes: its class, a diffusers config, its weights."""
    config = getattr(model, "config", None)
    told = config if isinstance(config, Mapping) else {}
    # without where it was loaded from, and what diffusers notes for itself
    told = {k: v for k, v in told.items() if not k.startswith("_")}
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    return fingerprint(
        [name, json.dumps(told, sort_keys=True, default=str), fingerprint_tensors(model.state_dict())]
    )


def fingerprint_tensors(tensors: dict[str, Tensor]) -> str:
    """Returns a short hash of named tensors, taken in fp32 on the CPU."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
