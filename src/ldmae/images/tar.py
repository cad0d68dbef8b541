"""What is in a tar shard: samples of several files, their pictures and labels, and what is passed over."""

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ldmae.core.errors import UserError
from ldmae.core.files import EXTENSIONS, is_junk
from ldmae.images.base import LABEL_NAMES, plain_label
from ldmae.images.facts import Ignored

_EVERY = "all"
"""`data.image_part` of shards whose every picture is an image of its own, whatever dots are in its name."""

_MOST_ZEROS = 2**16 + tarfile.RECORDSIZE
"""That an archive may end with, in bytes: `tar` fills its last record, of 10 KiB unless told otherwise."""


def part_name(image_part: str | None) -> str | None:
    """Returns `data.image_part` as the extensions in a sample are written."""
    return None if image_part is None else image_part.lower().removeprefix(".")


class Part(NamedTuple):
    """A file in a tar shard."""

    name: str
    offset: int
    size: int
    content: bytes = b""
    """Of a shard that is read front to back."""


class _Sample(NamedTuple):
    """What a shard holds of one sample, told by the extensions after its key."""

    key: str
    parts: dict[str, Part]


def _split_key(name: str, wanted: str | None = None) -> tuple[str, str]:
    """Returns (key, extension) of a member: webdataset splits the base name at its first dot.

    With `wanted` "all" it is split at its last dot.
    """
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.rpartition(".") if wanted == _EVERY else base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def image_part(sample: _Sample, wanted: str | None, place: str) -> str | None:
    """Returns which of a sample's extensions is the picture: `png` rather than `mask.png`; None: it has none.

    `wanted` is `data.image_part`; a message calls the shard `place`.

    Raises:
        UserError: it has several, and `wanted` names none.
    """
    pictures = [part for part in sample.parts if f".{part}".endswith(EXTENSIONS)]
    if wanted not in (None, _EVERY):
        return next((part for part in pictures if part == wanted or part.rpartition(".")[0] == wanted), None)
    dots = min((part.count(".") for part in pictures), default=0)
    best = [part for part in pictures if part.count(".") == dots]
    if len(best) > 1:
        raise UserError(
            f"the sample {sample.key} of {place} holds {len(best)} images ({', '.join(best[:6])}); "
            f"expected one. Name the one to take, as with data.image_part={best[-1]}, or take each as one "
            f"of its own with data.image_part={_EVERY}"
        )
    return best[0] if best else None


def label_of(sample: _Sample, read: Callable[[Part], bytes]) -> tuple[int | str | None, list[str]]:
    """Returns a sample's label, None where it has none, and the extensions of the parts that may hold it."""
    parts = [part for part in sample.parts if part.rpartition(".")[2] in ("cls", "class", "label")]
    parts += [part for part in sample.parts if part.rpartition(".")[2] == "json"]  # may say more
    found = (_parse_label(part, read(sample.parts[part])) for part in parts)
    return next((label for label in found if label is not None), None), parts


def _parse_label(extension: str, content: bytes) -> int | str | None:
    """Returns the label in a sample's `.cls` (a number or a name) or `.json` (under `LABEL_NAMES`)."""
    if extension != "json":
        return plain_label(content[:1000].decode("utf-8-sig", "replace"))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return plain_label(value)
    found = {str(key).lower(): value[key] for key in value}
    labels = (plain_label(found[name]) for name in LABEL_NAMES if name in found)
    return next((label for label in labels if label is not None), None)


def runs(parts: Iterable[Part], wanted: str | None) -> Iterator[_Sample]:
    """Yields the samples of a shard that is read front to back: runs of files with the same key."""
    sample = None
    for part in parts:
        key, extension = _split_key(part.name, wanted)
        if sample is None or sample.key != key or extension in sample.parts:
            if sample is not None:
                yield sample
            sample = _Sample(key, {})
        sample.parts[extension] = part
    if sample is not None:
        yield sample


