"""Local tar shards in webdataset's layout: indexed once, then read by seeking."""

# N images over all shards

import collections
import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldmae.core.errors import UserError
from ldmae.core.files import atomic_path, fingerprint
from ldmae.images.base import EXTENSIONS, FileSource, Names, is_pattern, missing_path

INDEX_VERSION = "1"
OPEN_SHARDS = 64
"""How many shards a process keeps open at most."""


def expand_braces(pattern: str) -> list[str]:
    """Returns the names that a pattern with `{000..012}` or `{a,b}` stands for, in order."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    head, inner, tail = pattern[: match.start()], match[1], pattern[match.end() :]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = span[1], span[2]
        if int(first) > int(last):
            raise UserError(
                f"the range {{{inner}}} in {pattern} runs backwards; write the smaller number first"
            )
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices = [str(k).zfill(width) for k in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    return [head + choice + rest for choice in choices for rest in expand_braces(tail)]


def match_files(pattern: str) -> list[Path]:
    """Returns the files that a pattern with wildcards matches, sorted."""
    found = glob.glob(str(Path(pattern).expanduser()))  # noqa: PTH207, Path.glob takes no absolute pattern
    return [Path(path) for path in sorted(found)]


def find_shards(name: str) -> list[Path]:
    """Returns the local tar files that a file, folder, brace pattern or glob names, in order.

    Raises:
        UserError: none there, one of them missing, or a compressed one.
    """
    if is_pattern(name):
        paths = []
        for one in expand_braces(name):
            found = match_files(one)
            if not found:
                raise UserError(
                    f"the shard {one} does not exist; expected every file of {name}: check data.source"
                )
            paths += found
    elif Path(name).expanduser().is_dir():
        paths = sorted(Path(name).expanduser().glob("*.tar"))
    else:
        paths = [Path(name).expanduser()]
    for path in paths:
        if not path.is_file():
            raise missing_path(str(path))
        if path.suffix != ".tar":
            raise UserError(
                f"cannot seek in {path}: expected uncompressed .tar shards; unpack it with gunzip or the like"
            )
    if not paths:
        raise UserError(f"no .tar shards at {name}: check data.source")
    return paths


class Member(NamedTuple):
    """What a shard holds of one sample, told by the extensions after its key."""

    key: str
    parts: dict[str, tarfile.TarInfo]


def split_key(name: str) -> tuple[str, str]:
    """Returns (key, extension) of a member: webdataset splits the base name at its first dot."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def group_members(members: Iterable[tarfile.TarInfo]) -> Iterator[Member]:
    """Yields samples: runs of files with the same key."""
    sample = None
    for member in members:
        if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
            continue
        key, extension = split_key(member.name)
        if sample is None or sample.key != key or extension in sample.parts:
            if sample is not None:
                yield sample
            sample = Member(key, {})
        sample.parts[extension] = member
    if sample is not None:
        yield sample


def image_part(parts: Iterable[str]) -> str | None:
    """Returns which of a sample's extensions is the picture: `png` rather than `mask.png`."""
    pictures = [part for part in parts if "." + part.rpartition(".")[2] in EXTENSIONS]
    return min(pictures, key=lambda part: part.count("."), default=None)


def parse_label(extension: str, content: bytes) -> int | str | None:
    """Returns the label in a sample's `.cls` file (number or name) or its `.json` file (under "label")."""
    if extension == "cls":
        value = content.decode("utf-8", "replace").strip()
    elif extension == "json":
        try:
            value = json.loads(content)
        except ValueError:
            return None
        value = value.get("label") if isinstance(value, dict) else None
    else:
        return None
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?\d+", value) else value or None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number_labels(values: list[int | str | None], name: str) -> tuple[np.ndarray, list[str]]:
    """Returns labels (N,) int64 and class names for raw labels: numbers are kept, names sorted, None is -1.

    Without any label all images are one class called `name`.
    """
    known = {value for value in values if value is not None}
    if not known:
        return np.zeros(len(values), np.int64), [name]
    if all(isinstance(value, int) for value in known):
        top = max(int(value) for value in known)
        labels = np.fromiter((-1 if v is None else max(int(v), -1) for v in values), np.int64, len(values))
        return labels, [str(k) for k in range(top + 1)]
    classes = sorted(str(value) for value in known)
    position = {value: k for k, value in enumerate(classes)}
    return np.fromiter(
        (-1 if v is None else position[str(v)] for v in values), np.int64, len(values)
    ), classes


