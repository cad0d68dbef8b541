"""Crop and resize images once, by the package's own preprocessing, such as CelebA-HQ's at 1024 px.

    python examples/prepare_celebahq.py CelebAMask-HQ/CelebA-HQ-img celebahq

Images that already exist are not written again, so the command can be interrupted and run again.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ldmae.cli.output import run_app
from ldmae.core.files import EXTENSIONS
from ldmae.images.transforms import UnreadablePictureError, center_crop, open_picture, to_rgb


def main(arguments: list[str] | None = None) -> int:
    """Writes each picture as a PNG of --size pixels a side; returns how many there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="the folder with the images")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side")
    options = parser.parse_args(arguments)
    if options.size < 1:
        parser.error(f"--size {options.size}: it takes at least one pixel")
    if options.out.resolve() == options.images.resolve():
        parser.error(f"{options.out} holds the images themselves; name another folder")
    found = sorted(path for path in options.images.glob("*") if path.is_file())
    pictures = [path for path in found if path.suffix.lower() in EXTENSIONS]
    if not pictures:
        raise SystemExit(f"{options.images} holds no images itself ({', '.join(EXTENSIONS)})")
    names = Counter(path.stem for path in pictures)
    if twice := [path.name for path in pictures if names[path.stem] > 1]:
        raise SystemExit(f"{', '.join(twice)}: some would become the same file; rename or remove all but one")
    options.out.mkdir(parents=True, exist_ok=True)
    for path in pictures:
        prepare(path, options.out / f"{path.stem}.png", options.size)
    ignored = f"; {len(found) - len(pictures):,} other files ignored" if len(found) > len(pictures) else ""
    print(f"{len(pictures):,} images of {options.size} px in {options.out}{ignored}")
    return len(pictures)


def prepare(path: Path, made: Path, size: int) -> None:
    """Writes a picture as a PNG of `size` pixels a side, where that isn't there yet."""
    if made.exists():
        try:
            with Image.open(made) as old:
                size_of_old = old.size
        except UnidentifiedImageError as error:
            raise SystemExit(f"{made} is no image; remove it") from error
        if size_of_old != (size, size):
            raise SystemExit(f"{made} has {size_of_old[0]} × {size_of_old[1]} px; name another folder")
        return
    try:
        picture = center_crop(to_rgb(open_picture(path.read_bytes())), size)
    except UnreadablePictureError as error:
        raise SystemExit(f"{path}: {error}; remove it, or replace it") from error
    half = made.with_suffix(".part")
    picture.save(half, format="PNG")
    half.rename(made)


if __name__ == "__main__":
    sys.exit(run_app(main))
