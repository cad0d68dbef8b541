"""Label images on disk, and the images that they belong to."""

# H W image

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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


def open_masks(source: ImageSource, indices: Sequence[int], config: EvaluationConfig) -> _MaskFolder:
    """Opens the masks of some images of a folder, in the order of `indices`.

    Raises:
        UserError: the images lie in no folder, or the masks do not match them.
    """
    images = root(source)
    if not isinstance(images, FolderSource):
        raise UserError(
            f"evaluation.masks={config.masks} needs images in a folder, whose names the masks share; "
            f"got {source.name}. Unpack the images into a folder, or leave the masks out"
        )
    if Path(at_home(str(config.masks))).resolve() == images.folder.resolve():
        raise UserError(
            f"evaluation.masks={config.masks} is the images' own folder; name the one with label images"
        )
    names = [str(Path(source.describe(index)).relative_to(images.folder)) for index in indices]
    masks = _MaskFolder(at_home(str(config.masks)), names, config.ignored_labels)
    masks.check_sizes([(image.height, image.width) for image in map(source.read, indices)])
    return masks


class _MaskFolder:
    """Label images, one for each of some images: `folder/NAME.png` belongs to the image `NAME.jpg`.

    A label is a grey value, a palette's index, or a colour; every value is a group.

    Args:
        folder: holds the label images (`_MASK_EXTENSIONS`), in the same subfolders as the images.
        names: the images' paths relative to their own folder, with any extension.
        ignore: values that mean "no group", such as 255 in PASCAL VOC's. A colour's value is 65536 · red +
            256 · green + blue.

    Raises:
        UserError: the folder is not there, or an image has no mask or several.
    """

    def __init__(self, folder: Path | str, names: Sequence[str], ignore: Collection[int] = ()) -> None:
        self.folder = Path(folder)
        self.names = list(names)
        self._ignore = sorted(ignore)
        if not self.folder.is_dir():
            raise UserError(
                f"there is no folder of masks {self.folder}; expected one with a label image for each image"
            )
        found: dict[str, list[Path]] = {}
        for parent in {self.folder / Path(name).parent for name in self.names}:
            for path in sorted(parent.iterdir()) if parent.is_dir() else ():
                if path.suffix.lower() in _MASK_EXTENSIONS:
                    found.setdefault(_stem(path.relative_to(self.folder)), []).append(path)
        stems = [_stem(name) for name in self.names]
        missing = [name for name, stem in zip(self.names, stems, strict=True) if stem not in found]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(stems)} images have no mask in {self.folder}: "
                f"{shortened(missing, 4)}; expected files of the same name, such as {_stem(missing[0])}.png "
                f"(one of {', '.join(_MASK_EXTENSIONS)}: other formats blur labels). Add them, or measure "
                "images that have masks"
            )
        several = [stem for stem in stems if len(found[stem]) > 1]
        if several:
            both = " and ".join(path.name for path in found[several[0]])
            raise UserError(
                f"{len(several)} images have more than one mask in {self.folder}, such as {several[0]}: "
                f"{both}; remove all but one"
            )
        self.paths = [found[stem][0] for stem in stems]

    def __len__(self) -> int:
        return len(self.paths)

    def check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Checks that masks are as large as their unprocessed images; reads only the files' headers.

        Raises:
            UserError: some are not, or a mask can't be read.
        """
        assert len(sizes) == len(self), f"{len(sizes)} sizes, {len(self)} masks"
        wrong = []
        for path, name, (height, width) in zip(self.paths, self.names, sizes, strict=True):
            with _opened(path) as mask:
                if mask.size != (width, height):
                    wrong.append(f"{path.name} is {mask.height}x{mask.width}, {name} {height}x{width}")
        if wrong:
            raise UserError(
                f"{len(wrong)} of {len(self)} masks in {self.folder} differ in size from their images: "
                f"{shortened(wrong, 4)}; expected masks of the images as they are before any cropping. Make "
                "them again"
            )

    def read(self, index: int) -> np.ndarray:
        """Returns a mask as a label map (H, W) int64; `groupings` crops it as images are cropped.

        Raises:
            UserError: it can't be read, or holds no labels.
        """
        path = self.paths[index]
        with _opened(path) as mask:
            values = np.asarray(mask)
        labels = _as_labels(values, path)
        return np.where(np.isin(labels, self._ignore), NO_GROUP, labels) if self._ignore else labels


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
