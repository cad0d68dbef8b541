"""Atomic writes and fingerprints: a half-written file is never read, and every artefact knows its maker."""

from __future__ import annotations

import contextlib
import errno
import fcntl
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

from ldmae.core.errors import LOADER_DIED, UserError, reason_of

if TYPE_CHECKING:  # settings are read without torch
    from torch import Tensor

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EXTENSIONS += (".ppm", ".pgm", ".pbm", ".pnm", ".avif")
"""How picture files end, in lower case."""
_JUNK = {"__macosx", "lost+found", "@eadir", "#recycle", "$recycle.bin", "system volume information"}
TEMPORARY_PREFIX = ".writing-"
LOCK = ".lock"
"""The file in a folder that a program locks which works on it."""
_REPLACED_PREFIX = f"{TEMPORARY_PREFIX}replaced-"
_WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
"""A file of weights as diffusers names it, with its variant."""


def at_home(text: str | os.PathLike[str]) -> str:
    """Returns a path, a setting or a list of them with each `~/` as the user's folder, as a shell has it."""
    return re.sub(r"(^|[=,\[{(:'\"])~(?=/|$)", lambda match: match[1] + str(Path.home()), os.fspath(text))


def is_junk(name: str) -> bool:
    """Returns whether a file or folder is hidden, or was left by a system: never a class, never an image."""
    return name.startswith(".") or name.lower() in _JUNK


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
        if error.errno is None or isinstance(error, ConnectionError):  # no disk's: a damaged picture, a pipe
            raise
        raise UserError(f"cannot write {path}: {error.strerror}; {_move(Path(path), error)}") from error
    except (RuntimeError, SafetensorError) as error:  # both wrap the operating system's error in a text
        if _DISK.search(str(error)) and not LOADER_DIED.search(str(error)):
            raise _full(path) from error
        raise


def _move(path: Path, error: OSError) -> str:
    """Returns what to do about an error that writing a path met."""
    name = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    above = (path, *path.parents)
    if name not in above and not name.is_relative_to(path) and TEMPORARY_PREFIX not in str(name):
        return f"look at {name}, which it is made from"
    if isinstance(error, FileExistsError | NotADirectoryError):
        for place in above:
            if place.exists() and not place.is_dir():
                return f"{place} is a file: name another folder, or move it away"
    if isinstance(error, IsADirectoryError):
        return f"{path if TEMPORARY_PREFIX in str(name) else name} is a folder: move it away"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check the folder's permissions"
    return "put that right, then run the same command again"


_DISK = re.compile(r"No space left|os error \d+|PytorchStreamWriter|inline_container")


