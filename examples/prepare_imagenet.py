"""Unpack ImageNet-1K's archives into train/ and val/ with a subfolder a class.

    python examples/prepare_imagenet.py ARCHIVES imagenet

ARCHIVES holds ILSVRC2012_img_train.tar (1,000 tars in one), ILSVRC2012_img_val.tar (50,000 JPEGs) and
ILSVRC2012_devkit_t12.tar.gz (which class each validation image is of), as image-net.org gives them.
"""

import argparse
import io
import sys
import tarfile
import zlib
from pathlib import Path

from scipy.io import loadmat

from ldmae.cli.output import run_app

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def classes_of_validation(devkit: Path) -> list[str]:
    """Returns the class (a WordNet number such as n01440764) of each validation image, in order."""
    with tarfile.open(devkit) as archive:
        members = {Path(member.name).name: member for member in archive.getmembers()}
        meta = loadmat(io.BytesIO(archive.extractfile(members["meta.mat"]).read()), squeeze_me=True)
        lines = archive.extractfile(members["ILSVRC2012_validation_ground_truth.txt"]).read().split()
    wordnet = {int(entry[0]): str(entry[1]) for entry in meta["synsets"].tolist()}
    return [wordnet[int(line)] for line in lines]


def unpack_train(archive: Path, out: Path) -> int:
    """Writes each class's images into a folder of its own; returns their number."""
    count = 0
    with tarfile.open(archive) as classes:
        for member in classes:
            folder = out / Path(member.name).stem
            folder.mkdir(parents=True, exist_ok=True)
            with tarfile.open(fileobj=classes.extractfile(member)) as images:
                for image in images:
                    (folder / Path(image.name).name).write_bytes(images.extractfile(image).read())
                    count += 1
    return count


def unpack_val(archive: Path, classes: list[str], out: Path) -> int:
    """Writes each image into its class's folder: ILSVRC2012_val_00000001.JPEG is the first of `classes`."""
    count = 0
    with tarfile.open(archive) as images:
        for image in images:
            number = int(Path(image.name).stem.rpartition("_")[2])
            folder = out / classes[number - 1]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / Path(image.name).name).write_bytes(images.extractfile(image).read())
            count += 1
    if count != len(classes):
        raise SystemExit(f"{archive} holds {count:,} images, expected {len(classes):,}; download it again")
    return count


def main(arguments: list[str] | None = None) -> tuple[int, int]:
    """Unpacks both sets and returns how many images each holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    missing = [name for name in (TRAIN, VAL, DEVKIT) if not (options.archives / name).is_file()]
    if missing:
        raise SystemExit(f"{options.archives} lacks {', '.join(missing)}")
    try:
        val = classes_of_validation(options.archives / DEVKIT)
        counts = (
            unpack_train(options.archives / TRAIN, options.out / "train"),
            unpack_val(options.archives / VAL, val, options.out / "val"),
        )
    except (tarfile.ReadError, EOFError, zlib.error, IndexError) as error:
        raise SystemExit(
            f"an archive in {options.archives} is damaged ({error}); download it again"
        ) from error
    print(f"{counts[0]:,} training and {counts[1]:,} validation images in {options.out}")
    return counts


if __name__ == "__main__":
    sys.exit(run_app(main))
