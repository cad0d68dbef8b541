"""Crops at several scales of the photographs in Debian's wallpaper packages, their subjects as classes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from ldmae.core.errors import UserError
from ldmae.core.files import write_json, write_text
from ldmae.images.packages import Package, drawn, fetch, prepared

_POOL = "http://deb.debian.org/debian/pool/main"  # as apt: what is fetched is checked by its hash
_PACKAGES = {
    "mate-backgrounds": Package(
        f"{_POOL}/m/mate-backgrounds/mate-backgrounds_1.26.0-1_all.deb",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
    ),
    "lomiri-wallpapers-16.04": Package(
        f"{_POOL}/l/lomiri-wallpapers/lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ),
    "lomiri-wallpapers-20.04": Package(
        f"{_POOL}/l/lomiri-wallpapers/lomiri-wallpapers-20.04_20.04.0-2_all.deb",
        "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
    ),
    "plasma-workspace-wallpapers": Package(
        f"{_POOL}/p/plasma-workspace-wallpapers/plasma-workspace-wallpapers_5.27.5-2_all.deb",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
    ),
}

_SUBJECTS = {
    "flowers": "FreshFlower Garden LadyBird TwoWings YellowFlower seeding_by_Clements_Engelhardt",
    "land": "Dune aitzgorri_by_Aitzol_Berasategi life_by_Aitzol_Berasategi "
    "picosdeeuropa_by_Aitzol_Berasategi",
    "leaves": "Blinds Dragonfly_by_Bolly FallenLeaf GreenMeadow RainDrops",
    "sky": "Kite Storm sunset_by_Aitzol_Berasategi",
    "things": "Bridge_by_Sander_Klootwijk ColorfulCups Grey Picture_0B_by_freespace Picture_1A_by_freespace "
    "Wine_by_Jakkub_Mede free_by_Peter_Nerlich greentock_by_Peter_Nerlich",
    "water": "Aqua BytheWater ColdRipple DarkestHour EveningGlow summer_1am",
    "woods": "Kleiber_by_Lukas_Baubkus OneStandsOut Path Wood",
}
"""The photographs among the wallpapers, by what they show; the others are drawings."""

_LICENCES = """# Licences of these images

Crops of photographs from Debian's packages mate-backgrounds (GPL-2+), lomiri-wallpapers (CC-BY 4.0, CC-BY-SA
3.0 and 4.0, CC0, by photograph) and plasma-workspace-wallpapers (GPL-2+ by its copyright file, LGPLv3 or
CC-BY-SA 4.0 by the photographs' own). Several are share-alike. The packages' copyright files:

"""


def prepare_wallpapers(
    folder: Path, *, size: int = 64, held_out: float = 0.2, given: Path | None = None
) -> dict[str, dict[str, dict[str, int]]]:
    """Writes `folder/train/SUBJECT/*.png` and `folder/val/SUBJECT/*.png`, with licences beside them.

    Each photograph is scaled so that its shorter side is 1, 2, 4 and 8 crops long, and cut into crops that do
    not overlap. All crops of a photograph lie on one side of the split; of each subject a share of the
    photographs is held out, drawn by their names.

    Args:
        folder: where to; packages that are downloaded stay in its `packages`.
        size: pixels along a crop's side.
        held_out: share of a subject's photographs, in (0, 1).
        given: a folder of packages; with it nothing is downloaded.

    Returns:
        By side of the split and subject: how many crops and photographs.

    Raises:
        UserError: a package is missing, can't be downloaded, or lacks a photograph; the folder holds
            images of one's own.
    """
    subjects = {name: subject for subject, names in _SUBJECTS.items() for name in names.split()}
    unseen = {name for names in _SUBJECTS.values() for name in drawn(names.split(), held_out)}
    counts: dict[str, dict[str, dict[str, int]]] = {"train": {}, "val": {}}
    copyrights, missing = [], set(subjects)
    with prepared(folder, size) as (train, val):
        for title, package in _PACKAGES.items():
            for name, content in _files(fetch(package, folder / "packages", given)):
                if name == "copyright":
                    copyrights.append(f"## {title}\n\n```\n{content().decode(errors='replace')}\n```\n")
                if name not in missing:
                    continue
                missing.remove(name)
                side, place = ("val", val) if name in unseen else ("train", train)
                out = place / subjects[name]
                out.mkdir(exist_ok=True)
                of = counts[side].setdefault(subjects[name], {"crops": 0, "photographs": 0})
                of["photographs"] += 1
                for where, crop in _crops(Image.open(io.BytesIO(content())).convert("RGB"), size):
                    crop.save(out / f"{name}-{where}.png")
                    of["crops"] += 1
        if missing:
            raise UserError(f"the packages lack the photographs {', '.join(sorted(missing))}")
    write_text(folder / "LICENCES.md", _LICENCES + "\n".join(copyrights))
    write_json(folder / "counts.json", {"size": size, "counts": counts})
    return counts


def _files(package: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields the photographs of a Debian package by their names, and its copyright file."""
    content = package.read_bytes()
    place = len(b"!<arch>\n")
    while place < len(content):  # ar: 60 bytes of header a file, at even places
        name, length = content[place : place + 16].decode().strip(" /"), int(content[place + 48 : place + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content[place + 60 : place + 60 + length])) as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    # Plasma's: NAME/contents/images/SIZE.jpg
                    own = path.parts[-4] if path.parent.name == "images" else path.stem
                    if member.isfile() and (path.suffix == ".jpg" or path.name == "copyright"):
                        yield own, lambda member=member: archive.extractfile(member).read()  # type: ignore
        place += 60 + length + length % 2


def _crops(photograph: Image.Image, size: int) -> Iterator[tuple[str, Image.Image]]:
    for crops in (1, 2, 4, 8):
        scale = crops * size / min(photograph.size)
        width, height = (max(crops * size, round(scale * side)) for side in photograph.size)
        if scale > 1:
            return
        small = photograph.resize((width, height), Image.Resampling.LANCZOS)
        for top in range(0, small.height - size + 1, size):
            for left in range(0, small.width - size + 1, size):
                where = f"{crops}-{top // size}-{left // size}"
                yield where, small.crop((left, top, left + size, top + size))
