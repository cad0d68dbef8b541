"""Crop and resize images once, by the package's own preprocessing, such as CelebA-HQ's at 1024 px.

    python examples/prepare_celebahq.py CelebAMask-HQ/CelebA-HQ-img celebahq

Images that already exist are not written again, so the command can be interrupted and run again.
"""

import argparse
from pathlib import Path

from ldmae.images.transforms import center_crop, open_picture, to_rgb

ENDINGS = {".jpg", ".jpeg", ".png"}


def main(arguments: list[str] | None = None) -> int:
    """Writes each picture as a PNG of --size pixels a side; returns how many there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="the folder with the images")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side")
    options = parser.parse_args(arguments)
    pictures = sorted(path for path in options.images.glob("*") if path.suffix.lower() in ENDINGS)
    if not pictures:
        raise SystemExit(f"{options.images} holds no images ({', '.join(sorted(ENDINGS))})")
    options.out.mkdir(parents=True, exist_ok=True)
    for path in pictures:
        made = options.out / f"{path.stem}.png"
        if not made.exists():
            half = made.with_suffix(".part")
            center_crop(to_rgb(open_picture(path.read_bytes())), options.size).save(half, format="PNG")
            half.rename(made)
    print(f"{len(pictures):,} images of {options.size} px in {options.out}")
    return len(pictures)


if __name__ == "__main__":
    main()
