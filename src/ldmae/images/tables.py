"""Hugging Face datasets: from the Hub, or local parquet and arrow files; memory-mapped, read by index."""

# N rows of the table

import base64
import glob
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError, check_known, counted, reason_of, shortened
from ldmae.core.files import is_junk, stamp, stamp_of
from ldmae.images.base import (
    LABEL_NAMES,
    SPLIT_NAMES,
    FileSource,
    is_pattern,
    nfc,
    number_labels,
    plain_label,
)
from ldmae.images.cache import numbered
from ldmae.images.shards import match_files

TABLE_FILES = (".parquet", ".arrow")
"""How local files end, in whatever case."""
_IMAGE_NAMES = ("image", "img", "jpg", "png", "picture")


class TableSource(FileSource):
    """A table with a column of images, on the Hub or local; nothing but its labels is held in memory.

    Args:
        name: OWNER/NAME on the Hub, a folder or file of parquet or arrow data, or a pattern of such files.
        split: which split of it.
        image_column: the column of images; found by type (Image, or bytes and path), then by name.
        label_column: the column of labels; found by type (ClassLabel), then by name. Without one, all are
            one class.

    Parquet is unpacked to arrow files in the cache of `datasets` (HF_DATASETS_CACHE), once for all runs; they
    are then memory-mapped.

    Raises:
        UserError: no such dataset, split or column, or it cannot be fetched.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str = "train",
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        self.name = Path(name).stem if Path(name).exists() or is_pattern(name) else name.split("/")[-1]
        table, self._image_column, label_column, classes = load_table(
            name, split, image_column, label_column, streaming=False
        )
        empty = [Path(file).name for file in _data_files(name) if not _rows(file)]
        if not len(table):
            raise UserError(f"the split {split!r} of {name} has no rows; check data.source and data.split")
        self._location = f"{name} ({split})"
        self.licence = table.info.license or ""
        self.labels, self.classes, lost = _labels(table, label_column, classes, self.name)
        self.facts = _not_taken(table.features, self._image_column) if label_column is None else []
        self.facts += [f"no rows in {counted(len(empty), 'file')}: {shortened(empty, 3)}"] if empty else []
        if lost:
            values = f"{counted(lost, 'value')} of the column {label_column!r}"
            self.facts.append(f"{values} ignored: neither a whole number nor a name")
        self._table = table.select_columns([self._image_column])
        files = [str(entry["filename"]) for entry in table.cache_files] or table_files(name)
        self._stamp = stamp_of(split, self._image_column, *(stamp(file) for file in files))
        self.place = "\n".join([str(Path(name).expanduser().resolve()), split, self._image_column])

    def read_bytes(self, index: int) -> bytes:
        """Returns the picture file as it lies in the table, or under the path that the table names."""
        return picture_bytes(self._table[index][self._image_column])

    def describe(self, index: int) -> str:
        """Returns the dataset's name and the row's number."""
        return f"{self._location} row {index}"

    def stamps(self) -> np.ndarray:
        """Returns 64 bits a row, of its files (`stamp`) and its number, (N,) uint64."""
        stamps = numbered(self._stamp, np.arange(len(self)))
        column = self._table.with_format("arrow")[:].column(self._image_column)
        inside, paths = (column.flatten()[column.type.get_field_index(name)] for name in ("bytes", "path"))
        for k in np.flatnonzero(inside.is_null().to_numpy()).tolist():  # these name a file
            path = paths[k].as_py()
            if path is not None and _is_file(path):
                stamps[k] = stamp_of(int(stamps[k]), stamp(path))
        return stamps


def picture_bytes(value: Any) -> bytes:
    """Returns the picture file of a cell: its bytes, base64 text, or the file that it names.

    Raises:
        OSError: there is none.
    """
    if isinstance(value, str):
        value = {"bytes": None, "path": value}
    if not value or (value["bytes"] is None and not value["path"]):
        raise OSError("the row has no image")
    if value["bytes"] is not None:
        return value["bytes"]
    text = value["path"]
    if not _is_file(text):
        try:
            return base64.b64decode(
                text.rpartition(",")[2] if text.startswith("data:") else text, validate=True
            )
        except ValueError as error:
            raise OSError(f"neither a file nor base64: {text[:60]}") from error
    return Path(text).read_bytes()


def _is_file(text: str) -> bool:
    return len(text) <= 4096 and os.path.isfile(text)  # noqa: PTH113, Path.is_file raises for what is no path


def holds_images(path: Path) -> bool:
    """Returns whether a parquet file has a column that may hold images; any other table may have one."""
    if path.suffix.lower() != ".parquet":
        return True
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, ValueError):  # damaged: opening it says so
        return True
    kinds = [str(field.type) for field in schema]
    return any(kind.startswith(("binary", "large_binary", "struct<bytes")) for kind in kinds)


def table_files(name: str) -> list[Path]:
    """Returns the local files that a folder, file or pattern of a table names; none for one on the Hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in TABLE_FILES and f.is_file())
        return [file for file in files if not any(map(is_junk, file.relative_to(path).parts))]
    if is_pattern(name):
        return match_files(name)
    return [path] if path.is_file() else []


