"""Local tar shards in webdataset's layout: indexed once, then read by seeking."""

# N images over all shards

import collections
import glob
import io
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, stamp
from ldmae.images.base import EXTENSIONS, FileSource, Names, is_pattern, missing_path
from ldmae.images.cache import load_arrays, numbered, save_arrays

INDEX_VERSION = "2"
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
    `.json` (its "label"). `.txt` is a caption and ignored. Samples without a picture are skipped. A shard is
    scanned once: where its pictures are is kept in `cache_dir`, by its path, size and time of modification.

    Raises:
        UserError: no shards, a truncated or compressed one, or none with a picture.
    """

    def __init__(self, name: str, cache_dir: Path | None = None):
        self._paths = find_shards(name)
        self.name = self._paths[0].stem if len(self._paths) == 1 else self._paths[0].resolve().parent.name
        self.place = "\n".join(str(path.resolve()) for path in self._paths)
        self._stamps = np.array([stamp(path) for path in self._paths], np.uint64)
        key = fingerprint(("shards", INDEX_VERSION, self.place))
        found = self._scan(None if cache_dir is None else Path(cache_dir) / f"shards-{key}.npz")
        self._shard = np.repeat(np.arange(len(self._paths), dtype=np.int32), found["count"])
        self._offset, self._size = found["offset"], found["size"]
        self._names = Names(found["names"].tobytes(), np.append(0, found["length"].cumsum()))
        if not len(self._shard):
            raise UserError(
                f"no pictures in the shards at {name}: expected members ending in {', '.join(EXTENSIONS)}"
            )
        numbers, self.classes = number_labels(json.loads(found["values"].tobytes()), self.name)
        self.labels = np.append(numbers, -1 if len(numbers) else 0)[found["label"]]
        self._open: collections.OrderedDict[int, io.FileIO] = collections.OrderedDict()

    def _scan(self, cache: Path | None) -> dict[str, np.ndarray]:
        """Returns where the pictures are and what labels they have; reads shards that changed, or are new."""
        kept = load_arrays(cache, *_SCANNED, "names", "values", "stamps")
        before = {} if kept is None else _by_shard(kept)
        if kept is not None and [*before] == self._stamps.tolist():
            return kept
        values: dict[int | str, int] = {}  # one object a class, not one an image
        parts = []
        for path, key in zip(self._paths, self._stamps.tolist(), strict=True):
            part, raw = before.get(key) or _scanned(path)
            numbers = np.full(len(raw) + 1, -1)
            for k in np.unique(part["label"]).tolist():  # what is kept of others may have more
                numbers[k] = -1 if k < 0 else values.setdefault(raw[k], len(values))
            parts.append({**part, "label": numbers[part["label"]]})
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        found["values"] = np.frombuffer(json.dumps([*values]).encode(), np.uint8)
        if cache is not None:
            save_arrays(cache, {**found, "stamps": self._stamps})
        return found

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

    def stamps(self) -> np.ndarray:
        """Returns 64 bits a picture, of its shard (`stamp`) and its place in it, (N,) uint64."""
        return numbered(self._stamps[self._shard], self._offset)


_SCANNED = ("count", "offset", "size", "length", "label")
"""Of each shard the number of its pictures; of each picture where it is, its bytes, those of its name, and
the number of its label among `values` (-1: none)."""


def _scanned(path: Path) -> tuple[dict[str, np.ndarray], list[int | str]]:
    """Returns a shard's pictures as `_SCANNED` and `names` hold them, and the labels that they number."""
    offset, size, length, label = array("q"), array("q"), array("q"), array("i")
    names, values = bytearray(), {}
    for member, value in _scan_shard(path):
        name = member.name.encode("utf-8", "surrogateescape")
        offset.append(member.offset_data)
        size.append(member.size)
        length.append(len(name))
        label.append(-1 if value is None else values.setdefault(value, len(values)))
        names += name
    arrays = {"count": [len(offset)], "offset": offset, "size": size, "length": length, "label": label}
    found = {name: np.array(values, np.int64) for name, values in arrays.items()}
    return found | {"names": np.frombuffer(bytes(names), np.uint8)}, [*values]


def _by_shard(kept: dict[str, np.ndarray]) -> dict[int, tuple[dict[str, np.ndarray], list[int | str]]]:
    """Returns what is kept of each shard by its stamp; nothing where it is damaged."""
    try:
        values = json.loads(kept["values"].tobytes())
        pictures = np.append(0, kept["count"].cumsum())
        letters = np.append(0, kept["length"].cumsum())[pictures]
        lengths = {name: len(kept[name]) for name in ("offset", "size", "length", "label")}
        whole = set(lengths.values()) == {int(pictures[-1])} and len(kept["names"]) == letters[-1]
        whole &= all(kept[name].dtype.kind == "i" for name in _SCANNED)
        if not whole or len(kept["stamps"]) != len(kept["count"]) or kept["label"].max() >= len(values):
            return {}
    except (ValueError, IndexError, TypeError):
        return {}
    shards = {}
    for k, key in enumerate(kept["stamps"].tolist()):
        part = {name: kept[name][pictures[k] : pictures[k + 1]] for name in lengths}
        part |= {"count": kept["count"][k : k + 1], "names": kept["names"][letters[k] : letters[k + 1]]}
        shards[key] = part, values
    return shards


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
