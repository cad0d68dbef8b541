"""Sources of images with random access, and the settings that name one."""

# N images of a source

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError, nearest
from ldmae.core.files import fingerprint
from ldmae.images.transforms import to_rgb

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What counts as a picture in a folder or a tar shard."""

BUILTIN = ("emoji", "digits", "photos")
"""Sets that lie in the packages that come with this one."""

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from, and which of them are held out."""

    source: str = ""
    """A folder (its subfolders are classes), `emoji`, `digits` or `photos`, a Hugging Face dataset, parquet or arrow
    files, tar shards such as `shards/{000..012}.tar`, or an http(s) address of such shards."""
    val: str = "0.05"
    """Held-out images: a share in (0, 1) drawn by hash of the content, another source, or `split:NAME` of a dataset."""
    max_unreadable: float = 0.01
    """Share of the images that may be unreadable (named, skipped and counted) before it is an error."""
    split: str = "train"
    """Which split of a Hugging Face dataset to take."""
    image_column: str | None = None
    """A table's column of images; found by type if not given."""
    label_column: str | None = None
    """A table's column of labels; found by type or name if not given."""
    stream: bool = False
    """Read a Hub dataset or shards front to back without storing them; such a run does not resume exactly."""
    classes: list[str] | None = None
    """Keep only these as classes, in this order; other images train the autoencoder alone. Names a stream's labels."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_unreadable <= 1:
            raise UserError(f"data.max_unreadable must be a share in [0, 1], got {self.max_unreadable}")


class Names:
    """N byte strings in one blob: no Python object for each."""

    def __init__(self, blob: bytes, offsets: np.ndarray):
        self.blob = blob
        self.offsets = offsets  # (N + 1,) int64

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        """Packs an iterable, which is read once."""
        blob, offsets = bytearray(), [0]
        ends = np.fromiter(_extend(blob, names), dtype=np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), ends])
        return cls(bytes(blob), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.offsets[index] : self.offsets[index + 1]]


def _extend(blob: bytearray, names: Iterable[bytes]) -> Iterator[int]:
    for name in names:
        blob += name
        yield len(blob)


class FileSource:
    """What sources share that hand out a picture file's bytes: `read_bytes` is theirs, decoding is here."""

    name: str
    licence: str = ""
    classes: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def read_bytes(self, index: int) -> bytes:
        """Returns the picture file as it lies."""
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Returns what an error message calls the image."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Returns a hash of names and sizes."""
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        """Returns the image as a viewer shows it (`to_rgb`)."""
        return to_rgb(Image.open(io.BytesIO(self.read_bytes(index))))


