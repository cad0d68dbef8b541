import io

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.color import rgb2lab
from skimage.measure import label

from ldmae.core.errors import UserError
from ldmae.evaluation.groupings import (
    _crop_labels,
    _objects_from_alpha,
    _parts_by_felzenszwalb,
    _parts_from_flat_colours,
    _patterns_by_slic,
    cell_groups,
    enlarged,
)
from ldmae.evaluation.masks import _check_sizes, _masks_of, _read_mask
from ldmae.images.builtin import open_builtin
from ldmae.images.transforms import center_crop


@pytest.fixture(scope="module")
def smiley():
    """The emoji 😀: (72, 72, 4) uint8."""
    source = open_builtin("emoji")
    index = next(i for i in range(len(source)) if source.describe(i).endswith("1f600.png"))
    return np.asarray(Image.open(io.BytesIO(source.read_bytes(index))).convert("RGBA"))


@pytest.fixture(scope="module")
def photo():
    return np.asarray(Image.fromarray(skimage.data.astronaut()).resize((96, 96)))


# ---- groupings


def test_an_object_is_what_is_opaque():
    picture = np.full((2, 3, 4), 200, np.uint8)
    picture[..., 3] = [[0, 127, 128], [255, 1, 254]]
    assert _objects_from_alpha(picture).tolist() == [[0, 0, 1], [1, 0, 1]]


def test_flat_parts_are_connected_regions_and_outlines_are_none():
    picture = np.full((40, 40, 3), 255, np.uint8)
    picture[5:15, 5:15] = picture[25:35, 25:35] = (200, 30, 30)  # two squares of one colour are two parts
    picture[5:15, 15:16] = (230, 140, 140)  # an antialiased edge
    picture[25:35, 5:20] = np.arange(40, 100, 4, dtype=np.uint8)[None, :, None]  # smooth shading is one part
    picture[20, 20] = 0  # a speck
    expected = np.zeros((40, 40), int)
    expected[5:15, 5:15], expected[25:35, 5:20], expected[25:35, 25:35] = 1, 2, 3
    expected[5:15, 15:16] = expected[20, 20] = -1
    assert np.array_equal(_parts_from_flat_colours(picture, smallest=0.01), expected)


def test_regions_that_touch_at_corners_only_are_apart():
    picture = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((8, 8), np.uint8))
    parts = _parts_from_flat_colours(np.repeat(picture[..., None], 3, axis=2))
    assert len(np.unique(parts)) == 4


def test_the_colour_of_transparent_pixels_does_not_count():
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    picture[..., 3] = 0
    picture[4:12, 4:12] = (255, 255, 255, 255)
    assert np.array_equal(_parts_from_flat_colours(picture), _objects_from_alpha(picture))
    picture[..., 3] = 255 - picture[..., 3]  # now the object is a frame of noise, cut off at half opacity
    picture[..., :3] = 90
    assert np.array_equal(_parts_from_flat_colours(picture), 1 - _objects_from_alpha(picture))


def test_parts_of_a_smiley_are_its_background_face_eyes_and_mouth(smiley):
    objects, parts = _objects_from_alpha(smiley), _parts_from_flat_colours(smiley)
    assert 0.6 < objects.mean() < 0.85  # a disc that fills the picture covers π / 4
    yellow = (smiley.astype(int) == smiley[36, 5]).all(axis=2)
    assert (parts[yellow] == parts[36, 5]).mean() > 0.98  # the face is one part
    left_eye, right_eye = parts[24, 23], parts[24, 49]
    assert len({left_eye, right_eye, parts[36, 5], parts[0, 0], -1}) == 5
    corners = parts[[0, 0, 71, 71], [0, 71, 0, 71]]
    assert len(set(corners)) == 1  # one background, which the disc cuts into four
    assert parts.max() + 1 == 6  # background, face, two eyes, mouth, teeth
    assert (parts == -1).mean() < 0.12
    cells = cell_groups(_crop_labels(parts, 64), (8, 8))
    assert (cells == -1).mean() < 0.02


def slic_patches(picture):
    return _patterns_by_slic(picture, alike=0)


@pytest.mark.parametrize(("grouping", "spread"), [(_parts_by_felzenszwalb, 0.45), (slic_patches, 0.3)])
def test_a_photograph_falls_into_connected_regions_the_same_every_time(photo, grouping, spread):
    labels = grouping(photo)
    assert labels.shape == photo.shape[:2]
    assert labels.dtype == np.int64
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert 8 <= labels.max() + 1 <= 40
    assert np.array_equal(grouping(photo.copy()), labels)
    grey = photo.astype(float).mean(axis=2)
    within = sum(grey[labels == k].var() * (labels == k).mean() for k in range(labels.max() + 1))
    assert all(label(labels == k).max() == 1 for k in range(labels.max() + 1))
    assert within < spread * grey.var()  # alike in colour; as many squares have 0.70