class ShardSource(FileSource):
    """Tar shards as webdataset writes them: a sample's files lie side by side and share the name up to a dot.

    The picture is the file with an image's extension; the label comes from `.cls` (a number or a name) or
    `.json` (its "label"). `.txt` is a caption and ignored. Samples without a picture are skipped. Shards
    are scanned once; where each picture lies is kept in `cache_dir`, keyed by the shards' names and sizes.

    Raises:
        UserError: no shards, a truncated or compressed one, or none with a picture.
    """

    def __init__(self, name: str, cache_dir: Path | None = None):
        self._paths = find_shards(name)
        self.name = self._paths[0].stem if len(self._paths) == 1 else self._paths[0].resolve().parent.name
        sizes = [path.stat().st_size for path in self._paths]
        self._fingerprint = fingerprint(
            (
                "shards",
                INDEX_VERSION,
                *(f"{path.name}:{size}" for path, size in zip(self._paths, sizes, strict=True)),
            )
        )
        self._load(None if cache_dir is None else Path(cache_dir) / f"shards-{self._fingerprint}.npz")
        if not len(self):
            raise UserError(
                f"no pictures in the shards at {name}: expected members ending in {', '.join(EXTENSIONS)}"
            )
        self._open: collections.OrderedDict[int, io.FileIO] = collections.OrderedDict()

    def _load(self, cache: Path | None) -> None:
        if cache is not None and cache.exists():
            with np.load(cache) as stored:
                arrays = dict(stored)
        else:
            arrays = self._scan()
            if cache is not None:
                with atomic_path(cache) as temporary:
                    np.savez(temporary, allow_pickle=False, **arrays)
        self._shard, self._offset, self._size = arrays["shard"], arrays["offset"], arrays["size"]
        self._names = Names(arrays["names"].tobytes(), arrays["name_offsets"])
        self.labels = arrays["labels"]
        self.classes = [str(name) for name in arrays["classes"]]

    def _scan(self) -> dict[str, np.ndarray]:
        shard, offset, size, labels = bytearray(), bytearray(), bytearray(), []
        known: dict[int | str, int | str] = {}  # one object a class, not one an image

        def names() -> Iterator[bytes]:
            for k, path in enumerate(self._paths):
                for member, label in _scan_shard(path):
                    shard.extend(k.to_bytes(4, "little"))
                    offset.extend(member.offset_data.to_bytes(8, "little"))
                    size.extend(member.size.to_bytes(8, "little"))
                    labels.append(label if label is None else known.setdefault(label, label))
                    yield member.name.encode("utf-8", "surrogateescape")

        packed = Names.of(names())
        numbers, classes = number_labels(labels, self.name)
        return {
            "shard": np.frombuffer(shard, "<i4"),
            "offset": np.frombuffer(offset, "<i8"),
            "size": np.frombuffer(size, "<i8"),
            "labels": numbers,
            "classes": np.array(classes),
            "names": np.frombuffer(packed.blob, np.uint8),
            "name_offsets": packed.offsets,
        }

    def _file(self, shard: int) -> io.FileIO:
        # pread has no position that processes or threads could fight over, so a handle inherited by fork
        # is safe. A handle that falls out of the table is closed once the last thread that still reads
        # from it lets go.
        file = self._open.pop(shard, None)
        if file is None:
            file = io.FileIO(self._paths[shard])
        self._open[shard] = file
        while len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return file

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": collections.OrderedDict()}

    def read_bytes(self, index: int) -> bytes:
        """Returns the picture file as it lies in its shard."""
        file = self._file(int(self._shard[index]))
        size = int(self._size[index])
        content = os.pread(file.fileno(), size, int(self._offset[index]))
        if len(content) != size:
            raise OSError(f"the shard ends after {len(content)} of the picture's {size} bytes")
        return content

    def describe(self, index: int) -> str:
        """Returns the shard's path and the member's name."""
        return f"{self._paths[int(self._shard[index])]}:{os.fsdecode(self._names[index])}"

    def fingerprint(self) -> str:
        """Returns a hash of the shards' names and sizes."""
        return self._fingerprint


def _scan_shard(path: Path) -> Iterator[tuple[tarfile.TarInfo, int | str | None]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for sample in group_members(_members(tar)):
                part = image_part(sample.parts)
                if part is None:
                    continue
                label = None
                for extension in ("cls", "json"):
                    if label is None and extension in sample.parts:
                        content = tar.extractfile(sample.parts[extension])
                        label = parse_label(extension, content.read() if content else b"")
                yield sample.parts[part], label
    except tarfile.TarError as error:
        raise UserError(
            f"the shard {path} is truncated or no tar file ({error}); fetch it again or remove it"
        ) from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    last = None
    while (member := tar.next()) is not None:
        last = member
        yield member
        tar.members.clear()  # type: ignore[attr-defined]  # it would remember every member
    # tarfile takes a file that breaks off for one that ends; but a whole one ends with blocks of zeros
    end = 0 if last is None else last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    assert tar.fileobj is not None
    tar.fileobj.seek(end)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end mark after {end} bytes")
