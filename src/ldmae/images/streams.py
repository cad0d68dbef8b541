"""Images that can only be read front to back: remote tar shards, streamed datasets."""

import bz2
import functools
import http.client
import io
import itertools
import logging
import lzma
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from torch.utils.data import get_worker_info

from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError, nearest
from ldmae.core.random import key_seed
from ldmae.images.base import content_hash, exists, is_pattern, nfc, plain_label
from ldmae.images.decoding import Picture
from ldmae.images.index import is_held_out
from ldmae.images.shards import expand_braces, find_shards
from ldmae.images.sources import checked_kind, held_out_share, is_address, kind_of
from ldmae.images.tables import load_table, picture_bytes, table_files
from ldmae.images.tar import Part, image_part, label_of, members, part_name, runs

logger = logging.getLogger(__name__)

_BUFFER = 1000
"""Items that are held to be shuffled."""
_TIMEOUT_SECONDS = 60.0
_ATTEMPTS = 3
"""How often in a row a shard is opened again after its connection broke."""
_WAIT_SECONDS = 0.5
"""Pause before the first such attempt; the next ones wait longer."""


class _Item(NamedTuple):
    """A picture file as it came, undecoded (a shuffle buffer of these is small)."""

    name: str
    content: bytes
    label: int | str | None
    folders: tuple[str, ...] = ()
    """It lies in these in its shard."""


class StreamSource:
    """Images without random access, in a seeded, buffered, only roughly shuffled order.

    What a run sees depends on how many processes and workers read; a resumed run continues with the next
    epoch's order. A warning says so once.

    Args:
        name: what to call it in reports.
        shards: what opens each shard.
        classes: class names; a stream's labels can't be collected beforehand. Empty: all images are one
            class.
        indexed: whether labels are indices of `classes`, as those of a dataset's ClassLabel are.
        share: share of the images held out, by hash of the content.
        max_unreadable: share of unreadable images that is accepted.
    """

    def __init__(
        self,
        name: str,
        shards: "Sequence[_Shard]",
        *,
        classes: list[str] | None,
        indexed: bool,
        share: float,
        max_unreadable: float,
    ):
        self.name, self.licence = name, ""
        self.classes = [nfc(label) for label in classes] if classes else [name]
        self._one_class, self._told, self._indexed = not classes, False, indexed
        self._folder: str | None = None
        self._shards = shards
        self._share, self._max_unreadable = share, max_unreadable
        logger.warning(
            "%s is streamed: an interrupted run resumes, but not with the images that would have come next; "
            "for exact resume, download it and give the local path",
            name,
        )

    def iterate(
        self,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        *,
        part: str = "train",
        take: Callable[[Picture], Any] = Picture.image,
    ) -> Iterator[tuple[Any, int]]:
        """Yields (image, label) of this process's, and this data loader worker's, share of one epoch.

        Args:
            seed: key of the order, with `epoch`.
            epoch: another epoch, another order.
            rank: this process among `world`.
            world: number of processes.
            part: `train`, `held_out`, or `all`. What is held out is decided by the content's hash, so the
                parts are disjoint in every epoch. Near-duplicates are not looked for.
            take: makes what is yielded of a picture; the whole RGB image if not given.

        Raises:
            UserError: too many unreadable images, a label without a class, an address that does not
                answer.
        """
        assert part in ("train", "held_out", "all"), part
        worker = get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        slot = rank * workers + (0 if worker is None else worker.id)
        rng = np.random.default_rng(key_seed(seed, "stream", epoch))  # the same shard order everywhere
        order = rng.permutation(len(self._shards))
        items = self._items(order, slot, world * workers)
        buffered = _shuffled(items, np.random.default_rng(key_seed(seed, "buffer", epoch, slot)))
        read = unreadable = 0
        for item in buffered:
            if part != "all" and is_held_out(content_hash(item.content), self._share) != (part == "held_out"):
                continue
            read += 1
            try:
                image = take(Picture(item.content))
            except Exception as error:  # decoders raise whatever they like on broken files
                unreadable += 1
                logger.warning("skipped the unreadable image %s: %s", item.name, error)
                if unreadable > self._max_unreadable * max(read, 1000):
                    raise UserError(
                        f"{unreadable} of the first {read} images of {self.name} are unreadable (the "
                        f"last: {item.name}: "
                        f"{error}); at most data.max_unreadable={self._max_unreadable} is allowed; raise "
                        f"it to continue"
                    ) from error
                continue
            yield image, self._label(item)

    def _items(self, order: np.ndarray, slot: int, slots: int) -> Iterator[_Item]:
        if len(order) >= slots:
            for k in order[slot::slots]:
                yield from self._shards[k].items()
        else:  # fewer shards than readers: each reads all and keeps its share, or some would have nothing
            everything = itertools.chain.from_iterable(self._shards[k].items() for k in order)
            yield from itertools.islice(everything, slot, None, slots)

    def _label(self, item: _Item) -> int:
        if self._one_class:
            folder = item.folders[-1] if item.folders else None
            self._folder = self._folder or folder
            label = folder if item.label is None and folder != self._folder else item.label
            if label is not None and not self._told:
                self._told = True
                logger.warning(
                    "%s: labels are ignored (%s has %r); to use them, name their classes in data.classes",
                    self.name,
                    item.name,
                    label,
                )
            return 0
        if self._indexed and isinstance(item.label, int):
            return item.label if item.label in range(len(self.classes)) else -1
        if item.label is None:  # a folder may be named after its class
            folders = (nfc(folder) for folder in reversed(item.folders))
            return next((self.classes.index(folder) for folder in folders if folder in self.classes), -1)
        if str(item.label) in self.classes:  # a class may be called 1, and not be the second
            return self.classes.index(str(item.label))
        known = 0 if any(name.isdigit() for name in self.classes) else len(self.classes)
        if isinstance(item.label, int) and (item.label < 0 or item.label < known):
            return max(item.label, -1)
        raise UserError(
            f"{item.name} has the label {item.label!r}, for which there is no "
            f"class{nearest(str(item.label), self.classes)}; name all classes in data.classes (got "
            f"{len(self.classes)}), in the order of their numbers"
        )


