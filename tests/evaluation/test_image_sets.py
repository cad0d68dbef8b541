import json
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldmae.core.errors import UserError
from ldmae.core.files import EXTENSIONS
from ldmae.evaluation.image_sets import read_samples, write_samples_npz

from ..pictures import png_of_short_data


def images(count, size=(6, 4)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.manual_seed(0))


def channels_last(pixels):
    return pixels.permute(0, 2, 3, 1).numpy()


def save_pictures(folder, pixels, names):
    for pixel, name in zip(channels_last(pixels), names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixel).save(folder / name)


# ---- .npz


def test_a_written_npz_is_what_adms_evaluator_reads(tmp_path):
    pixels = images(7)
    write_samples_npz(tmp_path / "s.npz", pixels.split(3), np.arange(7), count=7)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert list(arrays) == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], channels_last(pixels))
        assert np.array_equal(arrays["arr_1"], np.arange(7))
        assert arrays["arr_1"].dtype == np.int64


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_batches_from_anywhere(tmp_path, save):
    pixels = images(7)
    save(tmp_path / "s.npz", channels_last(pixels), np.arange(7)[::-1])
    samples = read_samples(tmp_path / "s.npz")
    assert (len(samples), samples.size, samples.labels.tolist()) == (7, (6, 4), [6, 5, 4, 3, 2, 1, 0])
    for batch_size in (1, 3, 100):
        batches = list(samples.batches(batch_size))
        assert len(batches[0]) == min(batch_size, 7)
        assert torch.equal(torch.cat(batches), pixels)
    assert torch.equal(torch.cat(list(samples.batches(2, start=2, stop=5))), pixels[2:5])
    assert torch.equal(torch.cat(list(samples.batches(2, start=5, stop=99))), pixels[5:])


def test_an_npz_is_neither_written_nor_read_whole(tmp_path):
    batch = images(10, (128, 128))
    tracemalloc.start()
    write_samples_npz(tmp_path / "s.npz", (batch for _ in range(100)), count=1000)  # 49 MB
    samples = read_samples(tmp_path / "s.npz")
    total = sum(len(some) for some in samples.batches(10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 1000
    assert (tmp_path / "s.npz").stat().st_size > 49e6
    assert peak < 8e6
    assert samples.labels is None


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError, match="8 images were announced, 7 came"):
        write_samples_npz(tmp_path / "s.npz", images(7).split(3), count=8)
    assert list(tmp_path.iterdir()) == []


def test_a_written_npz_replaces_an_older_one(tmp_path):
    for count in (3, 2):
        write_samples_npz(tmp_path / "s.npz", [images(count)], count=count)
    assert len(read_samples(tmp_path / "s.npz")) == 2


BAD = {
    "no images: expected arr_0": {"samples": np.zeros((2, 4, 4, 3), np.uint8)},
    r"\(2, 4, 4, 3\) in float32; expected \(N, H, W, 3\) in uint8": {
        "arr_0": np.zeros((2, 4, 4, 3), np.float32)
    },
    r"\(2, 3, 4, 4\) in uint8": {"arr_0": np.zeros((2, 3, 4, 4), np.uint8)},
    "Fortran's order": {"arr_0": np.zeros((2, 4, 4, 3), np.uint8, order="F")},
    "holds no images": {"arr_0": np.zeros((0, 4, 4, 3), np.uint8)},
    "arr_1 of .* one whole number for each of the 2": {
        "arr_0": np.zeros((2, 4, 4, 3), np.uint8),
        "arr_1": np.zeros(3, np.int64),
    },
}


@pytest.mark.parametrize("message", BAD)
def test_an_npz_of_something_else_is_refused(tmp_path, message):
    np.savez(tmp_path / "s.npz", **BAD[message])
    with pytest.raises(UserError, match=message):
        read_samples(tmp_path / "s.npz")


def test_a_broken_npz_is_refused_before_or_while_it_is_read(tmp_path):
    path = tmp_path / "s.npz"
    write_samples_npz(path, [images(50)], count=50)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"is not an \.npz, or is broken"):
        read_samples(path)
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 255]) + whole[1001:])
    with pytest.raises(UserError, match=r"broken \(Bad CRC"):
        list(read_samples(path).batches(7))


def test_what_is_not_there_or_no_npz_is_refused(tmp_path):
    with pytest.raises(UserError, match="there are no samples at"):
        read_samples(tmp_path / "nothing.npz")
    (tmp_path / "s.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a folder of image files or an \.npz"):
        read_samples(tmp_path / "s.npy")


# ---- folders


def test_a_folder_is_read_by_name_whatever_was_written_first(tmp_path):
    pixels = images(4)
    save_pictures(tmp_path, pixels, ["d.png", "b.PNG", "a/c.png", "c.png"])
    (tmp_path / ".d.png").write_bytes(b"hidden")
    (tmp_path / "notes.txt").write_text("no picture")
    samples = read_samples(tmp_path)
    assert (len(samples), samples.size, samples.labels) == (4, (6, 4), None)
    expected = pixels[[2, 1, 3, 0]]
    for batch_size in (1, 3):
        assert torch.equal(torch.cat(list(samples.batches(batch_size))), expected)
    assert torch.equal(torch.cat(list(samples.batches(2, start=1, stop=3))), expected[1:3])


