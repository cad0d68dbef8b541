from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmae.core.errors import UserError
from ldmae.report import grids


def tiles_of_colour(count: int, size: int = 32) -> np.ndarray:
    """Returns uint8 (count, size, size, 3): all of tile i is of grey level 10 + i."""
    levels = (10 + np.arange(count) % 200).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, size, size, 3)).copy()


def level_at(picture: Image.Image, x: int, y: int) -> int:
    return np.asarray(picture)[y, x, 0].item()


def test_tiles_lie_where_the_layout_says_and_padding_is_white():
    images = tiles_of_colour(7)
    picture = grids.Grid(images, columns=3, padding=5, scale=2).draw()
    layout = grids.Grid(images, columns=3, padding=5, scale=2)
    assert picture.size == layout.size == (5 + 3 * (64 + 5), 5 + 3 * (64 + 5))
    for index in range(7):
        x, y = layout.origin(index)
        assert (x, y) == (5 + index % 3 * 69, 5 + index // 3 * 69)
        for corner in ((0, 0), (63, 0), (0, 63), (63, 63)):
            assert level_at(picture, x + corner[0], y + corner[1]) == 10 + index
        assert level_at(picture, x - 1, y) == level_at(picture, x, y - 1) == 255
        assert level_at(picture, x + 64, y) == level_at(picture, x, y + 64) == 255


def test_labels_move_the_tiles_and_stay_beside_them():
    images = tiles_of_colour(4)
    rows, columns = ["first", "second"], ["left", "right"]
    arguments = {"columns": 2, "row_labels": rows, "column_labels": columns, "caption": "a caption"}
    picture, layout = grids.Grid(images, **arguments).draw(), grids.Grid(images, **arguments)
    pixels = np.asarray(picture.convert("L"))
    assert layout.left > 0
    assert layout.top > 0
    assert level_at(picture, *layout.origin(3)) == 13
    x, y = layout.origin(0)
    assert pixels[y : y + layout.tile[1], : layout.left].min() < 100  # ink of the row's label
    assert pixels[: layout.top, x:].min() < 100
    assert pixels[-layout.bottom :].min() < 100
    assert (pixels[: -layout.bottom, x - layout.padding : x] == 255).all()  # nothing reaches the tiles
    assert (pixels[y - layout.padding : y] == 255).all()


@pytest.mark.parametrize(
    ("side", "scale"), [(28, 4), (32, 3), (48, 2), (64, 2), (96, 1), (256, 1), (512, 0.5)]
)
def test_small_images_grow_by_whole_factors_and_large_ones_shrink(side: int, scale: float):
    assert grids.auto_scale(side) == scale
    assert grids.Grid(tiles_of_colour(1, side), 1).tile == (side * scale, side * scale)


def test_whole_factors_repeat_pixels():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    grid = np.asarray(grids.Grid(image, 1, scale=3, padding=0).draw())
    np.testing.assert_array_equal(grid, image[0].repeat(3, 0).repeat(3, 1))


def test_images_of_other_sizes_are_centred_and_transparency_is_white():
    images = [
        Image.new("RGB", (40, 20), "red"),
        Image.new("RGBA", (20, 40), (0, 0, 0, 0)),
        Image.new("L", (40, 40)),
    ]
    picture = grids.Grid(images, 3, scale=1, padding=0).draw()
    assert picture.size == (120, 40)
    assert picture.getpixel((20, 20)) == (255, 0, 0)
    assert picture.getpixel((20, 5)) == (255, 255, 255)
    assert picture.getpixel((60, 20)) == (255, 255, 255)
    assert picture.getpixel((100, 20)) == (0, 0, 0)


def test_class_grid_has_a_row_a_class_in_the_order_of_labels():
    labels = [i % 3 for i in range(9)]
    images = tiles_of_colour(9)
    picture = grids.class_grid(images[:8], labels[:8], ["one", "two", "three"], per_class=4)
    layout = grids.Grid(images, 3, row_labels=["one", "two", "three"])
    assert picture.size == layout.size
    for tile, image in enumerate([0, 3, 6, 1, 4, 7, 2, 5]):
        assert level_at(picture, *layout.origin(tile)) == 10 + image
    assert level_at(picture, *layout.origin(8)) == 255  # class three has two images only


def test_class_grid_of_a_thousand_classes_shows_24_rows_and_says_so():
    names = [f"class number {i}" for i in range(1000)]
    images = tiles_of_colour(1000, 8)
    picture = grids.class_grid(images, range(1000), names, per_class=2)
    caption = "24 of 1,000 classes shown"
    layout = grids.Grid(images[:24], 1, row_labels=names[:1] * 24, caption=caption)
    assert picture.height == layout.size[1]
    assert picture.height < 24 * 104 + 60
    plain = grids.class_grid(images[:24], range(24), names, per_class=2)
    assert picture.height - plain.height == layout.bottom > 0
    assert picture.width >= layout.least_width > 200  # the caption is whole


def test_class_grid_of_one_class_fills_rows():
    picture = grids.class_grid(tiles_of_colour(20), [0] * 20, ["everything"], per_class=8)
    layout = grids.Grid(tiles_of_colour(20), 8, row_labels=["everything"])
    assert picture.size == layout.size
    assert level_at(picture, *layout.origin(19)) == 29
    assert level_at(picture, *layout.origin(20)) == 255


def test_class_grid_survives_unnamed_classes_and_odd_names():
    names = ["", "line\nbreak\x00", "日本語", "x" * 10_000]
    picture = grids.class_grid(tiles_of_colour(6), [0, 1, 2, 3, 17, -1], names)
    assert picture.width < 500


def test_class_grid_of_nothing_is_a_picture():
    assert grids.class_grid([], [], []).size > (0, 0)


def test_reconstructions_show_the_difference_four_times_as_strong_and_clipped():
    originals = np.full((3, 32, 32, 3), 100, np.uint8)
    reconstructions = originals + np.array([0, -10, 100])[:, None, None, None].astype(np.uint8)
    gap = grids.difference(originals, reconstructions, 4)
    rows = {"original": originals, "reconstruction": reconstructions, "difference × 4": gap}
    picture = grids.image_rows(rows, 8)
    layout = grids.Grid(originals, 3, row_labels=list(rows))
    shown = [level_at(picture, *layout.origin(i)) for i in range(9)]
    assert shown == [100, 100, 100, 100, 90, 200, 0, 40, 255]


def test_rows_take_as_many_images_as_asked_for():
    images = tiles_of_colour(12)
    picture = grids.image_rows({"original": images, "other": images}, 5)
    whole = grids.Grid([Image.fromarray(images[0])] * 10, 5, row_labels=["original", "other"])
    assert picture.size == whole.size


def test_saved_png_is_the_picture_and_the_same_bytes_each_time(tmp_path: Path):
    for name in ("a.png", "b.png"):
        grids.save_png(
            grids.class_grid(tiles_of_colour(4), [0, 0, 1, 1], ["a", "b"]), tmp_path / "new" / name
        )
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]


def test_a_folder_that_takes_no_file_is_a_user_error(tmp_path: Path):
    (tmp_path / "grid.png").mkdir()
    with pytest.raises(UserError, match=r"grid\.png"):
        grids.save_png(Image.new("RGB", (4, 4)), tmp_path / "grid.png")


def test_pictures_fit_their_budget_and_are_exact_where_they_can_be():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8))
    assert len(grids.encode_picture(noise, 50_000).uri) < 50_000 * 4 / 3 + 100
    flat = grids.encode_picture(Image.new("RGB", (300, 200), "red"), 50_000)
    assert (flat.width, flat.height) == (300, 200)
    assert len(flat.uri) < 500
