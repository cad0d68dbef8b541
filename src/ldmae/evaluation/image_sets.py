"""Generated images as files: a folder of images, or the .npz of ADM's evaluator; never held whole."""

# N images, b of a batch, H W image

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ldmae.core.errors import UserError
from ldmae.core.files import EXTENSIONS, atomic_path, is_junk
from ldmae.core.progress import console
from ldmae.images.transforms import is_deep, open_picture, to_rgb

_MAX_PIXELS = 2**26
"""Of an image in an .npz: a small file may claim a size that takes gigabytes."""


@dataclass(frozen=True)
class _Samples:
    """N images in uint8 that lie in a folder or an .npz, read in batches; made by `read_samples`."""

    path: Path
    count: int
    """N."""
    size: tuple[int, int]
    """Height and width."""
    labels: np.ndarray | None = None
    """(N,) int64; None where there are none."""
    files: tuple[Path, ...] | None = None
    """The pictures of a folder, by name; None for an .npz."""

    def __len__(self) -> int:
        return self.count

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Yields images (b, 3, H, W) in uint8, in their order, from `start` to before `stop`, or the end.

        Raises:
            UserError: a picture is broken or of another size, or the .npz ends early.
        """
        stop = self.count if stop is None else min(stop, self.count)
        if self.files is None:
            yield from self._from_npz(batch_size, start, stop)
            return
        for i in range(start, stop, batch_size):
            pictures = [_picture(file, self.size) for file in self.files[i : min(i + batch_size, stop)]]
            yield torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def _from_npz(self, batch_size: int, start: int, stop: int) -> Iterator[Tensor]:
        shape = (*self.size, 3)
        image_bytes = int(np.prod(shape))
        with (
            npz_errors(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open("arr_0.npy") as file,
        ):
            _read_header(file)
            if start:
                file.seek(start * image_bytes, 1)
            for i in range(start, stop, batch_size):
                wanted = min(batch_size, stop - i) * image_bytes
                data = file.read(wanted)
                if len(data) < wanted:
                    raise EOFError(f"it ends after image {i + len(data) // image_bytes}")
                images = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, *shape)
                yield images.permute(0, 3, 1, 2).contiguous()


def read_samples(path: Path | str) -> _Samples:
    """Opens images to be measured; none is read yet.

    Args:
        path: a folder of image files, all of one size, directly in it or in subfolders (of what `ldmae
            sample` writes, its `images`); or an .npz with `arr_0` (N, H, W, 3) in uint8 and, optionally,
            labels `arr_1` (N,), as ADM's evaluator takes it.

    Raises:
        UserError: there is nothing, or something else.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UserError(f"there are no samples at {path}: expected a folder of images or an .npz file")
    if path.suffix.lower() != ".npz":
        raise UserError(f"samples are a folder of image files or an .npz, got {path}; name one of these")
    names = npz_names(path)
    if "arr_0" not in names:
        raise UserError(
            f"{path} has no images: expected arr_0, (N, H, W, 3) in uint8, got "
            f"{', '.join(names) or 'nothing'}; save it with numpy.savez(path, images) or "
            "numpy.savez(path, images, labels)"
        )
    with npz_errors(path):
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            shape, fortran, dtype = _read_header(file)
            room = archive.getinfo("arr_0.npy").file_size
        labels = np.asarray(np.load(path, allow_pickle=False)["arr_1"]) if "arr_1" in names else None
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or fortran:
        order = ", in Fortran's order" if fortran else ""
        raise UserError(
            f"arr_0 of {path} is {shape} in {dtype}{order}; expected (N, H, W, 3) in uint8, values 0 to 255, "
            "in C's order; convert it first"
        )
    if not shape[0]:
        raise UserError(f"{path} holds no images; generate some first")
    if min(shape) < 1 or math.prod(shape) > room or shape[1] * shape[2] > _MAX_PIXELS:
        raise UserError(
            f"arr_0 of {path} says that it is {shape}, for which it has no room, or more than "
            f"{_MAX_PIXELS:,} pixels an image; write it again"
        )
    if labels is not None and (labels.shape != shape[:1] or labels.dtype.kind not in "iu"):
        raise UserError(
            f"arr_1 of {path} is {labels.shape} in {labels.dtype}; expected one whole number for each of the "
            f"{shape[0]} images, or none"
        )
    return _Samples(path, shape[0], shape[1:3], None if labels is None else labels.astype(np.int64))