def _rows(file: str) -> int:
    """Returns how many rows a parquet file has; 1 for any other table.

    Raises:
        UserError: it is damaged.
    """
    if not file.lower().endswith(".parquet"):
        return 1
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(file).num_rows
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{file} is truncated or not a parquet file ({reason_of(error)}); fetch it again or remove it"
        ) from error


def _data_files(name: str) -> list[str]:
    """Returns the local files that are read as they lie; none where `datasets` is to find splits in them."""
    folder = Path(name).expanduser()
    if (folder / "README.md").is_file() or _is_saved(folder):
        return []
    files = [str(path) for path in table_files(name)]
    words = {word for file in files for word in re.split("[^a-z]+", file[len(str(folder)) :].lower())}
    return [] if folder.is_dir() and words & {*SPLIT_NAMES, "dev", "eval"} else files


def _is_saved(folder: Path) -> bool:
    """Says whether `Dataset.save_to_disk` made a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_table(
    name: str,
    split: str,
    image_column: str | None,
    label_column: str | None,
    *,
    streaming: bool,
) -> tuple[Any, str, str | None, list[str] | None]:
    """Opens a dataset and finds its columns; images come undecoded, as `{"bytes", "path"}`.

    Returns:
        The dataset, the image column, the label column or None, and the class names where the dataset
        knows them.

    Raises:
        UserError: no such dataset, split or column, or it cannot be fetched.
    """
    import datasets
    import pyarrow as pa

    try:
        table = _load(name, split, streaming)
    except UserError:
        raise
    except Exception as error:  # the Hub, the network, broken files: `datasets` lets each raise its own
        local = Path(name).expanduser().exists() or is_pattern(name)
        hub = "from the Hugging Face Hub (nor is there such a folder here)"
        where = "as a parquet or arrow dataset" if local else hub
        check = "the file" if local else "the network, and for private datasets `hf auth login`"
        reason = reason_of(error.__cause__ or error)  # datasets hides what is wrong with a file
        raise UserError(
            f"cannot open {name}, split {split!r}, {where}: {reason}; check data.source, data.split, {check}"
        ) from error
    features = table.features
    if features is None:
        table = table._resolve_features()
        features = table.features
    for wanted in filter(None, (image_column, label_column)):
        check_known("column", wanted, features, name)
    image_column = image_column or _find_image_column(name, features)
    label_column = label_column or _find_label_column(features)
    if image_column == label_column:
        raise UserError(
            f"{image_column!r} of {name} would be both its images and its labels; name the other column with "
            "data.image_column or data.label_column"
        )
    feature = features[label_column] if label_column else None
    classes = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    if feature is not None and classes is None and not _is_plain(feature):
        raise UserError(
            f"the label column {label_column!r} of {name} holds {str(feature)[:99]}; expected numbers or "
            "names"
        )
    try:
        table = table.cast_column(image_column, datasets.Image(decode=False))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"the column {image_column!r} of {name} holds {str(features[image_column])[:99]}; expected "
            "images: bytes, paths or base64 text; name another with data.image_column"
        ) from error
    return table, image_column, label_column, classes


def _load(name: str, split: str, streaming: bool) -> Any:
    import datasets.config

    options: dict[str, Any] = {"split": split, "streaming": streaming}
    if not streaming and (local := table_files(name)):
        # datasets tells rewritten files by their path and time of modification alone, which copying may keep
        place = f"ldmae-{stamp_of(*map(stamp, local)):016x}"
        options["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / place)
    folder = Path(name).expanduser()
    if files := _data_files(name):
        if all(file.lower().endswith(".arrow") for file in files) and not streaming:
            refuse_split(name, split)
            return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
        if not (files := [file for file in files if _rows(file)]):  # datasets fails on one without rows
            raise UserError(f"{name} has no rows; check data.source")
        kind = "parquet" if files[0].lower().endswith(".parquet") else "arrow"
        return datasets.load_dataset(kind, data_files={"train": [*map(glob.escape, files)]}, **options)
    if _is_saved(folder):
        table = datasets.load_from_disk(str(folder))  # by Dataset.save_to_disk; memory-mapped arrow
        if isinstance(table, datasets.DatasetDict):
            check_known("split", split, map(str, table), name)
            table = table[split]
        else:
            refuse_split(name, split)
        return table.to_iterable_dataset(num_shards=max(1, len(table.cache_files))) if streaming else table
    return datasets.load_dataset(str(folder) if folder.is_dir() else name, **options)


def refuse_split(name: str, split: str) -> None:
    """Raises a UserError for a split, other than the usual one, of what has none."""
    if split != DataConfig().split:
        raise UserError(
            f"{name} has no splits, but {split!r} was requested; omit data.split, and give held-out "
            "images by path or as a share, such as data.val=0.05"
        )


def _is_plain(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype.startswith(("int", "uint", "string", "large_string", "float", "double", "bool"))


def _not_taken(features: Any, image_column: str) -> list[str]:
    """Returns what is to be said where a table's column of labels was not found."""
    columns = [name for name in features if name != image_column]
    listed = shortened(
        [f"{name} ({str(getattr(features[name], 'dtype', 'list'))[:20]})" for name in columns], 6
    )
    return [f"no column of labels among {listed}: name one with data.label_column"] if columns else []