class _Picture(NamedTuple):
    """A picture in a shard, with its label if it has one."""

    part: Part
    label: int | str | None


def scan(path: Path, wanted: str | None, ignored: Ignored) -> Iterator[_Picture]:
    """Yields the pictures of an uncompressed shard in the order of their samples, whose files may be apart.

    `wanted` is `data.image_part`; what is passed over is added to `ignored`.

    Raises:
        UserError: the file is truncated or not a tar file, or a sample holds several pictures.
    """
    samples: dict[str, list[_Sample]] = {}
    try:
        with path.open("rb") as file:
            for part in _parts(file, ignored):
                key, extension = _split_key(part.name, wanted)
                same = samples.setdefault(key, [_Sample(key, {})])
                if extension in same[-1].parts:
                    same.append(_Sample(key, {}))
                same[-1].parts[extension] = part
            for sample in (sample for same in samples.values() for sample in same):
                yield from _picture(file, sample, image_part(sample, wanted, str(path)), ignored)
    except tarfile.TarError as error:
        raise UserError(
            f"the shard {path} is truncated or not a tar file ({error}); fetch it again or remove it"
        ) from error


def _picture(file: IO[bytes], sample: _Sample, chosen: str | None, ignored: Ignored) -> Iterator[_Picture]:
    def read(part: Part) -> bytes:
        file.seek(part.offset)
        return file.read(part.size)

    label, labels = label_of(sample, read)
    if chosen is not None:
        yield _Picture(sample.parts[chosen], label)
    for extension, part in sample.parts.items():
        if extension in labels and chosen is None:
            ignored.add(part.name, "labels without an image")
        elif extension in labels and label is None:
            ignored.add(part.name, f".{extension.rpartition('.')[2]} without a label")
        elif extension != chosen and extension not in labels:
            ignored.add(part.name)


def _clean_name(name: str) -> str | None:
    """Returns a member's name without `./`; None for what is hidden, or was left by a system."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if not parts or any(map(is_junk, parts)) else "/".join(parts)


class _StrictInfo(tarfile.TarInfo):
    """A header; with `ignore_zeros` alone, what is none would be passed over as zeros are."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().fromtarfile(tar)
        except tarfile.InvalidHeaderError as error:  # pyright: ignore[reportAttributeAccessIssue]
            raise tarfile.ReadError(f"no tar header: {error}") from error


def members(file: Any, mode: Any) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str | None]]:
    """Yields the members of a file's archives, several where `cat` joined them, and their clean names.

    Raises:
        tarfile.TarError: it is no archive, its end is missing, or far more zeros follow than mark an end.
    """
    end = 0
    with tarfile.open(fileobj=file, mode=mode, ignore_zeros=True, tarinfo=_StrictInfo) as tar:
        while (member := tar.next()) is not None:
            end = tar.offset  # type: ignore[attr-defined]  # where the next one begins
            yield tar, member, _clean_name(member.name)
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember every member
        # tarfile takes a file that breaks off for one that ends; but a whole one ends with blocks of zeros
        zeros = tar.offset - end  # type: ignore[attr-defined]
    if not zeros:
        raise tarfile.ReadError(f"no end mark after {end} bytes")
    if zeros > _MOST_ZEROS:
        shorter = f"`truncate -s {end + tarfile.RECORDSIZE}` makes it an ordinary one"
        raise tarfile.ReadError(
            f"{zeros} zeros after {end} bytes, as a broken download leaves them; if nothing is missing, "
            + (shorter if mode == "r:" else "pack it again")
        )


def _parts(file: IO[bytes], ignored: Ignored) -> Iterator[Part]:
    for _, member, name in members(file, "r:"):
        if member.isfile() and not member.issparse() and name is not None:
            yield Part(name, member.offset_data, member.size)
        elif name is not None and not member.isdir():
            ignored.add(name, "links or other")
