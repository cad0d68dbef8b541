from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ldmae.report import grids, mosaics
from ldmae.report.data import read_comparison

from .drawn_units import CLASSES, change_images, crops, write_unit


def made_of(folder: Path, problems: list[str] | None = None) -> SimpleNamespace:
    found = [] if problems is None else problems
    pictures, seed = mosaics.make_mosaics(read_comparison(folder, found).variants, found)
    return SimpleNamespace(**pictures, seed=seed)


def test_the_box_lies_where_edges_are():
    image = np.full((32, 32, 3), 90, np.uint8)
    image[20:26:2, 9:15] = 200
    x, y = mosaics._most_detailed_box(image, 8)
    assert x <= 9
    assert x + 8 >= 15
    assert y <= 20
    assert y + 8 >= 25
    assert mosaics._most_detailed_box(np.zeros((32, 32, 3), np.uint8), 8) == (0, 0)


def test_the_box_is_that_of_a_search_over_all_boxes():
    image = crops(4, 32)[1]
    grey = image.astype(int).sum(axis=2)
    change = np.zeros_like(grey)
    change[:, 1:] += abs(np.diff(grey, axis=1))
    change[1:] += abs(np.diff(grey, axis=0))
    sums = {(x, y): change[y : y + 8, x : x + 8].sum() for y in range(25) for x in range(25)}
    assert sums[mosaics._most_detailed_box(image, 8)] == max(sums.values())


def test_reconstructions_show_the_magnified_box_beside_each_image(tmp_path: Path):
    write_unit(tmp_path, "ae", 0, size=32, tiles=2)
    write_unit(tmp_path, "vmae", 0, size=32, tiles=2)
    made = made_of(tmp_path)
    assert made.reconstructions is not None
    scale = grids.auto_scale(32)
    originals = crops(2, 32)
    rows = ["original", "AE", "VMAE"]
    layout = grids.Grid([Image.new("RGB", (96, 96))] * 12, 4, row_labels=rows, scale=1)
    assert (scale, made.reconstructions.size) == (3.0, layout.size)
    for i, image in enumerate(originals):
        x, y = mosaics._most_detailed_box(image, 8)
        left, top = layout.origin(2 * i + 1)
        shown = np.asarray(made.reconstructions)[top : top + 96, left : left + 96]
        expected = image[y : y + 8, x : x + 8].repeat(12, axis=0).repeat(12, axis=1)
        np.testing.assert_array_equal(shown, expected)


def test_boxes_are_outlined_in_black_and_white(tmp_path: Path):
    write_unit(tmp_path, "ae", 0, size=32, tiles=2)
    made = made_of(tmp_path)
    assert made.reconstructions is not None
    layout = grids.Grid([Image.new("RGB", (96, 96))] * 8, 4, row_labels=["original", "AE"], scale=1)
    x, y = (3 * place for place in mosaics._most_detailed_box(crops(2, 32)[0], 8))
    left, top = layout.origin(0)
    tile = np.asarray(made.reconstructions)[top : top + 96, left : left + 96]
    outside = [tile[b, a].tolist() for a, b in ((x - 4, y + 9), (x + 28, y + 9)) if 0 <= a < 96]
    inside = [tile[b, a].tolist() for a, b in ((x - 2, y + 9), (x + 25, y + 9)) if 0 <= a < 96]
    assert [0, 0, 0] in outside
    assert [255, 255, 255] in inside


def test_samples_are_the_first_of_the_same_classes_above_held_out_images(tmp_path: Path):
    for name in ("ae", "vmae"):
        unit = write_unit(tmp_path, name, 0, size=32, tiles=4)
        images = np.zeros((32, 32, 32, 3), np.uint8)
        for i in range(32):
            images[i] = 10 * (i % 4) + i // 4 + (100 if name == "vmae" else 0)
        change_images(unit, samples=images)
    problems: list[str] = []
    made = made_of(tmp_path, problems)
    assert problems == []
    assert made.samples is not None
    rows = ["AE", "VMAE", "held out, any class"]
    layout = grids.Grid([Image.new("RGB", (32, 32))] * 24, 8, row_labels=rows, column_labels=CLASSES)
    assert made.samples.size == layout.size
    pixels = np.asarray(made.samples)
    for row in range(2):
        for column in range(8):  # two of each of four classes
            x, y = layout.origin(8 * row + column)
            assert pixels[y, x, 0] == 100 * row + 10 * (column // 2) + column % 2
    x, y = layout.origin(16)
    np.testing.assert_array_equal(pixels[y : y + 96 : 3, x : x + 96 : 3], crops(4, 32)[0])


def test_images_with_coarse_edges_are_shown_first():
    flat, fine, coarse = (np.full((32, 32, 3), 128, np.uint8) for _ in range(3))
    fine[::2] = 255
    coarse[:, 16:] = 255
    assert mosaics._most_structured(np.stack([flat, fine, coarse]), 1) == [2]


def test_interpolations_of_a_pair_stand_one_below_the_other(tmp_path: Path):
    for name in ("ae", "vmae"):
        write_unit(tmp_path, name, 0, size=32, tiles=4)
    made = made_of(tmp_path)
    assert made.interpolation is not None
    layout = grids.Grid(
        [Image.new("RGB", (32, 32))] * 28, 7, row_labels=["AE", "VMAE"] * 2, column_labels=["image"] * 7
    )
    assert made.interpolation.size == layout.size


def test_pictures_are_of_the_seed_that_most_autoencoders_have(tmp_path: Path):
    for name, seed in (("ae", 0), ("ae", 5), ("vae", 5), ("vmae", 5), ("vmae", 0)):
        write_unit(tmp_path, name, seed, size=32, tiles=2)
    assert made_of(tmp_path).seed == 5


def test_units_without_pictures_have_none(tmp_path: Path):
    unit = write_unit(tmp_path, "ae", 0, size=32, tiles=2)
    (unit / "images.npz").unlink()
    problems: list[str] = []
    made = made_of(tmp_path, problems)
    assert (made.reconstructions, made.components, made.interpolation, made.samples) == (None,) * 4
    assert problems == []


def test_arrays_that_are_no_images_of_the_size_are_named(tmp_path: Path):
    unit = write_unit(tmp_path, "ae", 0, size=32, tiles=2)
    change_images(unit, reconstructions=np.zeros((2, 50, 32, 3), np.uint8))
    problems: list[str] = []
    made_of(tmp_path, problems)
    assert problems == ["ae/seed-0: reconstructions are no images of 32 px but (2, 50, 32, 3)"]


@pytest.mark.parametrize(
    ("name", "array"),
    [("labels", np.zeros(8)), ("labels", np.array(["cat"] * 8)), ("fractions", np.array(["a"]))],
)
def test_labels_and_fractions_of_another_type_are_left_out(name, array, tmp_path: Path):
    unit = write_unit(tmp_path, "ae", 0, size=32, tiles=2)
    change_images(unit, **{name: array})
    problems: list[str] = []
    made = made_of(tmp_path, problems)
    assert problems == [f"ae/seed-0: {name} of the type {array.dtype} are left out"]
    assert (made.samples is None) == (name == "labels")
    assert made.reconstructions is not None
