"""Files of registries that prepared sets are made from: pinned, checked, fetched once."""

from __future__ import annotations

import contextlib
import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ldmae.core.errors import UserError
from ldmae.core.files import atomic_folder, read_json, write_json
from ldmae.core.locks import locked
from ldmae.core.progress import console

_PIECE = 2**20
"""Bytes read at a time."""


@dataclass(frozen=True)
class Package:
    """A file of a registry at one version."""

    url: str
    sha256: str

    @property
    def file(self) -> str:
        """The file's name, which is how it is found in a folder."""
        return self.url.rpartition("/")[2]


def fetch(package: Package, cache: Path, given: Path | None = None) -> Path:
    """Returns a package's file: from the folder `given`, or else from the cache or its registry.

    An interrupted download continues where it stopped.

    Raises:
        UserError: the file can't be had, or is not the one that was pinned.
    """
    path = (given or cache) / package.file
    if not path.exists():
        if given is not None:
            raise UserError(f"{given} has no {package.file}; download {package.url} into it")
        console.print(f"downloading {package.url}", soft_wrap=True)
        _download(package, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise UserError(
            f"{path} has SHA-256 {found}, expected {package.sha256}; delete it and fetch {package.url} again"
        )
    return path


def drawn(names: Iterable[str], share: float) -> list[str]:
    """Returns the share of some names that is held out: those with the smallest hashes, and never all."""
    order = sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
    return order[: min(len(order) - 1, max(1, round(share * len(order))))]


@contextlib.contextmanager
def prepared(folder: Path, size: int) -> Iterator[tuple[Path, Path]]:
    """Yields folders for the images of a prepared set, which become its `train` and `val` on leaving.

    A set that is stopped meanwhile can be made again; one that fails claims nothing.

    Raises:
        UserError: its `train` or `val` is somebody's own, or another program works on it.
    """
    counts = folder / "counts.json"
    ours = counts.is_file() and {"size", "counts"} <= set(read_json(counts, dict))
    for side in () if ours else ("train", "val"):
        if (folder / side).exists():
            raise UserError(
                f"{folder / side} exists, and `ldmae prepare` did not make it; name another folder"
            )
    with locked(folder), atomic_folder(folder / "train") as train, atomic_folder(folder / "val") as val:
        yield train, val
        write_json(counts, {"size": size, "counts": {}})


def _download(package: Package, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(package.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with (
            urllib.request.urlopen(request, timeout=60) as answer,
            part.open("ab" if answer.status == 206 else "wb") as file,
        ):
            while piece := answer.read(_PIECE):
                file.write(piece)
            if answer.length:
                raise OSError(f"the connection closed with {answer.length} bytes missing")
    except OSError as error:  # also URLError and time-outs
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # all of it had come
            part.rename(path)
            return
        raise UserError(
            f"{package.url} could not be downloaded ({error}); run the command again to continue, or "
            f"download it elsewhere and give the folder that holds {package.file} with --from"
        ) from error
    part.rename(path)
