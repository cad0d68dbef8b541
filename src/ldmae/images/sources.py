"""Sources of images with random access, and the settings that name one."""

# N images of a source

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ldmae.config.data import DataConfig
from ldmae.config.registry import SOURCES
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError, counted, nearest, shortened
from ldmae.core.files import EXTENSIONS, is_junk, stamp_of
from ldmae.core.imports import import_object, is_import_path
from ldmae.images.base import (
    PREPARED,
    FileSource,
    Names,
    Subset,
    are_splits,
    exists,
    is_pattern,
    missing_path,
    nfc,
    with_classes,
)
from ldmae.images.builtin import open_builtin
from ldmae.images.cache import numbered
from ldmae.images.facts import Ignored
from ldmae.images.shards import ShardSource, is_tar
from ldmae.images.tables import TABLE_FILES, TableSource, holds_images, refuse_split

_SEPARATOR = os.fsencode(os.sep)


class FolderSource(FileSource):
    """Picture files in a folder; subfolders are classes, and a flat folder is one class named after it.

    Files nested deeper count for the subfolder they are under. Hidden files and folders are ignored, as are
    those that systems leave (`@eaDir`, `#recycle`, …); other files are counted in `facts`. Symbolic links are
    followed, order is by name. A folder with pictures both directly in it and in subfolders is an error, for
    it is not known what was meant.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise missing_path(str(folder))
        self.name = nfc(self.folder.resolve().name)
        self.place = str(self.folder.resolve())
        root = os.fsencode(self.folder)
        self._root = root if root.endswith(_SEPARATOR) else root + _SEPARATOR
        ignored = Ignored()
        flat, subfolders = _list(self._root, ignored)
        labels, states = array("i"), array("q")
        numbers: dict[str, int] = {}  # two spellings of a name are one class

        def walk() -> Iterator[bytes]:
            def noted(file: os.DirEntry[bytes], label: int) -> bytes:
                state = file.stat()
                states.extend((state.st_size, state.st_mtime_ns, state.st_ctime_ns))
                labels.append(label)
                return file.path[len(self._root) :]

            for file in flat:
                yield noted(file, 0)
            for subfolder in subfolders:
                for file in _walk(subfolder.path, (), ignored):
                    yield noted(file, numbers.setdefault(nfc(os.fsdecode(subfolder.name)), len(numbers)))

        self._names = Names.of(walk())
        self._states = np.array(states).reshape(-1, 3)  # (N, 3) int64: size, times of change
        self.labels = np.array(labels, dtype=np.int64)
        self.classes = [*numbers] or [self.name]
        self.flat = not numbers
        bare = [name for each in subfolders if (name := nfc(os.fsdecode(each.name))) not in numbers]
        self.facts = [*ignored.facts(), *self._deeper()]
        if bare and numbers:
            self.facts.append(f"no image in {counted(len(bare), 'subfolder')}: {shortened(bare, 3)}")
        self._refuse_odd_layouts(len(flat))

    def _deeper(self) -> list[str]:
        """Returns what is to be said of the only class where its pictures lie in folders of their own."""
        if len(self.classes) > 1 or self.flat:
            return []
        places = len({os.path.dirname(self._names[k]) for k in range(len(self))})  # noqa: PTH120, a bytes path
        outer = self.folder / self.classes[0]
        told = f"{places:,} folders in {outer} are one class; for a class each give data.source={outer}"
        return [told] if places > 1 else []

    def _refuse_odd_layouts(self, flat: int) -> None:
        if not len(self):
            raise UserError(
                f"no images in the folder {self.folder}: expected files ending in "
                f"{', '.join(EXTENSIONS)}, directly or "
                "in one subfolder per class; check the path" + "".join(f" ({fact})" for fact in self.facts)
            )
        if flat and len(self) > flat:
            raise UserError(
                f"{self.folder} has {flat} images directly in it and {len(self) - flat} in subfolders; "
                f"expected one or the other: move all into subfolders, one per class, or name one of them"
            )
        if not self.flat and are_splits(self.classes):
            raise _splits_below(self.folder, self.classes)

    def read_bytes(self, index: int) -> bytes:
        """Returns the picture file as it lies; raises a UserError where it isn't the one that was listed."""
        with open(self._root + self._names[index], "rb") as file:  # noqa: PTH123, a bytes path
            self._refuse_replaced(index, file.fileno(), *self._states[index, :2].tolist())
            return file.read()

    def describe(self, index: int) -> str:
        """Returns the file's path."""
        return os.fsdecode(self._root + self._names[index])

    def stamps(self) -> np.ndarray:
        """Returns 64 bits a file, of its path, size and times of change (`stamp`), (N,) uint64."""
        names = (stamp_of(self.place, self._names[k]) for k in range(len(self)))
        stamps = np.fromiter(names, np.uint64, len(self))
        for state in self._states.T:
            stamps = numbered(stamps, state)
        return stamps


_RESULTS = ("stages.json", "comparison.json", "results.json")
"""What is in a folder of a run, a comparison or an evaluation, whose images are not anybody's data."""