class _Shard:
    """One shard of a stream; after a broken connection it is opened again, and what was read is skipped."""

    name: str
    remote = True

    def _read(self) -> Iterable[_Item]:
        raise NotImplementedError

    def items(self) -> Iterator[_Item]:
        """Yields the shard's items.

        Raises:
            UserError: the shard does not answer, or is not a tar file.
        """
        read = failures = 0
        while True:
            try:
                for item in itertools.islice(self._read(), read, None):
                    read, failures = read + 1, 0
                    yield item
                return
            except (OSError, *_DAMAGE, http.client.HTTPException) as error:
                failures += 1
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
                damaged = not self.remote and getattr(error, "errno", None) is None
                if refused or damaged or failures >= _ATTEMPTS:
                    check = "the address and the network" if self.remote else "whether the file is whole"
                    raise UserError(
                        f"cannot read {self.name} after {read} images: {error}; check {check}, or pack it "
                        "again, then run the same command again"
                    ) from error
                logger.warning("%s broke off after %d images (%s); opening it again", self.name, read, error)
                time.sleep(_WAIT_SECONDS * failures)


def _shuffled(items: Iterator[_Item], rng: np.random.Generator) -> Iterator[_Item]:
    buffer: list[_Item] = []
    for item in items:
        if len(buffer) < _BUFFER:
            buffer.append(item)
            continue
        k = int(rng.integers(_BUFFER))
        yield buffer[k]
        buffer[k] = item
    for k in rng.permutation(len(buffer)):
        yield buffer[k]


class _WholeResponse(io.RawIOBase):
    """An HTTP response that raises where the connection ends early; plain ones end as if all had come."""

    def __init__(self, response: Any):
        self._response = response

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._response.readinto(buffer)
        if size == 0 and (missing := getattr(self._response, "length", None)):
            raise OSError(f"the connection closed with {missing} bytes missing")
        return size

    def close(self) -> None:
        self._response.close()
        super().close()


_PACKED: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": functools.partial(zlib.decompressobj, 31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


class _Unpacked:
    """A packed file, of one archive or several that were joined.

    tarfile's own unpacking ends where the first does; that of `bz2` and `lzma` where a later one is damaged.
    """

    def __init__(self, file: IO[bytes], start: Callable[[], Any]):
        self._pieces, self._unpacked = self._unpack(file, start), bytearray()

    def read(self, size: int) -> bytes:
        while len(self._unpacked) < size and (piece := next(self._pieces, None)) is not None:
            self._unpacked += piece
        content = bytes(self._unpacked[:size])
        del self._unpacked[:size]
        return content

    @staticmethod
    def _unpack(file: IO[bytes], start: Callable[[], Any]) -> Iterator[bytes]:
        part = start()
        while packed := file.read(2**16):
            while packed and (packed := packed.lstrip(b"\0") if part.eof else packed):  # zeros fill blocks
                part = start() if part.eof else part
                yield part.decompress(packed)
                packed = part.unused_data if part.eof else b""
        if not part.eof:
            raise EOFError("the packed data breaks off")