class FolderSource(FileSource):
    """Picture files in a folder; its subfolders are the classes, and a flat folder is one class named after it.

    Files nested deeper count for the subfolder they are under. Hidden files and folders are ignored, symbolic links are
    followed, order is by name. A folder with pictures both directly in it and in subfolders is an error, for it is
    not known what was meant.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise missing_path(str(folder))
        self.name = self.folder.resolve().name
        root = os.fsencode(self.folder)
        self._prefix = len(os.path.join(root, b""))
        self._root = root
        flat, subfolders = _list(root)
        labels, sizes, classes = bytearray(), bytearray(), []

        def walk() -> Iterator[bytes]:
            for file in flat:
                sizes.extend(file.stat().st_size.to_bytes(8, "little"))
                labels.extend((0).to_bytes(4, "little"))
                yield file.name
            for subfolder in subfolders:
                found = False
                for file in _walk(subfolder.path, ()):
                    found = True
                    sizes.extend(file.stat().st_size.to_bytes(8, "little"))
                    labels.extend(len(classes).to_bytes(4, "little"))
                    yield file.path[self._prefix :]
                if found:
                    classes.append(os.fsdecode(subfolder.name))

        self._names = Names.of(walk())
        self._sizes = np.frombuffer(sizes, dtype="<i8")
        self.labels = np.frombuffer(labels, dtype="<i4").astype(np.int64)
        self.classes = classes or [self.name]
        self._refuse_odd_layouts(len(flat), [os.fsdecode(entry.name) for entry in subfolders])

    def _refuse_odd_layouts(self, flat: int, subfolders: list[str]) -> None:
        if not len(self):
            raise UserError(
                f"no images in the folder {self.folder}: expected files ending in {', '.join(EXTENSIONS)}, directly or "
                "in one subfolder per class; check data.source"
            )
        if flat and len(self) > flat:
            raise UserError(
                f"{self.folder} has {flat} images directly in it and {len(self) - flat} in subfolders; expected one or "
                "the other: move all into subfolders (one a class), or point data.source at the subfolder you mean"
            )
        if len(self.classes) > 1 and {name.lower() for name in self.classes} <= _SPLIT_NAMES:
            train = next((n for n in self.classes if n.lower().startswith("train")), self.classes[0])
            other = next(n for n in self.classes if n != train)
            raise UserError(
                f"the subfolders of {self.folder} look like splits, not classes ({', '.join(subfolders)}): use "
                f"data.source={self.folder / train} data.val={self.folder / other}"
            )

    def path(self, index: int) -> str:
        """Returns the file's path."""
        return os.fsdecode(os.path.join(self._root, self._names[index]))

    def read_bytes(self, index: int) -> bytes:
        """Returns the picture file as it lies."""
        with open(os.path.join(self._root, self._names[index]), "rb") as file:  # noqa: PTH123, a bytes path
            return file.read()

    def describe(self, index: int) -> str:
        """Returns the file's path."""
        return self.path(index)

    def fingerprint(self) -> str:
        """Returns a hash of the files' names (under the folder) and sizes."""
        return fingerprint(
            (b"folder", self._names.blob, self._names.offsets.tobytes(), self._sizes.tobytes())
        )


def _list(folder: bytes) -> tuple[list[os.DirEntry[bytes]], list[os.DirEntry[bytes]]]:
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((b".", b"__MACOSX")):
                continue
            if entry.is_dir():
                folders.append(entry)
            elif os.fsdecode(entry.name).lower().endswith(EXTENSIONS) and entry.is_file():
                files.append(entry)
    return sorted(files, key=lambda entry: entry.name), sorted(folders, key=lambda entry: entry.name)


def _walk(folder: bytes, above: tuple[tuple[int, int], ...]) -> Iterator[os.DirEntry[bytes]]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder above: going on would never end
        return
    files, folders = _list(folder)
    yield from files
    for subfolder in folders:
        yield from _walk(subfolder.path, (*above, here))