def _list(folder: bytes, ignored: Ignored) -> tuple[list[os.DirEntry[bytes]], list[os.DirEntry[bytes]]]:
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = os.fsdecode(entry.name)
                if is_junk(name):
                    continue
                if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110, a bytes path
                    ignored.add(os.fsdecode(entry.path), "leading nowhere")
                elif entry.is_dir():
                    if any(exists(Path(os.fsdecode(entry.path), file)) for file in _RESULTS):
                        ignored.add(os.fsdecode(entry.path), "folder of results of ldmae")
                    else:
                        folders.append(entry)
                elif name.lower().endswith(EXTENSIONS) and entry.is_file():
                    files.append(entry)
                elif name.lower() not in ("thumbs.db", "desktop.ini"):
                    ignored.add(os.fsdecode(entry.path))
    except OSError as error:
        raise UserError(
            f"cannot read the folder {os.fsdecode(folder)} ({error.strerror}); make it readable"
        ) from error
    return sorted(files, key=lambda entry: entry.name), sorted(folders, key=lambda entry: entry.name)


def _walk(
    folder: bytes, above: tuple[tuple[int, int], ...], ignored: Ignored
) -> Iterator[os.DirEntry[bytes]]:
    status = os.stat(folder)  # noqa: PTH116, a bytes path
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder above: going on would never end
        return
    files, folders = _list(folder, ignored)
    yield from files
    for subfolder in folders:
        yield from _walk(subfolder.path, (*above, here), ignored)


# ---- which kind a name stands for

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}$")


def is_address(name: str) -> bool:
    """Returns whether a name is an address of tar shards on the web."""
    return name.startswith(("http://", "https://"))


def is_stream(config: DataConfig) -> bool:
    """Returns whether `config` names images that can only be read front to back."""
    return config.stream or is_address(config.source)


def held_out_share(value: str) -> float | None:
    """Returns `data.val` as a number in (0, 1), or None where it names something."""
    try:
        share = float(value)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UserError(f"data.val must be a share in (0, 1), or name held-out images, got {value}")
    return share


def open_source(config: DataConfig, cache_dir: Path | None = None) -> ImageSource:
    """Opens what `config.source` names, with random access; `config.classes` is applied.

    An index of tar shards may be kept in `cache_dir`.

    Raises:
        UserError: nothing of that name, nothing in it, or a stream (see `ldmae.images.streams.open_stream`).
    """
    if is_stream(config):
        raise UserError(
            f"{config.source!r} can only be streamed, and this needs images with random access (an exact "
            f"order, latents): download it first and give the local path, or omit data.stream"
        )
    name, kind = config.source, checked_kind(config)
    if kind == "set":
        source: ImageSource = open_builtin(name)
        if Path(name).is_dir():
            source.facts = [f"the built-in set, not the folder {name} here, which is data.source=./{name}"]  # pyright: ignore[reportAttributeAccessIssue]
    elif kind == "code":
        source = _own_source(name)
    elif kind == "folder":
        source = FolderSource(Path(name).expanduser())
    elif kind == "shards":
        source = ShardSource(name, cache_dir, config.image_part)
    else:
        source = TableSource(
            name,
            split=config.split,
            image_column=config.image_column,
            label_column=config.label_column,
        )
    if config.classes is None:
        return source
    absent = [wanted for wanted in config.classes if nfc(wanted) not in source.classes]
    if absent:
        raise UserError(
            f"data.classes names {absent[0]!r}, which {name} lacks{nearest(absent[0], source.classes)}; "
            f"it has: {shortened(source.classes)}"
        )
    return with_classes(source, config.classes, strict=False)


def checked_kind(config: DataConfig) -> str:
    """Returns what `data.source` names (`kind_of`).

    Raises:
        UserError: there is no such thing, or it does not read one of the settings.
    """
    name = config.source
    kind = kind_of(name)
    if kind != "table":
        refuse_split(name, config.split)
    readers = {"image_column": "table", "label_column": "table", "image_part": "shards"}
    for setting, reader in readers.items():
        if getattr(config, setting) is not None and kind != reader:
            what = "a table (parquet, arrow, Hugging Face)" if reader == "table" else "tar shards"
            raise UserError(f"data.{setting} is for {what}, which {name} is not; omit it")
    return kind


def kind_of(name: str) -> str:
    """Returns `set`, `folder`, `shards`, `table` or `code`."""
    if not name:
        raise UserError(f"data.source is not set; give data=PATH, a folder of images or {', '.join(SOURCES)}")
    if name in SOURCES:
        return "set"
    if is_address(name):
        return "shards"
    path = Path(name).expanduser()
    if is_pattern(name):
        return "table" if name.lower().endswith(TABLE_FILES) else "shards"
    here = exists(path)
    if here and path.is_dir():
        return _kind_of_folder(path)
    if here and path.is_file():
        if path.name.lower().endswith(TABLE_FILES):
            return "table"
        if is_tar(path.name):
            return "shards"
        raise UserError(
            f"{name} is a file of another kind: expected a folder, a .tar, a .parquet or an .arrow file"
        )
    prepared = path.parent.name in PREPARED and path.name in ("train", "val")
    if _HUB_NAME.match(name) and not (exists(path.parent) or prepared):
        return "table"
    if is_import_path(name):
        return "code"
    raise missing_path(name)