def test_what_the_sample_command_writes_is_read_without_its_grid(tmp_path):
    save_pictures(tmp_path, images(2), ["images/0.png", "images/1.png"])
    save_pictures(tmp_path, images(1, (20, 20)), ["grid.png"])
    (tmp_path / "samples.json").write_text(json.dumps({}))
    assert torch.equal(torch.cat(list(read_samples(tmp_path).batches(8))), images(2))


def test_pictures_are_taken_as_a_viewer_shows_them(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(tmp_path / "b.png")
    first, second = next(read_samples(tmp_path).batches(2))
    assert first[:, 0, 0].tolist() == [10, 20, 30]
    assert first[:, 1, 0].tolist() == [255, 255, 255]
    assert second.unique().tolist() == [7]


def test_odd_pictures_are_named(tmp_path):
    save_pictures(tmp_path, images(2), ["a.png", "b.png"])
    save_pictures(tmp_path, images(1, (5, 4)), ["c.png"])
    with pytest.raises(UserError, match=r"c\.png is 5x4, those before it 6x4"):
        list(read_samples(tmp_path).batches(2))
    Image.fromarray(np.zeros((6, 4), np.uint16)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"c\.png is grey of more than 8 bits"):
        list(read_samples(tmp_path).batches(2))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no images in .*\.png, \.jpg, \.jpeg"):
        read_samples(tmp_path)


# ---- folders of pictures that others made


def test_a_folder_of_samples_takes_the_endings_that_data_takes_and_names_what_it_passes_over(
    tmp_path, capsys
):
    assert set(EXTENSIONS) >= {".webp", ".bmp", ".tiff"}
    save_pictures(tmp_path, images(3), ["a.png", "b.bmp", "c.TIFF"])
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "d.heic").write_text("")
    (tmp_path / "@eaDir").mkdir()  # thumbnails of a NAS
    save_pictures(tmp_path / "@eaDir", images(1), ["a.png"])
    samples = read_samples(tmp_path)
    assert torch.equal(torch.cat(list(samples.batches(3))), images(3))
    assert "2 of 5 files ignored, not images: d.heic, notes.txt" in capsys.readouterr().err


def test_a_picture_that_claims_a_huge_size_is_refused_before_it_is_decoded(tmp_path):
    save_pictures(tmp_path, images(2), ["a.png", "b.png"])
    content = bytearray((tmp_path / "b.png").read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(UserError, match=r"b\.png can't be read"):
        list(read_samples(tmp_path).batches(2))


@pytest.mark.parametrize(
    "content",
    [png_of_short_data(), b"8BPS\0\1" + bytes(20), b"\x89PNG\r\n\x1a\n" + bytes(30), b"II*\0" + bytes(9)],
)
def test_a_damaged_picture_among_samples_is_named(tmp_path, content):
    save_pictures(tmp_path, images(1), ["a.png"])
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(UserError, match=r"b\.png can't be read"):
        list(read_samples(tmp_path).batches(2))


def npz(path, member="arr_0.npy", header=None, method=zipfile.ZIP_STORED, data=bytes(300)):
    described = str(header or {"descr": "|u1", "fortran_order": False, "shape": (5, 4, 5, 3)}).encode()
    described += b" " * (63 - (10 + len(described)) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(
            member, b"\x93NUMPY\x01\x00" + len(described).to_bytes(2, "little") + described + data
        )
    return path


@pytest.mark.parametrize(
    "header",
    [
        "[(",
        "{'descr': '|u1'}",
        {"descr": "<U3", "fortran_order": False, "shape": (2,)},
        {"descr": "|u1", "fortran_order": False, "shape": (10**12, 4, 5, 3)},
        {"descr": "|u1", "fortran_order": False, "shape": (-1, 4, 5, 3)},
        {"descr": "|u1", "fortran_order": False, "shape": (1, 10**6, 10**6, 3)},
    ],
)
def test_an_npz_whose_header_says_something_else_is_named(tmp_path, header):
    assert len(read_samples(npz(tmp_path / "s.npz"))) == 5
    with pytest.raises(UserError, match=r"s\.npz"):
        list(read_samples(npz(tmp_path / "s.npz", header=header)).batches(2))


@pytest.mark.parametrize(("place", "value"), [(8, 99), (6, 1)])  # the method of compression; encrypted
def test_an_npz_that_is_compressed_otherwise_or_encrypted_is_named(tmp_path, place, value):
    path = npz(tmp_path / "s.npz")
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\1\2")
    for start in (place, central + place + 2):
        content[start] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"s\.npz is not an \.npz, or is broken"):
        list(read_samples(path).batches(2))


def test_an_npz_whose_member_is_no_array_is_named(tmp_path):
    with pytest.raises(UserError, match=r"s\.npz is not an \.npz, or is broken"):
        list(read_samples(npz(tmp_path / "s.npz", member="arr_0")).batches(2))