def test_a_pattern_is_all_patches_of_one_look_and_no_others(photo):
    patches, patterns = slic_patches(photo), _patterns_by_slic(photo)
    colours = []
    for k in range(patches.max() + 1):
        assert len(np.unique(patterns[patches == k])) == 1
        colours.append(rgb2lab(photo)[patches == k].mean(axis=0))
    pattern_of = np.array([patterns[patches == k][0] for k in range(patches.max() + 1)])
    distances = np.linalg.norm(np.array(colours)[:, None] - np.array(colours), axis=-1)
    same = pattern_of[:, None] == pattern_of
    assert distances[same].max() <= 10
    assert 1 < patterns.max() + 1 < patches.max() + 1
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 16:32] = stripes[:, 48:] = (220, 220, 0)
    expected = np.where(stripes[..., 0] > 0, 1, 0)
    inner = np.abs(np.arange(64) % 16 - 7.5) < 6  # smoothing mixes the colours at the edges
    assert np.array_equal(_patterns_by_slic(stripes)[:, inner], expected[:, inner])


def test_felzenszwalb_tells_flat_shapes_apart():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = (250, 250, 0)
    labels = _parts_by_felzenszwalb(picture)
    # its smoothing may draw lines of their own along the edge
    assert len(np.unique(labels[:, :28])) == len(np.unique(labels[:, 36:])) == 1
    assert labels[0, 0] != labels[0, 63]


def test_a_blank_picture_has_one_part(photo):
    blank = np.full((64, 64, 3), 77, np.uint8)
    assert not _parts_from_flat_colours(blank).any()
    assert not _parts_by_felzenszwalb(blank).any()
    assert not _patterns_by_slic(blank).any()
    assert slic_patches(blank).max() > 8


# ---- masks on disk


def save(folder, name, values):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def test_masks_hold_values_palette_indices_or_colours(tmp_path):
    labels = np.array([[0, 1, 1, 3], [0, 0, 255, 3]], np.uint8)
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 3, 255]] = (9, 0, 1), (0, 200, 0), (7, 7, 7)
    save(tmp_path, "a/grey.png", labels)
    indexed = Image.fromarray(labels)
    indexed.putpalette(colours.tobytes())
    indexed.save(tmp_path / "a" / "index.PNG")
    indexed.save(tmp_path / "animated.gif")  # which packs the palette
    save(tmp_path, "deep.tif", labels.astype(np.uint16) * 257)
    save(tmp_path, "rgb.bmp", colours[labels])
    names = ["a/grey.jpg", "a/index.jpeg", "deep.webp", "rgb.png", "animated.png"]
    masks = _masks_of(names, tmp_path)
    _check_sizes(masks, names, [(2, 4)] * 5, tmp_path)
    grey, index, deep, rgb, gif = (_read_mask(path, [255, 65535]) for path in masks)
    assert grey.tolist() == index.tolist() == [[0, 1, 1, 3], [0, 0, -1, 3]]
    assert deep.tolist() == [[0, 257, 257, 771], [0, 0, -1, 771]]
    assert rgb.tolist() == [[0, 589825, 589825, 51200], [0, 0, 460551, 51200]]
    assert len({(int(a), int(b)) for a, b in zip(gif.ravel(), labels.ravel(), strict=True)}) == 4
    assert len(np.unique(gif)) == 4
    assert {labels.dtype for labels in (grey, index, deep, rgb, gif)} == {np.dtype(np.int64)}


def test_masks_of_names_with_dots_and_of_one_bit_are_read(tmp_path):
    save(tmp_path, "a.b.png", np.array([[True, False]]))
    assert _read_mask(*_masks_of(["a.b.jpg"], tmp_path)).tolist() == [[1, 0]]


def test_masks_that_do_not_match_the_images_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder of masks"):
        _masks_of(["one.jpg"], tmp_path / "nothing")
    mask = np.zeros((4, 6), np.uint8)
    save(tmp_path, "one.png", mask)
    save(tmp_path, "two.jpg", mask)
    with pytest.raises(
        UserError, match=r"2 of 3 images have no mask in .*: two.jpg, sub/three.jpg; .*two.png"
    ):
        _masks_of(["one.jpg", "two.jpg", "sub/three.jpg"], tmp_path)
    masks = _masks_of(["one.jpg"], tmp_path)
    with pytest.raises(UserError, match=r"1 of 1 masks .* one.png is 4x6, one.jpg 6x4"):
        _check_sizes(masks, ["one.jpg"], [(6, 4)], tmp_path)
    save(tmp_path, "one.tif", mask)
    with pytest.raises(UserError, match=r"1 images have more than one mask .* one: one.png and one.tif"):
        _masks_of(["one.jpg"], tmp_path)