class Subset:
    """Some images of a source, by index: nothing is copied. Labels and classes can be replaced."""

    def __init__(
        self,
        source: ImageSource,
        indices: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
    ):
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.name, self.licence = source.name, source.licence
        self.classes = source.classes if classes is None else classes
        self.labels = source.labels[self.indices] if labels is None else labels
        assert len(self.labels) == len(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        """Returns the image as a viewer shows it."""
        return self.source.read(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """Returns what the underlying source calls the image."""
        return self.source.describe(int(self.indices[index]))

    def fingerprint(self) -> str:
        """Returns a hash of the underlying source's fingerprint, the indices, labels and classes."""
        parts = (self.source.fingerprint(), self.indices.tobytes(), self.labels.tobytes(), *self.classes)
        return fingerprint(parts)


def with_classes(source: ImageSource, classes: Sequence[str], *, strict: bool = True) -> ImageSource:
    """Returns the source with labels that index `classes`.

    Args:
        source: any source.
        classes: names, in the order wanted.
        strict: the source's other classes are an error; otherwise their images get label -1.

    Raises:
        UserError: with `strict`, the source has a class that `classes` lacks.
    """
    classes = list(classes)
    if source.classes == classes:
        return source
    position = {name: k for k, name in enumerate(classes)}
    unknown = [name for name in source.classes if name not in position]
    if strict and unknown:
        raise UserError(
            f"data.val has the class {unknown[0]!r}, which the training images lack"
            f"{nearest(unknown[0], classes)}; expected some of: {_shortened(classes)}. Rename its subfolder, or remove it"
        )
    table = np.array([*(position.get(name, -1) for name in source.classes), -1], dtype=np.int64)
    return Subset(
        source, np.arange(len(source)), labels=table[source.labels], classes=classes
    )  # label -1 → table[-1]


def _shortened(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")


# ---- which kind a name stands for

_REMOTE = re.compile(r"^https?://")
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_TABLE_FILES = (".parquet", ".arrow")


def is_stream(config: DataConfig) -> bool:
    """Returns whether `config` names images that can only be read front to back."""
    return config.stream or bool(_REMOTE.match(config.source))


def held_out_share(value: str) -> float | None:
    """Returns `data.val` as a number in (0, 1), or None where it names something."""
    try:
        share = float(value)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UserError(f"data.val must be a share in (0, 1), or name held-out images, got {value}")
    return share


def is_pattern(name: str) -> bool:
    """Returns whether a name has braces or wildcards that stand for several files."""
    return any(mark in name for mark in "{*?[") and not Path(name).exists()


def open_source(config: DataConfig, cache_dir: Path | None = None) -> ImageSource:
    """Opens what `config.source` names, with random access; `config.classes` is applied.

    Args:
        config: which images.
        cache_dir: where an index of tar shards or an arrow copy of parquet files may be kept.

    Raises:
        UserError: nothing of that name, nothing in it, or a stream (see `ldmae.images.streams.open_stream`).
    """
    from ldmae.images import builtin, shards, tables  # here, for each of them imports this module

    if is_stream(config):
        raise UserError(
            f"{config.source!r} can only be streamed, and this needs images with random access (an exact order, "
            "latents): download it first and give the local path, or leave data.stream off"
        )
    name = config.source
    if name in BUILTIN:
        source = builtin.open_builtin(name)
    else:
        kind = _kind(name)
        if kind == "folder":
            source = FolderSource(Path(name).expanduser())
        elif kind == "shards":
            source = shards.ShardSource(name, cache_dir=cache_dir)
        else:
            source = tables.TableSource(
                name,
                split=config.split,
                image_column=config.image_column,
                label_column=config.label_column,
                cache_dir=cache_dir,
            )
    if config.classes is None:
        return source
    absent = [wanted for wanted in config.classes if wanted not in source.classes]
    if absent:
        raise UserError(
            f"data.classes names {absent[0]!r}, which {name} lacks{nearest(absent[0], source.classes)}; "
            f"it has: {_shortened(source.classes)}"
        )
    return with_classes(source, config.classes, strict=False)


def _kind(name: str) -> str:
    """Returns `folder`, `shards` or `table`."""
    if not name:
        raise UserError(f"data.source is not set: expected a folder of images or one of {', '.join(BUILTIN)}")
    path = Path(name).expanduser()
    if is_pattern(name):
        return "table" if name.endswith(_TABLE_FILES) else "shards"
    if path.is_dir():
        return _kind_of_folder(path)
    if path.is_file():
        if path.suffix in _TABLE_FILES:
            return "table"
        if ".tar" in path.suffixes or path.suffix == ".tgz":
            return "shards"
        raise UserError(
            f"data.source is the file {name}: expected a folder, a .tar, a .parquet or an .arrow file"
        )
    parent_is_here = path.parent != Path() and path.parent.is_dir()
    if _HUB_NAME.match(name) and not parent_is_here:
        return "table"
    raise missing_path(name)


def _kind_of_folder(folder: Path) -> str:
    for place in (folder, *(folder / name for name in ("data", "default", *sorted(_SPLIT_NAMES)))):
        if not place.is_dir():
            continue
        with os.scandir(place) as entries:
            for entry in entries:
                suffix = Path(entry.name).suffix
                if suffix in _TABLE_FILES:
                    return "table"
                if suffix == ".tar" and place == folder:
                    return "shards"
                if suffix.lower() in EXTENSIONS:
                    return "folder"
    return "folder"


def missing_path(name: str) -> UserError:
    """Returns the error for a source that does not exist, with the nearest names that do."""
    path = Path(name).expanduser()
    siblings = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    hint = nearest(path.name, siblings) or nearest(name, BUILTIN)
    return UserError(
        f"there is no folder or file {name}{hint}; expected a folder of images, tar shards, parquet files, OWNER/NAME of "
        f"a Hugging Face dataset, or a built-in set: {', '.join(BUILTIN)}"
    )
