"""What a folder holds: pictures, tar shards or a table, by what is in it and not by what is listed first."""

import os
from collections import Counter
from pathlib import Path

from ldmae.core.errors import UserError, counted
from ldmae.core.files import EXTENSIONS, is_junk
from ldmae.images.base import SPLIT_NAMES
from ldmae.images.shards import is_tar
from ldmae.images.tables import TABLE_FILES, holds_images


def kind_of_folder(folder: Path) -> str:
    """Returns `folder`, `shards` or `table`.

    Pictures and shards win over a table that has no images. Subfolders count where the folder itself holds
    none of the three.

    Raises:
        UserError: it holds several of them, or its shards are in subfolders.
    """
    found, tables = _count(folder)
    inside: dict[str, Counter[str]] = {}
    if not found["images"] and not found["shards"]:
        for entry in _folders(folder):
            inside[entry], more = _count(folder / entry, first=True)
            tables += more
    below = sum(inside.values(), Counter())
    if found["images"] and found["shards"]:
        images, shards = counted(found["images"], "image"), counted(found["shards"], "tar shard")
        raise UserError(
            f"{folder} holds {images} and {shards}; expected one or the other: name the shards, as with "
            f"data.source='{folder}/*.tar', or move them away"
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
        raise _shards_below(folder, [name for name, counts in inside.items() if counts["shards"]])
    return "table" if tables and (pictured or not below["images"]) else "folder"


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_junk(entry.name))


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
                elif is_tar(name):
                    found["shards"] += 1
                elif name.endswith(TABLE_FILES):
                    found["tables"] += 1
                    tables.append(Path(entry.path))
    except OSError:  # whoever opens it says so
        pass
    return found, sorted(tables)


def _shards_below(folder: Path, names: list[str]) -> UserError:
    train = next((name for name in names if name.lower().startswith("train")), None)
    if train is None or not {name.lower() for name in names} <= SPLIT_NAMES:
        return UserError(
            f"the tar shards in {folder} are in its subfolders ({', '.join(names[:6])}); name them, as with "
            f"data.source='{folder}/*/*.tar'"
        )
    others = [f" data.val={folder / name}" for name in names if name != train]
    return UserError(
        f"the subfolders of {folder} look like splits ({', '.join(names)}): use "
        f"data.source={folder / train}{''.join(others[:1])}"
    )
