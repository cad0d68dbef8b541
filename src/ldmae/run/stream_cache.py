"""A streamed data set in a run: what is kept of it on disk, so that the rest can be measured as any other."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from ldmae.config import plain
from ldmae.config.data import DataConfig
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.core.files import atomic_folder, fingerprint, stamp
from ldmae.core.provenance import Record, read_record, write_record
from ldmae.images.base import Subset
from ldmae.images.facts import label_facts
from ldmae.images.sources import FolderSource
from ldmae.images.streams import StreamSource, local_files, open_stream

_KEPT = {"train": 2000, "held_out": 500}
"""Images of each part that are kept on disk, for measurements and reports."""


_RECORD = "kept_of.json"


def open_streamed(config: DataConfig, cache_dir: Path) -> tuple[StreamSource, ImageSource, ImageSource]:
    """Opens a stream, and keeps the first images of both of its parts in `cache_dir`, once.

    Returns:
        The stream that training reads; the kept training images; the kept held-out images.

    Raises:
        UserError: the stream has no image in one of its parts, or those that are kept are of another one.
    """
    _check_kept(config, cache_dir)
    stream = open_stream(config)
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_record(cache_dir / _RECORD, _made_of(config))
    return stream, _kept(stream, "train", cache_dir), _kept(stream, "held_out", cache_dir)


def _check_kept(config: DataConfig, cache_dir: Path) -> None:
    """Raises where what is kept was taken from another stream."""
    before = read_record(cache_dir / _RECORD)
    if before is None or not any((cache_dir / f"kept_{part}").exists() for part in _KEPT):
        return  # a stream that gave nothing keeps no other away
    now = _made_of(config)
    if changes := before.changes(now.settings, now.inputs, plain(DataConfig())):
        kept = ", ".join(str(cache_dir / f"kept_{part}") for part in _KEPT)
        raise UserError(
            f"the images that this run keeps are of another stream: {'; '.join(changes)}. Run the command "
            "with the old settings, or name another folder with --out; to use this one, delete "
            f"{cache_dir / _RECORD}, {kept}"
        )


def _made_of(config: DataConfig) -> Record:
    """Returns what tells one stream from another: settings, and the files of one that is here."""
    settings = {
        name: value for name, value in plain(config).items() if name not in ("max_unreadable", "stream")
    }
    files = fingerprint(f"{stamp(path):016x}" for path in local_files(config))
    return Record(settings, {"files": files}, status="done")


def _kept(stream: StreamSource, part: str, cache_dir: Path) -> ImageSource:
    folder = cache_dir / f"kept_{part}"
    if not folder.exists():
        images = itertools.islice(stream.iterate(0, 0, part=part), _KEPT[part])
        with atomic_folder(folder) as temporary:
            count = 0
            for count, (image, label) in enumerate(images, start=1):
                (temporary / f"{label:06d}").mkdir(exist_ok=True)
                image.save(temporary / f"{label:06d}" / f"{count:06d}.png")
            if not count:
                what = part.replace("_", "-")
                raise UserError(f"{stream.name} has no {what} image; check it, data.val and data.image_part")
    source = FolderSource(folder)
    labels = np.array([int(name) for name in source.classes], dtype=np.int64)[source.labels]
    kept = Subset(source, np.arange(len(source)), labels=labels, classes=stream.classes)
    kept.name = stream.name
    kept.facts = [f"of those kept: {fact}" for fact in label_facts(labels, stream.classes, "image")]
    return kept