def _full(path: Path | str) -> UserError:
    return UserError(
        f"no space left to write {path}; earlier files are untouched. Free some space, then run the same "
        "command again"
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

    The current directory and a mount point cannot be replaced: what they hold is, which takes a moment.

    Raises:
        UserError: the disk is full or refuses the write.
    """
    path = Path(path).absolute()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stays = path.is_dir() and (path.samefile(Path.cwd()) or path.is_mount())
        place = path if stays else path.parent
        own = f"{TEMPORARY_PREFIX}to-{path.name[:50]}-"  # a whole name may be as long as names can be
        for left in place.iterdir():  # by killed programs that were to write the same folder
            if re.fullmatch(re.escape(own) + r"[a-z0-9_]{8}", left.name) and not _is_held(left):
                shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=own, dir=place))
        old = path.with_name(f"{_REPLACED_PREFIX}{path.name}")
        held = os.open(temporary, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(held, fcntl.LOCK_EX)
            yield temporary
            temporary.chmod(0o755)
            for written in (*temporary.rglob("*"), temporary):
                _sync(written)
            if stays:
                _fill(path, temporary)
                return
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
            os.close(held)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _is_held(temporary: Path) -> bool:
    """Returns whether a program may be writing into a temporary folder: where that can't be told, too."""
    try:
        handle = os.open(temporary, os.O_RDONLY)
    except OSError:  # another user's, or gone
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or on a disk without locks
        return True
    finally:
        os.close(handle)
    return False


def _fill(folder: Path, temporary: Path) -> None:
    """Puts what a folder in it holds in the place of everything else in a folder."""
    for old in folder.iterdir():
        if old == temporary:
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for made in temporary.iterdir():
        made.rename(folder / made.name)
    _sync(folder)


def check_new_folder(folder: Path) -> None:
    """Raises a UserError for a folder that holds something, or is a file: nothing is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name another folder, or delete it")


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files that a killed process left in a folder; only for whoever holds its lock.

    A folder that had stepped aside for one that never came takes its place again. Left alone are a folder
    further down that has a lock of its own, for another program may be writing there, and a temporary folder
    that one is writing into.
    """
    for path in sorted(_leftovers(folder)):
        replaced = path.with_name(path.name.removeprefix(_REPLACED_PREFIX))
        if replaced != path and path.exists() and not replaced.exists():
            path.rename(replaced)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _leftovers(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        if LOCK in files and Path(root) != folder:
            folders.clear()
            continue
        left = {name for name in (*folders, *files) if name.startswith(TEMPORARY_PREFIX)}
        new = {name for name in left & {*folders} if not name.startswith(_REPLACED_PREFIX)}
        left -= (held := {name for name in new if _is_held(Path(root, name))})
        folders[:] = {*folders} - held
        yield from (Path(root, name) for name in left)


def _sync(path: Path) -> None:
    """Waits until a file or the entries of a folder lie on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file atomically (UTF-8; bytes of a file name that are none, as their JSON escape)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path | str, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str, shape: Any = object) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        shape: what it must hold: a type, a mapping of the keys that it must have to the shapes of their
            values, or a list of the one shape that all its entries have.

    Raises:
        UserError: the file can't be read, is not JSON, or holds something else.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else reason_of(error)
        raise UserError(
            f"{path} is not JSON ({reason}); download it again, or delete it if a run writes it"
        ) from error
    if not _has_shape(value, shape):
        raise UserError(
            f"{path} holds JSON of an unexpected form; download it again, or delete it if a run writes it"
        )
    return value


def _has_shape(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        fits = isinstance(value, dict) and shape.keys() <= value.keys()
        return fits and all(_has_shape(value[key], inner) for key, inner in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_has_shape(entry, shape[0]) for entry in value)
    return isinstance(value, shape)


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """Returns a short hash of a sequence of texts or bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        part = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def stamp(path: Path | str) -> int:
    """Returns 64 bits that change with a file's path, its size or its times of change in nanoseconds.

    Beside the time of modification, which copying and unpacking set, there is the one that nobody can set.

    Raises:
        OSError: there is no such file.
    """
    path = Path(path)
    state = path.stat()
    return stamp_of(str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def stamp_of(*parts: str | bytes | int) -> int:
    """Returns 64 bits that follow from texts and numbers."""
    return int(fingerprint(part if isinstance(part, bytes) else str(part) for part in parts)[:16], 16)


def content_digests(paths: Iterable[Path], kept: Path) -> list[str]:
    """Returns a hash of each file's content; one that has not changed since is not read again.

    The JSON file `kept` keeps the hashes by the files' stamps.
    """
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, UserError, TypeError, ValueError):  # damaged: made again
        known = dict(read_json(kept))
    found = {}
    for path in paths:
        key = f"{stamp(path):016x}"
        if not isinstance(digest := known.get(key), str):
            hashed = hashlib.blake2b(digest_size=16)
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    hashed.update(part)
            digest = hashed.hexdigest()
        found[key] = digest
    if found != known:
        write_json(kept, found)
    return [*found.values()]


def fingerprint_model(model: Any) -> str:
    """Returns a short hash of what a model computes: its class, a diffusers config, its weights."""
    config = getattr(model, "config", None)
    told = config if isinstance(config, Mapping) else {}
    # without where it was loaded from, what diffusers notes for itself, and what is unset:
    # older models lack arguments that came later
    told = {k: v for k, v in told.items() if not k.startswith("_") and v is not None}
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


def weights_variant(folder: Path) -> dict[str, str]:
    """Returns the `variant` for diffusers to load, such as fp16, where a folder has weights of no other."""
    names = (_WEIGHTS.fullmatch(path.name) for path in folder.glob("diffusion_pytorch_model*"))
    found = {name[1] for name in names if name}
    return {"variant": found.pop()} if len(found) == 1 and None not in found else {}
