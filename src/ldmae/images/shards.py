"""Local tar shards in webdataset's layout: indexed once, then read by seeking."""

# N images over all shards

import collections
import glob
import io
import itertools
import json
import os
import re
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ldmae.core.errors import UserError, counted, shortened
from ldmae.core.files import EXTENSIONS, fingerprint, is_junk, stamp
from ldmae.images.base import (
    SPLIT_NAMES,
    FileSource,
    Names,
    are_splits,
    is_pattern,
    missing_path,
    nfc,
    number_labels,
)
from ldmae.images.cache import load_arrays, numbered, save_arrays
from ldmae.images.facts import Ignored
from ldmae.images.tar import part_name, scan

_INDEX_VERSION = "5"
_MOST_FILES = 1_000_000
"""That a pattern may name."""
_OPEN_SHARDS = 64
"""How many shards a process keeps open at most."""


def expand_braces(pattern: str) -> list[str]:
    """Returns the names that a pattern with `{000..012}` or `{a,b}` stands for, in order.

    Raises:
        UserError: a range runs backwards, or they are more than `_MOST_FILES`.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # text, braces, text, braces, …, text
    choices: list[Iterable[str]] = [[piece] for piece in pieces]
    count = 1
    for place, inner in list(enumerate(pieces))[1::2]:
        if span := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inner):
            first, last = span.groups()
            numbers = range(int(first), int(last) + 1)
            if not numbers:
                raise UserError(
                    f"the range {{{inner}}} in {pattern} runs backwards; write the smaller number first"
                )
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            count *= len(numbers)
            choices[place] = map(f"{{:0{width}}}".format, numbers)
        else:
            choices[place] = inner.split(",")
            count *= inner.count(",") + 1
    if count > _MOST_FILES:
        raise UserError(
            f"{pattern[:200]} names {count:,} files, more than {_MOST_FILES:,}; check its numbers"
        )
    return ["".join(parts) for parts in itertools.product(*choices)]


def match_files(pattern: str) -> list[Path]:
    """Returns the files that a pattern with braces and wildcards names, in order.

    Raises:
        UserError: one of its names matches none.
    """
    files = []
    for one in expand_braces(pattern):
        found = glob.glob(str(Path(one).expanduser()))  # noqa: PTH207, Path.glob takes no absolute pattern
        if not found:
            raise UserError(f"no file matches {pattern}: {one} does not exist; check the path")
        files += map(Path, sorted(found))
    return files


_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def is_tar(name: str) -> bool:
    """Returns whether a name ends as a tar shard's does, compressed or not, in whatever case."""
    return name.lower().endswith(_TARS)


def find_shards(name: str, compressed: bool = False) -> list[Path]:
    """Returns the local tar files that a file, folder, brace pattern or glob names, in order.

    Compressed ones will do where they are read front to back (`compressed`).

    Raises:
        UserError: none there, one of them missing, or a compressed one.
    """
    if is_pattern(name):
        paths = match_files(name)
    elif Path(name).expanduser().is_dir():
        entries = sorted(Path(name).expanduser().iterdir())
        paths = [path for path in entries if is_tar(path.name) and not is_junk(path.name) | path.is_dir()]
    else:
        paths = [Path(name).expanduser()]
    for path in paths:
        if is_pattern(name) and (path.is_dir() or not is_tar(path.name)):
            raise UserError(
                f"{name} matches {path}, which is no tar shard; a pattern names .tar, .parquet or .arrow "
                f"files. For images give their folder, such as data.source={path.parent}"
            )
        if not path.is_file():
            raise missing_path(str(path))
        if not compressed and path.suffix.lower() != ".tar":
            raise UserError(
                f"cannot seek in {path}: expected uncompressed .tar shards; unpack it with gunzip or the "
                "like, or read it front to back with data.stream=true"
            )
    if not paths:
        raise UserError(f"no .tar shards at {name}: check the path")
    return paths


