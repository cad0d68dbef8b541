"""What all kinds of sources share: names in one blob, decoding, subsets, the error for a missing path."""

# N images of a source

import hashlib
import os
import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldmae.config.registry import SOURCES
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError, nearest, shortened
from ldmae.core.files import fingerprint
from ldmae.images.decoding import Picture

LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "class_id",
    "cls",
    "class_name",
    "fine_label",
    "category",
    "target",
)
"""What a table's column of labels may be called, or a label in a shard's JSON, whatever the case."""

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}
"""Folders and shards of these names are splits, not classes."""

PREPARED = {
    "emoji-sets": "emoji-sets {}",
    "emoji-three": "emoji-sets {} --set twemoji --set noto --set fluent",
    "wallpapers": "wallpapers {}",
}
"""What `ldmae prepare` makes, by the names that presets give the folders."""


def are_splits(names: Iterable[str]) -> bool:
    """Returns whether names of folders are those of splits, not of classes; a year may follow."""
    return {re.sub(r"\d{4}$", "", name.lower()) for name in names} <= SPLIT_NAMES


def nfc(name: str) -> str:
    """Returns a name in one spelling of its accents, which macOS writes as characters of their own (NFD).

    Bytes of a file's name that are no UTF-8, which no text file takes, are escaped.
    """
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()


def plain_label(value: Any) -> int | str | None:
    """Returns a label as a number or a name, None for what is neither: fractions, NaN, several at once."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    if isinstance(value, str):
        value = nfc(value.strip())
        return int(value) if re.fullmatch(r"-?\d{1,18}", value) else value[:200] or None
    return value if isinstance(value, int) and abs(value) < 2**63 else None


def number_labels(values: list[int | str | None], name: str) -> tuple[np.ndarray, list[str]]:
    """Returns labels (N,) int64 and class names for raw labels.

    Numbers are kept, but where they are sparse, as object ids are, their distinct values are numbered; names
    are sorted; None and negative numbers are -1. Without any label all images are one class called `name`.
    """
    known = {value for value in values if value is not None and not (isinstance(value, int) and value < 0)}
    if not known:
        without = 0 if all(value is None for value in values) else -1
        return np.full(len(values), without, np.int64), [name]
    numbers = [value for value in known if isinstance(value, int)]
    if len(numbers) == len(known):
        top = max(numbers)
        dense = top < 10 * len(known) + 100
        classes = [str(k) for k in (range(top + 1) if dense else sorted(numbers))]
    else:
        classes = sorted({str(value) for value in known})
    position = {value: k for k, value in enumerate(classes)}
    labels = (-1 if value is None else position.get(str(value), -1) for value in values)
    return np.fromiter(labels, np.int64, len(values)), classes


class Names:
    """N byte strings in one blob: no Python object for each."""

    def __init__(self, blob: bytes, offsets: np.ndarray):
        self.blob = blob
        self.offsets = offsets  # (N + 1,) int64

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        """Packs an iterable, which is read once."""
        blob, offsets = bytearray(), array("q", [0])
        for name in names:
            blob += name
            offsets.append(len(blob))
        return cls(bytes(blob), np.array(offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.offsets[index] : self.offsets[index + 1]]


def content_hash(content: bytes) -> int:
    """Returns a file's 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _content_fingerprint(content: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> str:
    """Returns a hash of images in their order: of their files' hashes, (N,) uint64, and their labels."""
    return fingerprint(("images", content.tobytes(), np.asarray(labels, np.int64).tobytes(), *classes))