def _own_source(name: str) -> ImageSource:
    """Builds a user's own source from `package.module:Name`."""
    make = import_object(name)
    try:
        source = make()
    except Exception as error:
        raise UserError(f"{name}() failed: {type(error).__name__}: {error}") from error
    lacks = [part for part in dir(ImageSource) if part[0] != "_" and not hasattr(source, part)]
    lacks += [part for part in ("name", "licence", "classes", "labels") if not hasattr(source, part)]
    classes = np.ravel(np.array(getattr(source, "classes", ()), object)).tolist()
    if not lacks and not all(isinstance(text, str) for text in (source.name, source.licence, *classes)):
        lacks = ["texts as name, licence and classes"]
    if lacks or not hasattr(source, "__len__") or not len(source):
        raise UserError(
            f"{name}() gave {type(source).__name__}, without {', '.join(lacks) or 'images'}; expected an "
            "ldmae.contracts.ImageSource"
        )
    labels, known = np.asarray(source.labels), range(-1, len(classes))
    odd = {*labels.ravel().tolist()} - {*known}
    if labels.shape != (len(source),) or odd:
        one = f", one of them {min(odd, key=str)!r}" if odd else ""
        raise UserError(
            f"{name}() has labels of shape {labels.shape}{one}; expected {len(source)} indices of its "
            f"classes, up to {known[-1]}, -1 for none"
        )
    if getattr(source.labels, "dtype", None) == np.int64 and isinstance(source.classes, list):
        return source
    return Subset(source, np.arange(len(labels)), labels=labels.astype(np.int64), classes=classes)


# ---- what a folder holds: by what is in it, and not by what is listed first


def _kind_of_folder(folder: Path) -> str:
    """Returns `folder`, `shards` or `table`.

    Pictures and shards win over a table that has no images. Subfolders count where the folder itself holds
    none of the three.

    Raises:
        UserError: it holds several of them, or its shards are in subfolders.
    """
    found, tables = _count(folder)
    inside: dict[str, Counter[str]] = {}
    if not found["images"]:
        entries = os.scandir(folder)
        for entry in sorted(e.name for e in entries if Path(e).is_dir() and not is_junk(e.name)):
            inside[entry], more = _count(folder / entry, first=True)
            tables += [] if found["shards"] else more
    below = sum(inside.values(), Counter())
    if found["shards"] and (found["images"] or below["images"] or below["shards"]):
        shards = counted(found["shards"], "tar shard")
        deeper = next((f"images or shards in {name}/" for name, counts in inside.items() if counts), "")
        raise UserError(
            f"{folder} holds {deeper or counted(found['images'], 'image')} and {shards}; expected one or "
            f"the other: name the shards, as with data.source='{folder}/*.tar', or move them away"
        )
    pictured = any(map(holds_images, tables[:1]))
    if pictured and (found["images"] or found["shards"] or below["images"]):
        others = "shards" if found["shards"] else "pictures"
        raise UserError(
            f"{folder} holds a table with images ({tables[0].name}) beside {others}; expected one of them: "
            f"name the table, as with data.source={tables[0]}, or move it away"
        )
    if found["shards"]:
        return "shards"
    if found["images"]:
        return "folder"
    if below["shards"] and not below["images"] and not pictured:
        names = [name for name, counts in inside.items() if counts["shards"]]
        if are_splits(names) and any(name.lower().startswith("train") for name in names):
            raise _splits_below(folder, names)
        raise UserError(
            f"the tar shards in {folder} are in its subfolders ({', '.join(names[:6])}); name them, as with "
            f"data.source='{folder}/*/*.tar'"
        )
    return "table" if tables and (pictured or not below["images"]) else "folder"


def _count(folder: Path, first: bool = False) -> tuple[Counter[str], list[Path]]:
    """Counts what is directly in a folder, and names its tables.

    With `first` only up to the first picture: a table beside pictures of a class is another file.
    """
    found, tables = Counter(), []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.lower()
                if is_junk(name):
                    continue
                if name.endswith(EXTENSIONS):
                    found["images"] += 1
                    if first:
                        return found, []
                elif is_tar(name) and not entry.is_dir():
                    found["shards"] += 1
                elif name.endswith(TABLE_FILES):
                    tables.append(Path(entry.path))
    except OSError:  # whoever opens it says so
        pass
    return found, sorted(tables)


def _splits_below(folder: Path, names: list[str]) -> UserError:
    train = next((name for name in names if name.lower().startswith("train")), names[0])
    others = [f" data.val={folder / name}" for name in names if name != train]
    return UserError(
        f"the subfolders of {folder} look like splits ({', '.join(names)}): use "
        f"data.source={folder / train}{''.join(others[:1])}"
    )
