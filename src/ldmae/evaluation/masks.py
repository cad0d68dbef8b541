"""Label images on disk, and the images that they belong to."""

# H W image

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError, shortened
from ldmae.core.files import at_home, fingerprint, stamp
from ldmae.images.base import root
from ldmae.images.sources import FolderSource

NO_GROUP = -1
"""The label of pixels and cells that belong to no group."""

_MASK_EXTENSIONS = (".png", ".gif", ".tif", ".tiff", ".bmp")
"""What label images may be stored as: formats that keep every value as it was."""


def masks_fingerprint(config: EvaluationConfig) -> str:
    """Returns a hash of the masks' names, sizes and times of change; empty where there are none."""
    if config.masks is None:
        return ""
    files = sorted(path for path in Path(at_home(config.masks)).rglob("*") if path.is_file())
    return fingerprint(f"{stamp(path):016x}" for path in files)


def open_masks(
    source: ImageSource, indices: Sequence[int], config: EvaluationConfig
) -> Callable[[int], np.ndarray]:
    """Finds the masks of some images of a folder; returns what reads one by its image's index (`_read_mask`).

    Raises:
        UserError: the images lie in no folder, or the masks do not match them.
    """
    images = root(source)
    if not isinstance(images, FolderSource):
        raise UserError(
            f"evaluation.masks={config.masks} needs images in a folder, whose names the masks share; "
            f"got {source.name}. Unpack the images into a folder, or leave the masks out"
        )
    folder = Path(at_home(str(config.masks)))
    if folder.resolve() == images.folder.resolve():
        raise UserError(
            f"evaluation.masks={config.masks} is the images' own folder; name the one with label images"
        )
    names = [str(Path(source.describe(index)).relative_to(images.folder)) for index in indices]
    paths = _masks_of(names, folder)
    sizes = [(image.height, image.width) for image in map(source.read, indices)]
    _check_sizes(paths, names, sizes, folder)
    masks = dict(zip(indices, paths, strict=True))
    return lambda index: _read_mask(masks[index], config.ignored_labels)


def _masks_of(names: Sequence[str], folder: Path) -> list[Path]:
    """Returns the label image (`_MASK_EXTENSIONS`) of each name: `folder/NAME.png` belongs to `NAME.jpg`.

    Names are the images' paths relative to their own folder, with any extension; their masks are in the same
    subfolders.

    Raises:
        UserError: the folder is not there, or an image has no mask or several.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder of masks {folder}; expected one with a label image for each image"
        )
    found: dict[str, list[Path]] = {}
    for parent in {folder / Path(name).parent for name in names}:
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if path.suffix.lower() in _MASK_EXTENSIONS:
                found.setdefault(_stem(path.relative_to(folder)), []).append(path)
    stems = [_stem(name) for name in names]
    missing = [name for name, stem in zip(names, stems, strict=True) if stem not in found]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(stems)} images have no mask in {folder}: "
            f"{shortened(missing, 4)}; expected files of the same name, such as {_stem(missing[0])}.png "
            f"(one of {', '.join(_MASK_EXTENSIONS)}: other formats blur labels). Add them, or measure "
            "images that have masks"
        )
    several = [stem for stem in stems if len(found[stem]) > 1]
    if several:
        both = " and ".join(path.name for path in found[several[0]])
        raise UserError(
            f"{len(several)} images have more than one mask in {folder}, such as {several[0]}: "
            f"{both}; remove all but one"
        )
    return [found[stem][0] for stem in stems]


def _check_sizes(paths: list[Path], names: list[str], sizes: list[tuple[int, int]], folder: Path) -> None:
    """Checks that masks are as large (height, width) as their unprocessed images; reads only their headers.

    Raises:
        UserError: some are not, or a mask can't be read.
    """
    wrong = []
    for path, name, (height, width) in zip(paths, names, sizes, strict=True):
        with _opened(path) as mask:
            if mask.size != (width, height):
                wrong.append(f"{path.name} is {mask.height}x{mask.width}, {name} {height}x{width}")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(paths)} masks in {folder} differ in size from their images: "
            f"{shortened(wrong, 4)}; expected masks of the images as they are before any cropping. Make "
            "them again"
        )


def _read_mask(path: Path, ignore: Sequence[int] = ()) -> np.ndarray:
    """Returns a mask as a label map (H, W) int64; `groupings` crops it as images are cropped.

    A label is a grey value, a palette's index, or a colour (65536 · red + 256 · green + blue); every value is
    a group, but those of `ignore` mean "no group", such as 255 in PASCAL VOC's.

    Raises:
        UserError: it can't be read, or holds no labels.
    """
    with _opened(path) as mask:
        values = np.asarray(mask)
    labels = _as_labels(values, path)
    return np.where(np.isin(labels, ignore), NO_GROUP, labels)


def _as_labels(values: np.ndarray, path: Path) -> np.ndarray:
    """Returns (H, W) int64 of grey values or palette indices (H, W), or of colours (H, W, C)."""
    if values.ndim == 2:
        with np.errstate(invalid="ignore"):
            labels = values.astype(np.int64)
        if not np.array_equal(labels, values):
            raise UserError(
                f"the mask {path} holds fractions, not labels; save whole numbers, as an 8 or 16-bit PNG"
            )
        return labels
    if values.shape[2] < 3:  # grey and opacity
        return values[..., 0].astype(np.int64)
    return values[..., :3].astype(np.int64) @ np.array([65536, 256, 1])


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as mask:
            yield mask
    except Exception as error:  # decoders raise whatever they like
        raise UserError(f"cannot read the mask {path} ({error}); save it again, as a PNG") from error


def _stem(name: Path | str) -> str:
    return Path(name).with_suffix("").as_posix()