def write_samples_npz(
    path: Path | str, batches: Iterable[Tensor], labels: np.ndarray | None = None, *, count: int
) -> None:
    """Writes the .npz that ADM's evaluator reads: `arr_0` (N, H, W, 3) in uint8, `arr_1` the labels (N,).

    The `count` images (b, 3, H, W) in uint8 pass through one batch at a time; the file appears whole or not
    at all.

    Raises:
        UserError: the disk is full or refuses the write.
    """
    assert labels is None or len(labels) == count, f"{count} images, labels {labels}"
    assert Path(path).suffix == ".npz", f"numpy reads such a file by its ending .npz, got {path}"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        # numpy's members: stored, so that they are read as fast as a plain file
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            written = 0
            for images in batches:
                assert images.dtype == torch.uint8, f"expected uint8 images, got {images.dtype}"
                assert images.shape[1:-2] == (3,), f"expected (b, 3, H, W), got {tuple(images.shape)}"
                pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
                if not written:
                    first = pixels.shape[1:]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first)}
                    np.lib.format.write_array_header_1_0(file, header)
                assert pixels.shape[1:] == first, f"images of one size belong together, got {pixels.shape}"
                file.write(pixels.data)
                written += len(pixels)
            assert written == count, f"{count} images were announced, {written} came"
        if labels is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels.astype(np.int64), allow_pickle=False)


def npz_names(path: Path) -> list[str]:
    """Returns the names of an .npz's arrays.

    Raises:
        UserError: it is no .npz.
    """
    with npz_errors(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def npz_errors(path: Path) -> Iterator[None]:
    """Turns what zip, zlib and numpy raise of a truncated or foreign .npz, which is anything, into a message.

    Raises:
        UserError: the file could not be read.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not an .npz, or is broken ({error}); fetch or write it again") from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _open_folder(folder: Path) -> _Samples:
    if (folder / "samples.json").exists() and (folder / "images").is_dir():
        folder = folder / "images"  # beside it lies the grid, which is no sample
    everything = sorted(
        (
            path
            for path in folder.rglob("*")
            if not any(map(is_junk, path.relative_to(folder).parts)) and path.is_file()
        ),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    files = [path for path in everything if path.suffix.lower() in EXTENSIONS]
    if not files:
        raise UserError(f"no images in {folder}: expected files ending in {', '.join(EXTENSIONS)}")
    others = [path for path in everything if path.suffix.lower() not in EXTENSIONS]
    if others:
        names = ", ".join(path.relative_to(folder).as_posix() for path in others[:3])
        names += ", …" if len(others) > 3 else ""
        console.print(
            f"{folder}: {len(others)} of {len(everything)} files ignored, not images: {names}",
            markup=False,
            soft_wrap=True,
        )
    height, width = _picture(files[0], None).shape[:2]
    return _Samples(folder, len(files), (height, width), files=tuple(files))


def _picture(file: Path, size: tuple[int, int] | None) -> np.ndarray:
    """Returns a picture (H, W, 3) as a viewer shows it: upright, alpha composited on white."""
    try:
        image = open_picture(file.read_bytes())
        deep, pixels = is_deep(image), np.asarray(to_rgb(image))
    except Exception as error:  # decoders raise whatever they like
        raise UserError(f"{file} can't be read ({error}); remove it or save it again") from error
    if deep:
        raise UserError(f"{file} is grey of more than 8 bits; save it with 8 bits a channel")
    if size is not None and pixels.shape[:2] != size:
        raise UserError(
            f"samples must be of one size: {file} is {pixels.shape[0]}x{pixels.shape[1]}, those before it "
            f"{size[0]}x{size[1]}; move it elsewhere, or resize it"
        )
    return pixels