class _TarShard(_Shard):
    """A tar shard, remote or local, read front to back."""

    def __init__(self, address: str, wanted: str | None):
        self.name, self._wanted, self._warned = address, wanted, False
        self.remote = is_address(address)

    def _open(self) -> Any:
        if not self.remote:
            return Path(self.name).open("rb")
        request = urllib.request.Request(self.name, headers={"User-Agent": "ldmae"})
        return io.BufferedReader(_WholeResponse(urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)))

    def _read(self) -> Iterator[_Item]:
        with self._open() as file:
            # a stream can't go back to a sample's files once it has passed them: they are read while grouping
            for sample in runs(_read_along(file), self._wanted):
                extension = image_part(sample, self._wanted, self.name)
                label, labels = label_of(sample, lambda part: part.content)
                if extension is not None:
                    part = sample.parts[extension]
                    folders = tuple(part.name.split("/")[:-1])
                    yield _Item(f"{self.name}:{part.name}", part.content, label, folders)
                elif labels and not self._warned:
                    self._warned = True
                    logger.warning(
                        "%s: the label %s is not beside its image, and a stream cannot go back to it: "
                        "write shards in order, or read them without data.stream",
                        self.name,
                        sample.key,
                    )


def _read_along(file: Any) -> Iterator[Part]:
    packed = next((start for magic, start in _PACKED.items() if file.peek(6).startswith(magic)), None)
    for tar, member, name in members(_Unpacked(file, packed) if packed else file, "r|"):
        if member.isfile() and name is not None:
            content = tar.extractfile(member)
            assert content is not None
            yield Part(name, 0, member.size, content.read())


class _TableShard(_Shard):
    """One shard of a streamed Hugging Face dataset."""

    def __init__(self, source: str, dataset: Any, index: int, image_column: str, label_column: str | None):
        local = is_pattern(source) or exists(Path(source).expanduser())
        self.name, self.remote = f"{source}, shard {index}", not local
        self._dataset, self._index = dataset, index
        self._image_column, self._label_column = image_column, label_column

    def _read(self) -> Iterator[_Item]:
        part = self._dataset.shard(num_shards=self._dataset.num_shards, index=self._index)
        batches = part.iter(batch_size=1)  # unlike iterating over it, this does not split by worker
        for k, row in enumerate(batches):
            value = row[self._image_column][0] or {}
            path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else None
            if "://" in str(path)[:20]:
                import fsspec

                with fsspec.open(path, "rb") as file:
                    content = file.read()  # type: ignore[union-attr]
            else:
                try:
                    content = picture_bytes(value)
                except OSError:  # counted as unreadable
                    content = b""
            label = plain_label(row[self._label_column][0]) if self._label_column else None
            yield _Item(f"shard {self._index}, row {k}", content, label)


def local_files(config: DataConfig) -> list[Path]:
    """Returns the files on this machine that a stream is read from; none for a remote one."""
    if is_address(config.source):
        return []
    shards = kind_of(config.source) == "shards"
    return find_shards(config.source, True) if shards else table_files(config.source)


def open_stream(config: DataConfig) -> StreamSource:
    """Opens what `config` names as a stream: tar shards by address or path, or a Hugging Face dataset.

    Raises:
        UserError: neither of these; `data.val` is no share.
    """
    share = held_out_share(config.val)
    if share is None:
        raise UserError(
            f"a stream's held-out images are a share of it: expected data.val in (0, 1), got {config.val!r}"
        )
    shares = {"share": share, "max_unreadable": config.max_unreadable}
    name, kind = config.source, checked_kind(config)
    if kind in ("set", "code"):
        what = "comes with the package" if kind == "set" else "is a source of your own"
        raise UserError(f"data={name} {what} and is not streamed; omit data.stream")
    if kind == "shards":
        addresses = (
            expand_braces(name) if is_address(name) else [str(path) for path in find_shards(name, True)]
        )
        shards = [_TarShard(address, part_name(config.image_part)) for address in addresses]
        stem = Path(addresses[0]).stem
        return StreamSource(stem, shards, classes=config.classes, indexed=False, **shares)
    dataset, image_column, label_column, classes = load_table(
        name, config.split, config.image_column, config.label_column, streaming=True
    )
    if config.classes is not None and classes is not None:
        raise UserError("data.classes cannot re-order the classes of a streamed dataset; leave it out")
    shards = [_TableShard(name, dataset, k, image_column, label_column) for k in range(dataset.num_shards)]
    indexed = classes is not None
    return StreamSource(
        name.split("/")[-1], shards, classes=config.classes or classes, indexed=indexed, **shares
    )