class ShardSource(FileSource):
    """Tar shards as webdataset writes them: the files of a sample share their name up to its first dot.

    The picture is the file with an image's extension; the label comes from `.cls` (a number or a name) or
    `.json` (its "label", "class", …). Where no sample has a label, the folders in the shards are classes, as
    in a folder of images; and where there are none, shards named after their classes. A shard is scanned
    once: where its pictures are is kept in `cache_dir`, by its path, size and times of change.

    Args:
        name: a file, a folder or a pattern.
        cache_dir: where the scan is kept, or None.
        image_part: which part of a sample is its picture, where it has several; `all`: each is an image.

    Raises:
        UserError: no shards, a truncated or compressed one, none with a picture, or a sample with several.
    """

    def __init__(self, name: str, cache_dir: Path | None = None, image_part: str | None = None):
        self._paths = find_shards(name)
        self._wanted = part_name(image_part)
        self.name = self._paths[0].stem if len(self._paths) == 1 else self._paths[0].resolve().parent.name
        self.place = "\n".join([image_part or "", *(str(path.resolve()) for path in self._paths)])
        self._stamps = np.array([stamp(path) for path in self._paths], np.uint64)
        self._states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in self._paths]
        key = fingerprint(("shards", _INDEX_VERSION, self.place))
        found = self._scan(None if cache_dir is None else Path(cache_dir) / f"shards-{key}.npz")
        self._shard = np.repeat(np.arange(len(self._paths), dtype=np.int32), found["count"])
        self._offset, self._size = found["offset"], found["size"]
        self._names = Names(found["names"].tobytes(), np.append(0, found["length"].cumsum()))
        ignored = Ignored()
        for told in json.loads(found["ignored"].tobytes()):
            ignored.join(Ignored(*told))
        folder, read = Path(name).expanduser(), {*self._paths}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path not in read and not is_junk(path.name):
                ignored.add(path.name, "folder" if path.is_dir() else None)
        self.facts = ignored.facts()
        if not len(self._shard):
            part = "" if image_part is None else f", each the part {image_part!r} (data.image_part)"
            raise UserError(
                f"no images in the shards at {name}: expected members ending in {', '.join(EXTENSIONS)}{part}"
                + "".join(f"; {fact}" for fact in self.facts)
            )
        empty = [path.name for path, count in zip(self._paths, found["count"], strict=True) if not count]
        self.facts += [f"no image in {counted(len(empty), 'shard')}: {shortened(empty, 3)}"] if empty else []
        values = json.loads(found["values"].tobytes())
        numbers, self.classes = number_labels(values, self.name)
        if len({type(value) for value in values}) > 1:
            self.facts.append(f"labels are numbers as well as names: {shortened(self.classes, 4)}")
        self.labels = np.append(numbers, -1 if len(numbers) else 0)[found["label"]]
        if not len(numbers):
            self._label_by_place(name)
        self._open: collections.OrderedDict[int, io.FileIO] = collections.OrderedDict()

    def _label_by_place(self, name: str) -> None:
        """Takes the folders in the shards for classes, or the shards, if they are named as classes are."""
        inside: list[int | str | None] = [None]
        if b"/" in self._names.blob:
            inside = [*_folders(os.fsdecode(self._names[k]) for k in range(len(self)))]
        named = set(inside) - {None}
        if named and None in inside:
            raise UserError(
                f"the shards at {name} have {counted(inside.count(None), 'image')} beside folders and "
                f"{len(inside) - inside.count(None)} in them ({shortened(sorted(map(str, named)), 4)}); "
                "expected one or the other, or labels (.cls, .json) beside the images"
            )
        if named and are_splits(map(str, named)):
            raise UserError(
                f"the folders in the shards at {name} look like splits, not classes "
                f"({', '.join(sorted(map(str, named)))}); write each into shards of its own"
            )
        if named:
            self.labels, self.classes = number_labels(inside, self.name)
        elif _are_classes([path.stem for path in self._paths], self._first_names()):
            numbers, self.classes = number_labels([nfc(path.stem) for path in self._paths], self.name)
            self.labels = numbers[self._shard]
            self.facts.append("no labels in the shards, which are named after their classes")

    def _first_names(self) -> list[str]:
        """Returns the name of each shard's first picture, without folders; empty where it has none."""
        names = [""] * len(self._paths)
        for shard, first in zip(*np.unique(self._shard, return_index=True), strict=True):
            names[shard] = os.fsdecode(self._names[first]).rpartition("/")[2]
        return names

    def _scan(self, cache: Path | None) -> dict[str, np.ndarray]:
        """Returns where the pictures are and what labels they have; reads shards that changed, or are new."""
        kept = load_arrays(cache, *_SCANNED, "names", "values", "ignored", "stamps")
        before = {} if kept is None else _by_shard(kept)
        if kept is not None and [*before] == self._stamps.tolist():
            return kept
        values: dict[int | str, int] = {}  # one object a class, not one an image
        parts, told = [], []
        for path, key in zip(self._paths, self._stamps.tolist(), strict=True):
            part, raw, ignored = before.get(key) or _scanned(path, self._wanted)
            told.append(ignored)
            numbers = np.full(len(raw) + 1, -1)
            for k in np.unique(part["label"]).tolist():  # what is kept of others may have more
                numbers[k] = -1 if k < 0 else values.setdefault(raw[k], len(values))
            parts.append({**part, "label": numbers[part["label"]]})
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        found["values"] = np.frombuffer(json.dumps([*values]).encode(), np.uint8)
        found["ignored"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
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
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return file

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": collections.OrderedDict()}

    def read_bytes(self, index: int) -> bytes:
        """Returns the picture file as it lies in its shard."""
        file, size = self._file(int(self._shard[index])), int(self._size[index])
        self._refuse_replaced(index, file.fileno(), *self._states[self._shard[index]])
        content = os.pread(file.fileno(), size, int(self._offset[index]))
        if len(content) != size:
            raise OSError(f"the shard ends after {len(content)} of the image's {size} bytes")
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


_Scanned = tuple[dict[str, np.ndarray], list[int | str], tuple[dict[str, int], list[str]]]


def _scanned(path: Path, wanted: str | None) -> _Scanned:
    """Returns a shard's pictures as `_SCANNED` says, the labels that they number, and what is ignored."""
    offset, size, length, label = array("q"), array("q"), array("q"), array("i")
    names, values, ignored = bytearray(), {}, Ignored()
    for picture in scan(path, wanted, ignored):
        name = picture.part.name.encode("utf-8", "surrogateescape")
        offset.append(picture.part.offset)
        size.append(picture.part.size)
        length.append(len(name))
        label.append(-1 if picture.label is None else values.setdefault(picture.label, len(values)))
        names += name
    arrays = {"count": [len(offset)], "offset": offset, "size": size, "length": length, "label": label}
    found: dict[str, np.ndarray] = {name: np.array(values, np.int64) for name, values in arrays.items()}
    found["names"] = np.frombuffer(bytes(names), np.uint8)
    return found, [*values], (ignored.counts, ignored.names)


def _by_shard(kept: dict[str, np.ndarray]) -> dict[int, _Scanned]:
    """Returns what is kept of each shard by its stamp; nothing where it is damaged."""
    try:
        values, told = (json.loads(kept[name].tobytes()) for name in ("values", "ignored"))
        pictures = np.append(0, kept["count"].cumsum())
        letters = np.append(0, kept["length"].cumsum())[pictures]
        lengths = {name: len(kept[name]) for name in ("offset", "size", "length", "label")}
        whole = set(lengths.values()) == {int(pictures[-1])} and len(kept["names"]) == letters[-1]
        whole &= all(kept[name].dtype.kind == "i" for name in _SCANNED)
        whole &= {len(kept["stamps"])} == {len(kept["count"]), len(told)}
        if not whole or kept["label"].max(initial=-1) >= len(values):
            return {}
        shards = {}
        for k, key in enumerate(kept["stamps"].tolist()):
            part = {name: kept[name][pictures[k] : pictures[k + 1]] for name in lengths}
            part |= {"count": kept["count"][k : k + 1], "names": kept["names"][letters[k] : letters[k + 1]]}
            Ignored(*told[k])
            shards[key] = part, values, told[k]
    except (ValueError, IndexError, TypeError):
        return {}
    return shards


def _folders(names: Iterable[str]) -> list[str | None]:
    """Returns the class folder of each picture in a tar file, below the folders that all share."""
    paths = [name.split("/")[:-1] for name in names]
    shared = 0
    while paths and len({path[shared] if len(path) > shared else None for path in paths}) == 1:
        if len(paths[0]) <= shared:
            break
        shared += 1
    return [nfc(path[shared]) if len(path) > shared else None for path in paths]


def _are_classes(stems: list[str], first: list[str]) -> bool:
    """Says whether shards are named after classes: without numbers, or their pictures after them."""
    if len(stems) < 2 or {stem.lower() for stem in stems} & SPLIT_NAMES:
        return False
    numbered = [bool(re.search(r"\d$", stem)) for stem in stems]
    after = all(name.startswith(stem) for name, stem in zip(first, stems, strict=True) if name)
    return not any(numbered) or (all(numbered) and after and not all(stem.isdigit() for stem in stems))