def test_masks_that_hold_no_labels_are_refused(tmp_path):
    save(tmp_path, "half.tif", np.full((2, 2), 0.5, np.float32))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    save(tmp_path, "short.png", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    (tmp_path / "short.png").write_bytes((tmp_path / "short.png").read_bytes()[:1000])
    masks = _masks_of(names := ["half.jpg", "broken.jpg", "short.jpg"], tmp_path)
    with pytest.raises(UserError, match="holds fractions, not labels"):
        _read_mask(masks[0])
    with pytest.raises(UserError, match=r"cannot read the mask .*broken.png"):
        _read_mask(masks[1])
    with pytest.raises(UserError, match=r"cannot read the mask .*short.png"):
        _read_mask(masks[2])
    with pytest.raises(UserError, match=r"cannot read the mask .*broken.png"):
        _check_sizes(masks, names, [(2, 2), (2, 2), (64, 64)], tmp_path)


# ---- the way to the latent grid


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((72, 72), 64), ((128, 128), 64), ((427, 640), 64), ((501, 333), 64), ((129, 300), 64), ((30, 41), 64),
     ((259, 131), 33), ((64, 64), 64), ((64, 91), 64), ((1023, 517), 128)],
)  # fmt: skip
def test_labels_are_cropped_as_images_are(shape, size, axis):
    # A ramp of coordinates goes through the image's crop, whose resampling filters keep straight lines; the
    # labels are the pixels' own numbers. A pixel k reaches from k to k + 1.
    pixel = np.broadcast_to(np.arange(shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1)), shape)
    image = np.asarray(center_crop(Image.fromarray(pixel.astype(np.float32) + 0.5), size))
    labels = _crop_labels(pixel, size)
    assert labels.shape == image.shape == (size, size)
    inner = (slice(4, -4),) * 2  # filters are cut off at the border
    distance = image[inner] - (labels[inner] + 0.5)
    # weights cut to whole pixels bend the line here and there by a share of a pixel of the result
    assert np.abs(distance).max() < 0.5 + 0.35 * max(1, min(shape) / size)


def test_cropped_labels_agree_with_the_cropped_picture_but_at_edges():
    labels = np.zeros((301, 480), np.int64)
    labels[100:220, 150:260] = 1
    picture = Image.fromarray((labels * 255).astype(np.uint8)).convert("RGB")
    image = np.asarray(center_crop(picture, 64))[..., 0] > 127
    cropped = _crop_labels(labels, 64)
    edge = np.abs(np.diff(image.astype(int), axis=0)).sum() + np.abs(np.diff(image.astype(int), axis=1)).sum()
    assert 0 < (image != cropped).sum() + 1 <= edge / 4


def test_no_new_labels_come_into_being_by_cropping():
    labels = np.random.default_rng(0).integers(0, 5, (90, 70)) * 100 - 1
    assert set(np.unique(_crop_labels(labels, 32))) <= set(np.unique(labels))
    assert np.array_equal(_crop_labels(labels[:70], 70), labels[:70])


def brute_force_cells(labels, grid):
    out = np.empty(grid, np.int64)
    height, width = labels.shape
    for i in range(grid[0]):
        for j in range(grid[1]):
            members = [
                int(labels[y, x])
                for y in range(height)
                for x in range(width)
                if int((y + 0.5) * grid[0] / height) == i and int((x + 0.5) * grid[1] / width) == j
            ]
            # more pixels first; of equals -1 last, the smallest first
            out[i, j] = min(set(members), key=lambda g: (-members.count(g), g == -1, g))
    return out


@pytest.mark.parametrize(("shape", "grid"), [((16, 16), (4, 4)), ((18, 15), (9, 5)), ((13, 10), (5, 4))])
def test_cells_take_the_group_of_most_pixels(shape, grid):
    for seed in range(5):
        labels = np.random.default_rng(seed).choice([-1, 0, 3, 7000000], shape)
        assert np.array_equal(cell_groups(labels, grid), brute_force_cells(labels, grid))


def test_of_groups_that_cover_a_cell_equally_the_smallest_is_taken():
    labels = np.array([[5, 2, -1, 4], [2, 5, 4, -1]])
    assert cell_groups(labels, (1, 2)).tolist() == [[2, 4]]
    labels = np.array([[-1, -1, 7, 9]])
    assert cell_groups(labels, (1, 1)).tolist() == [[-1]]


def test_enlarging_keeps_cells_whole():
    cells = np.arange(12).reshape(2, 2, 3)
    assert np.array_equal(enlarged(cells, (4, 9)), np.kron(cells, np.ones((1, 2, 3), int)))
    assert np.array_equal(cell_groups(enlarged(cells, (7, 8))[0], (2, 3)), cells[0])
