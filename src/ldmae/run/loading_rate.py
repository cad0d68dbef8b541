"""What a plan asks of the loading of images, what this machine loads, and the processes to set for it."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ldmae.config import Config
from ldmae.config.data import DataConfig
from ldmae.config.registry import SOURCES
from ldmae.contracts import ImageSource
from ldmae.core.device import pick_device, resolve_precision
from ldmae.core.errors import UserError, check_enough, reason_of
from ldmae.core.files import EXTENSIONS
from ldmae.core.imports import is_import_path
from ldmae.images.base import FileSource, is_pattern
from ldmae.images.dataset import ImageDataset
from ldmae.images.shards import find_shards
from ldmae.images.sources import held_out_share, is_stream, kind_of, open_source
from ldmae.images.tables import load_table, picture_bytes
from ldmae.run.trainings import autoencoder_trainings

_SECONDS = 2.0
"""How long loading is timed, over all stages."""
_SAMPLE = 1000
"""Images at most that are timed."""
_DAY = 86400


class _Sample(FileSource):
    """A few image files of a data set, from its beginning: a large one is not listed whole to be timed."""

    def __init__(self, name: str, files: list[Path | bytes]) -> None:
        self.name, self.files = name, files
        self.classes, self.labels = [name], np.zeros(len(files), np.int64)

    def read_bytes(self, index: int) -> bytes:
        """Returns a file's bytes, which are held where the data set keeps many in one file."""
        file = self.files[index]
        return file if isinstance(file, bytes) else file.read_bytes()

    def describe(self, index: int) -> str:
        """Returns what an error message calls the image."""
        file = self.files[index]
        return f"{self.name}: image {index}" if isinstance(file, bytes) else str(file)


def _sample(config: Config) -> ImageSource:
    """Returns some of the training images.

    Raises:
        UserError: they cannot be opened.
    """
    data = config.data
    if data.source in SOURCES or kind_of(data.source) == "code":
        return open_source(data)
    kinds = {"folder": _in_folder, "shards": _in_shards, "table": _in_table}
    files = list(itertools.islice(kinds[kind_of(data.source)](data), _SAMPLE))
    if not files:
        raise UserError(f"there are no images in {data.source}")
    return _Sample(data.source, files)


def _is_here(data: DataConfig) -> bool:
    """Says whether images are on this machine."""
    path = Path(data.source).expanduser()
    if data.source in SOURCES or path.exists():
        return True
    in_folder = path.parent.is_dir() and is_pattern(data.source)
    return not is_stream(data) and (in_folder or is_import_path(data.source))


def _refuse_missing(config: Config) -> None:
    """Raises a UserError where other images that the run will read are not there."""
    data = config.data
    held_out = None if data.val.startswith("split:") or held_out_share(data.val) else data.val
    for name in filter(None, (held_out, data.against if config.autoencoder.kind == "decoder" else None)):
        kind_of(name)


def _in_folder(data: DataConfig) -> Iterator[Path]:
    for parent, _, names in os.walk(Path(data.source).expanduser(), followlinks=True):
        yield from (Path(parent, name) for name in names if name.lower().endswith(EXTENSIONS))


def _in_shards(data: DataConfig) -> Iterator[bytes]:
    for path in find_shards(data.source):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.lower().endswith(EXTENSIONS) and (file := tar.extractfile(member)):
                    yield file.read()


def _in_table(data: DataConfig) -> Iterator[bytes]:
    columns = (data.image_column, data.label_column)
    rows, column, *_ = load_table(data.source, data.split, *columns, streaming=True)
    for row in rows:
        with contextlib.suppress(OSError):  # no image in it
            yield picture_bytes(row[column])


def _images_per_second(dataset: ImageDataset, seconds: float) -> tuple[float, int]:
    """Times one process; returns its images a second, and how many images it loaded."""
    order, began = np.random.default_rng(0).permutation(len(dataset)), time.perf_counter()
    count = tried = 0
    while (spent := time.perf_counter() - began) < seconds:
        with contextlib.suppress(UserError):  # what can't be read a run leaves out, and says so
            dataset[(0, int(order[tried % len(order)]))]
            count += 1
        tried += 1
    check_enough("timing", 1, count, "readable image", "ldmae run names those that it can't read")
    return count / spent, count


def _operations_per_second(config: Config) -> float:
    """Returns how fast this device multiplies matrices, a multiply-add counting 2: no training is faster."""
    device = pick_device(config.device)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = kind.get(resolve_precision(config.mixed_precision, config.device), torch.float32)
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class Reading(NamedTuple):
    """A training on images: how many it reads, and its operations in all."""

    stage: str
    images: int
    flops: float


def describe_loading(config: Config, trainings: list[Reading]) -> list[str]:
    """Returns what each training on images needs, what this machine loads, and the workers to set.

    What a device can take at most follows from the stage's operations and the device's fastest product; what
    a day would take is stated too, for a plan that is made for another machine.
    """
    if not trainings:
        return []
    pixels = {name: training.image_size for name, training in autoencoder_trainings(config).items()}
    lines = [
        f"{name} reads {images:,} images of {pixels[name]} px: {_rate(images / _DAY)} images/s "
        "to finish in a day."
        for name, images, _ in trainings
        if images >= _DAY  # of a small one it says nothing
    ]
    if not _is_here(config.data):  # nor need held-out images be: the plan may be for another machine
        where = config.data.source or "data.source"
        return [*lines, f"Loading was not timed: the images of {where} are not on this machine."]
    try:
        source = _sample(config)
        _refuse_missing(config)
    except (UserError, OSError, tarfile.TarError) as error:
        return [*lines, f"The run would stop: {reason_of(error)}."]
    if config.data.source in SOURCES:
        lines += [f"{source.name}: {fact}." for fact in getattr(source, "facts", [])]
    threads = torch.get_num_threads()
    try:
        fastest = _operations_per_second(config)
        torch.set_num_threads(1)  # as a loading process
        for training in trainings:
            lines.append(_describe_training(config, training, source, fastest, _SECONDS / len(trainings)))
    except UserError as error:
        lines.append(f"Loading was not timed: {reason_of(error)}.")
    finally:
        torch.set_num_threads(threads)
    return lines


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _describe_training(
    config: Config, training: Reading, source: ImageSource, fastest: float, seconds: float
) -> str:
    name, images, flops = training
    stage = autoencoder_trainings(config)[name]
    needed, cores = fastest * images / flops, os.cpu_count() or 1
    dataset = ImageDataset(source, stage.image_size, config.seed, stage.augment)
    rate, count = _images_per_second(dataset, seconds)
    workers = max(1, min(cores, math.ceil(needed / rate)))
    enough = "" if workers * rate >= needed else f"; the device waits for data: all {cores} cores load less"
    own = config.autoencoder.own_kind is not None
    setting = "its num_workers to " if own else f"{name}.training.num_workers="
    advice = f"set {setting}{workers}{enough}"
    if stage.config is not None and stage.config.num_workers <= workers:
        if rate >= 2 * needed:
            advice = "loading does not limit it"
        elif stage.config.num_workers == workers and not enough:
            advice = f"num_workers={workers}, as set, is enough"
    return (
        f"{name}: this device takes at most {needed:,.0f} images/s ({fastest / 1e12:.2f} TFLOP/s in a matrix "
        f"product), one process loads {rate:,.0f} images/s (timed on {count:,} images): {advice}."
    )