class FileSource:
    """What sources share that hand out a picture file's bytes: `read_bytes` is theirs, decoding is here."""

    name: str
    licence: str = ""
    classes: list[str]
    labels: np.ndarray
    facts: list[str]
    """What was passed over, in words."""
    span: tuple[float, float] | None = None
    """Values of grey deeper than 8 bits that become black and white; each picture's own where None."""

    def __len__(self) -> int:
        return len(self.labels)

    def read_bytes(self, index: int) -> bytes:
        """Returns the picture file as it lies."""
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Returns what an error message calls the image."""
        raise NotImplementedError

    def stamps(self) -> np.ndarray:
        """Returns 64 bits an image that change where its file does, by path, size and time, (N,) uint64."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Returns a hash of contents and labels; reads every file."""
        content = np.fromiter((content_hash(self.read_bytes(k)) for k in range(len(self))), np.uint64)
        return _content_fingerprint(content, self.labels, self.classes)

    def _refuse_replaced(self, index: int, descriptor: int, size: int, changed: int) -> None:
        """Raises a UserError where an open file has another size or time, in ns, than when it was listed."""
        now = os.fstat(descriptor)
        if now.st_size != size or now.st_mtime_ns // 10**9 != changed // 10**9:  # some disks round
            raise UserError(
                f"{self.describe(index)} has been replaced or written to since it was listed; let that end, "
                "then run the same command again, which looks at the images anew"
            )

    def open(self, index: int) -> Picture:
        """Returns the image, to be decoded."""
        return Picture(self.read_bytes(index), self.span)

    def read(self, index: int) -> Image.Image:
        """Returns the image as a viewer shows it (`to_rgb`)."""
        return self.open(index).image()


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
        self.unreadable = 0
        self.facts: list[str] = []
        """What is to be said about them, where all were looked at."""
        self.content: np.ndarray | None = None
        """(N,) uint64, a hash of each image's file, where all were looked at."""
        self.group: np.ndarray | None = None
        """(N,) uint64, the same for near-duplicates, where all were looked at."""
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

    @property
    def held_out(self) -> np.ndarray | None:
        """(N,) bool, which images the underlying source holds out itself; None where it holds out none."""
        own = getattr(self.source, "held_out", None)
        return None if own is None else own[self.indices]

    def fingerprint(self) -> str:
        """Returns a hash of contents and labels, without another look where all were looked at."""
        if self.content is not None:
            span = getattr(root(self), "span", None)
            shades = [] if span is None else [f"span {span}"]  # which the pixels follow from, too
            return _content_fingerprint(self.content, self.labels, [*self.classes, *shades])
        parts = (self.source.fingerprint(), self.indices.tobytes(), self.labels.tobytes(), *self.classes)
        return fingerprint(parts)


def root(source: ImageSource) -> Any:
    """Returns the source that subsets take images of."""
    return root(source.source) if isinstance(source, Subset) else source


def origin(source: ImageSource, index: int) -> tuple[Any, int]:
    """Returns the source that an image was taken from, whatever subsets lie between, and its index there."""
    while isinstance(source, Subset):
        source, index = source.source, int(source.indices[index])
    return source, index


def open_image(source: ImageSource, index: int) -> Picture:
    """Returns an image of a source; a file is decoded once its pixels are asked for."""
    source, index = origin(source, index)  # other labels: the file is the same
    return source.open(index) if isinstance(source, FileSource) else Picture(source.read(index))


def with_classes(source: ImageSource, classes: Sequence[str], *, strict: bool = True) -> ImageSource:
    """Returns the source with labels that index `classes`.

    Raises:
        UserError: with `strict`, the source has a class that `classes` lacks; else its images get label -1.
    """
    classes = [nfc(name) for name in classes]
    if source.classes == classes:
        return source
    position = {name: k for k, name in enumerate(classes)}
    borne = set(np.unique(np.asarray(source.labels)).tolist())  # a number may be a class of no image
    unknown = [name for k, name in enumerate(source.classes) if k in borne and name not in position]
    if strict and unknown:
        raise UserError(
            f"data.val has the class {unknown[0]!r}, which the training images lack"
            f"{nearest(unknown[0], classes)}; expected some of: {shortened(classes)}. Rename it, "
            "or remove its images"
        )
    table = np.array([*(position.get(name, -1) for name in source.classes), -1], dtype=np.int64)
    return Subset(
        source, np.arange(len(source)), labels=table[source.labels], classes=classes
    )  # label -1 → table[-1]


def is_pattern(name: str) -> bool:
    """Returns whether a name has braces or wildcards that stand for several files."""
    return any(mark in name for mark in "{*?[") and not exists(name)


def exists(name: Path | str) -> bool:
    """Returns whether there is something of a name; False for a longer one than systems take."""
    return os.path.exists(name)  # noqa: PTH110, Path.exists raises for a name that is too long


def missing_path(name: str) -> UserError:
    """Returns the error for a source that does not exist, with the nearest names that do."""
    path = Path(name).expanduser()
    if not exists(path) and os.path.islink(path):  # noqa: PTH114, Path.is_symlink raises for long names
        return UserError(f"{path} is a link to {path.readlink()}, which does not exist; mend or remove it")
    here = exists(path.parent) and path.parent.is_dir()
    siblings = sorted(entry.name for entry in path.parent.iterdir()) if here else []
    hint = nearest(path.name, siblings) or nearest(name, SOURCES)
    if path.parent.name in PREPARED:
        hint = f"; make it with `ldmae prepare {PREPARED[path.parent.name].format(path.parent)}`"
    seen = "" if path.is_absolute() else f", seen from {Path.cwd()}"
    return UserError(
        f"there is no folder or file {name[:1000]}{seen}{hint}; expected a folder of images, tar shards, "
        f"parquet files, OWNER/NAME of a Hugging Face dataset, or a built-in set: {', '.join(SOURCES)}"
    )


def spread(source: ImageSource, at_most: int) -> ImageSource:
    """Returns evenly spread images of a source, which as a rule is sorted by class."""
    count = min(at_most, len(source))
    return Subset(source, np.arange(count) * len(source) // max(1, count))