def _find_image_column(name: str, features: Any) -> str:
    import datasets

    def may_hold_images(feature: Any) -> bool:
        if isinstance(feature, datasets.Image):
            return True
        if isinstance(feature, dict):
            return "bytes" in feature and set(feature) <= {"bytes", "path"}
        return str(getattr(feature, "dtype", "")) in ("binary", "large_binary")

    candidates = [column for column, feature in features.items() if may_hold_images(feature)]
    typed = [column for column in candidates if isinstance(features[column], datasets.Image)]
    candidates = typed or candidates
    named = [column for column in candidates if column.lower() in _IMAGE_NAMES]
    if named or len(candidates) == 1:
        return (named or candidates)[0]
    named = [column for column in features if column.lower() in _IMAGE_NAMES]
    texts = [column for column in named if "string" in str(getattr(features[column], "dtype", ""))]
    if texts and not candidates:  # paths, or base64
        return texts[0]
    raise UserError(
        f"{'several columns' if candidates else 'no column'} of {name} may hold the images; its columns are "
        f"{', '.join(features)}: name one with data.image_column"
    )


def _find_label_column(features: Any) -> str | None:
    import datasets

    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    candidates = typed or [column for column, feature in features.items() if _is_plain(feature)]
    known = {column.lower(): column for column in reversed(candidates)}
    return next((known[name] for name in LABEL_NAMES if name in known), typed[0] if typed else None)


def _labels(
    table: Any, column: str | None, classes: list[str] | None, name: str
) -> tuple[np.ndarray, list[str], int]:
    """Returns labels (N,) int64, class names, and how many values are no label."""
    if column is None:
        return np.zeros(len(table), np.int64), [name], 0
    values = table.select_columns([column]).with_format("arrow")[:].column(column)
    if classes is not None:
        return values.fill_null(-1).to_numpy().astype(np.int64), [nfc(label) for label in classes], 0
    encoded = values.combine_chunks().dictionary_encode()  # one Python object a class, not one a row
    if hasattr(encoded, "combine_chunks"):
        encoded = encoded.combine_chunks()
    raw = [plain_label(value) for value in encoded.dictionary.to_pylist()]
    numbers, classes = number_labels(raw, name)
    positions = encoded.indices.fill_null(len(raw)).to_numpy(zero_copy_only=False).astype(np.int64)
    lost = np.array([*(label is None for label in raw), False])[positions]
    return (
        np.append(numbers, -1 if any(label is not None for label in raw) else 0)[positions],
        classes,
        int(lost.sum()),
    )
