import json
import multiprocessing
import os
import pickle
import re

import numpy as np
import pytest

from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError
from ldmae.images import shards
from ldmae.images.index import open_images
from ldmae.images.shards import ShardSource, expand_braces
from ldmae.images.sources import open_source
from ldmae.images.streams import open_stream
from ldmae.images.tar import _split_key


def write_shards(make, folder, count=3, each=4):
    folder.mkdir(exist_ok=True)
    for k in range(count):
        members = []
        for j in range(each):
            key = f"sub/{k}{j:03}"
            members.append((f"{key}.cls", str(j % 2).encode()))
            members.append((f"{key}.png", make.encoded(make.image(100 * k + j))))
            members.append((f"{key}.txt", b"a caption"))
        make.tar(folder / f"{k:03}.tar", members)
    return folder


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("x{008..010}.tar", ["x008.tar", "x009.tar", "x010.tar"]),
        ("x{8..10}", ["x8", "x9", "x10"]),
        ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]),
        ("{08..09}-{1..2}", ["08-1", "08-2", "09-1", "09-2"]),
    ],
)
def test_braces_expand(pattern, expected):
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("x{3..1}.tar", "backwards"), ("{0..999}{0..999999999}.tar", "names 1,000,000,000,000 files")],
)
def test_ranges_that_run_backwards_or_name_too_many_files_are_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        expand_braces(pattern)


@pytest.mark.parametrize("pattern", ["", "{000..002}.tar", "*.tar"])
def test_members_are_read_by_seeking_in_any_order(make, tmp_path, pattern):
    folder = write_shards(make, tmp_path / "set")
    source = open_source(DataConfig(source=str(folder / pattern) if pattern else str(folder)))
    assert isinstance(source, ShardSource)
    assert len(source) == 12
    assert source.classes == ["0", "1"]
    assert source.labels.tolist() == [0, 1] * 6
    for k in (11, 0, 5, 4):
        assert source.read(k).tobytes() == make.image(100 * (k // 4) + k % 4).tobytes()
    assert source.describe(5).endswith("001.tar:sub/1001.png")


def test_shard_that_has_not_changed_is_not_scanned_again(make, tmp_path, monkeypatch):
    folder = write_shards(make, tmp_path / "set")
    first = ShardSource(str(folder), cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1

    def never(path, *_):
        raise AssertionError(f"{path} was scanned again")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "scan", never)
        again = ShardSource(str(folder), cache_dir=tmp_path / "cache")
    assert again.read(7).tobytes() == first.read(7).tobytes()
    assert again.labels.tolist() == first.labels.tolist()
    make.tar(folder / "003.tar", [("z.png", make.encoded(make.image(9)))])
    assert len(ShardSource(str(folder), cache_dir=tmp_path / "cache")) == 13


def test_shard_that_was_written_to_since_is_refused(make, tmp_path):
    folder = write_shards(make, tmp_path / "set")
    source = ShardSource(str(folder))
    os.utime(folder / "001.tar", (1, 1))
    source.read(0)
    with pytest.raises(UserError, match=r"001\.tar:sub/1001\.png has been replaced or written to since"):
        source.read(5)


def test_shard_labelled_again_is_scanned_again_and_no_other(make, tmp_path, monkeypatch):
    folder = write_shards(make, tmp_path / "set")
    assert ShardSource(str(folder), cache_dir=tmp_path / "cache").labels.tolist() == [0, 1] * 6
    size, kinds = (folder / "001.tar").stat().st_size, ("cls", "png", "txt")
    contents = [{"cls": b"1", "txt": b"a caption", "png": make.encoded(make.image(j))} for j in range(4)]
    make.tar(folder / "001.tar", [(f"{j}.{kind}", contents[j][kind]) for j in range(4) for kind in kinds])
    assert (folder / "001.tar").stat().st_size == size  # tar pads its files
    scan, scanned = shards.scan, []
    monkeypatch.setattr(shards, "scan", lambda path, *rest: scanned.append(path.name) or scan(path, *rest))
    for _ in range(2):
        source = ShardSource(str(folder), cache_dir=tmp_path / "cache")
        assert source.labels.tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1]
    assert scanned == ["001.tar"]
    assert source.read(6).tobytes() == make.image(2).tobytes()
    make.tar(folder / "001.tar", [(f"{j}.png", make.encoded(make.image(j))) for j in range(4)])
    assert ShardSource(str(folder), cache_dir=tmp_path / "cache").labels.tolist()[4:8] == [-1] * 4


@pytest.mark.parametrize("name", ["offset", "label", "count", "values", "stamps"])
def test_damaged_scan_is_made_again(make, tmp_path, name):
    folder = write_shards(make, tmp_path / "set")
    before = ShardSource(str(folder), cache_dir=tmp_path / "cache")
    (cache,) = (tmp_path / "cache").iterdir()
    with np.load(cache) as stored:
        np.savez(cache, **{**stored, name: stored[name][:1]})
    again = ShardSource(str(folder), cache_dir=tmp_path / "cache")
    assert again.labels.tolist() == before.labels.tolist()
    assert again.read_bytes(7) == before.read_bytes(7)


def test_index_is_arrays_not_objects(make, tmp_path):
    source = ShardSource(str(write_shards(make, tmp_path / "set")))
    for name in ("_shard", "_offset", "_size", "labels"):
        assert isinstance(getattr(source, name), np.ndarray)
    assert isinstance(source._names.blob, bytes)


def test_no_more_shards_stay_open_than_allowed(make, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 2)
    source = ShardSource(str(write_shards(make, tmp_path / "set", count=5)))
    for k in [*range(20), *range(20)]:
        source.read(k)
    assert len(source._open) == 2


def read_all(source, expected, order):
    for k in order:
        assert source.read_bytes(k) == expected[k]


def test_handles_survive_fork_and_pickling(make, tmp_path):
    source = ShardSource(str(write_shards(make, tmp_path / "set")))
    expected = [source.read_bytes(k) for k in range(len(source))]
    context = multiprocessing.get_context("fork")
    orders = [np.random.default_rng(seed).integers(0, 12, 300).tolist() for seed in range(2)]
    children = [context.Process(target=read_all, args=(source, expected, order)) for order in orders]
    for child in children:
        child.start()
    read_all(source, expected, orders[0])
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert pickle.loads(pickle.dumps(source)).read_bytes(3) == expected[3]


def test_labels_come_as_names_from_cls_or_json(make, tmp_path):
    png = make.encoded(make.image(1))
    members = [
        ("a.png", png), ("a.json", json.dumps({"label": "dog"}).encode()),
        ("b.png", png), ("b.cls", b"cat\n"),
        ("c.png", png), ("c.json", b"{broken"),
        ("d.txt", b"no picture"),
    ]  # fmt: skip
    make.tar(tmp_path / "x.tar", members)
    source = ShardSource(str(tmp_path / "x.tar"))
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0, -1]


def test_shards_without_labels_are_one_class(make, tmp_path):
    make.tar(tmp_path / "leaves.tar", [(f"{k}.png", make.encoded(make.image(k))) for k in range(3)])
    source = ShardSource(str(tmp_path / "leaves.tar"))
    assert source.classes == ["leaves"]
    assert source.labels.tolist() == [0, 0, 0]


def test_archives_joined_end_to_end_are_read_to_the_last(make, tmp_path):
    folder = write_shards(make, tmp_path / "set")
    apart = open_source(DataConfig(source=str(folder)))
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(path.read_bytes() for path in sorted(folder.glob("*.tar"))))
    source = open_source(DataConfig(source=str(joined)))
    assert source.fingerprint() == apart.fingerprint()
    assert all(source.open(k).content == apart.open(k).content for k in range(12))
    joined.write_bytes(joined.read_bytes() + b"no archive".ljust(512))
    with pytest.raises(UserError, match="truncated or not a tar file"):
        open_source(DataConfig(source=str(joined)))


def test_truncated_compressed_missing_and_pictureless_shards_are_refused(make, tmp_path):
    folder = write_shards(make, tmp_path / "set")
    whole = (folder / "001.tar").read_bytes()
    for length in (
        len(whole) // 2,
        8000,
        700,
        100,
    ):  # between members (by chance), in data, in data, in a header
        (folder / "001.tar").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"001.tar is truncated"):
            ShardSource(str(folder))
    with pytest.raises(UserError, match=r"003.tar does not exist"):
        ShardSource(str(folder / "{000..003}.tar"))
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="uncompressed"):
        open_source(DataConfig(source=str(tmp_path / "x.tar.gz")))
    make.tar(tmp_path / "y.tar", [("a.txt", b"a")])
    with pytest.raises(UserError, match="no images"):
        ShardSource(str(tmp_path / "y.tar"))


def test_shard_whose_rest_was_never_downloaded_is_refused(make, tmp_path):
    shard = write_shards(make, tmp_path / "set") / "001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole + bytes(9 * 1024))  # an archive's last record may be longer than this one's
    assert len(ShardSource(str(shard))) == 4
    end = whole.index(b"sub/1002.cls")
    shard.write_bytes(whole[:end] + bytes(131_072))
    with pytest.raises(UserError, match=r"001.tar is truncated .*131072 zeros after .*truncate -s") as error:
        ShardSource(str(shard))
    with pytest.raises(UserError, match=r"after \d images: 131072 zeros .*check whether the file is whole"):
        list(open_stream(DataConfig(source=str(shard), stream=True, val="0.1")).iterate(0, 0))
    os.truncate(shard, int(re.search(r"truncate -s (\d+)", str(error.value))[1]))
    assert len(ShardSource(str(shard))) == 2
    os.truncate(shard, end)  # broken off between two members
    with pytest.raises(
        UserError, match=r"after \d images: no end mark after .*check whether the file is whole"
    ):
        list(open_stream(DataConfig(source=str(shard), stream=True, val="0.1")).iterate(0, 0))


# ---- layouts that are not webdataset's own


def opened(path, **settings):
    return open_source(DataConfig(source=str(path), **settings))


def test_key_ends_at_the_first_dot_and_a_mask_beside_the_picture_is_counted(make, tmp_path):
    assert _split_key("a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    picture = make.encoded(make.image(1))
    make.tar(
        tmp_path / "x.tar", [("a.cls", b"3"), ("a.mask.png", b"mask"), ("a.png", picture), ("a.txt", b"")]
    )
    source = opened(tmp_path / "x.tar")
    assert source.read_bytes(0) == picture
    assert source.facts == ["2 files ignored (1 .png, 1 .txt): a.mask.png, a.txt"]


def test_sample_of_several_pictures_is_refused_unless_one_is_named(make, tmp_path):
    members = [(f"a.{k}.png", make.encoded(make.image(k))) for k in range(2)]
    make.tar(tmp_path / "x.tar", members)
    with pytest.raises(
        UserError, match=r"the sample a of .*x\.tar holds 2 images \(0\.png, 1\.png\).*image_part"
    ):
        opened(tmp_path / "x.tar")
    assert opened(tmp_path / "x.tar", image_part="1.png").read_bytes(0) == members[1][1]
    with pytest.raises(UserError, match=r"no images in the shards .*the part 'depth.png'.* 2 files ignored"):
        opened(tmp_path / "x.tar", image_part="depth.png")


def test_pictures_with_dots_in_their_names_are_taken_one_by_one_where_asked(make, tmp_path):
    members = [(f"scan 1.v{k}.png", make.encoded(make.image(k))) for k in range(4)]
    make.tar(tmp_path / "x.tar", [*members, ("scan 1.v2.cls", b"cat")])
    source = opened(tmp_path / "x.tar", image_part="all")
    assert [source.read_bytes(k) for k in range(4)] == [content for _, content in members]
    assert source.labels.tolist() == [-1, -1, 0, -1]


def test_labels_that_follow_all_pictures_are_found(make, tmp_path):
    members = [(f"{k}.png", make.encoded(make.image(k))) for k in range(3)]
    labels = [(f"{k}.json", json.dumps({"Class_ID": [k % 2]}).encode()) for k in range(3)]
    make.tar(tmp_path / "x.tar", [*members, *labels, ("9.cls", b"1")])
    source = opened(tmp_path / "x.tar")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.facts == ["1 file ignored (1 labels without an image): 9.cls"]


@pytest.mark.parametrize("root", ["", "./", "set/images/"])
def test_folders_in_shards_are_classes_where_nothing_else_labels(make, tmp_path, root):
    for shard in range(2):
        places = [
            f"{root}{name}/{shard}.png" for name in ("Caf\u00e9", "Cafe\u0301s", "__MACOSX", "dog/young")
        ]
        make.tar(tmp_path / f"{shard}.tar", [(place, make.encoded(make.image(shard))) for place in places])
    source = opened(tmp_path)
    assert source.classes == ["Caf\u00e9", "Caf\u00e9s", "dog"]
    assert source.labels.tolist() == [0, 1, 2] * 2


def test_pictures_beside_class_folders_in_a_shard_are_refused(make, tmp_path):
    make.tar(tmp_path / "x.tar", [(name, make.encoded(make.image(1))) for name in ("a.png", "cat/b.png")])
    with pytest.raises(UserError, match="1 image beside folders and 1 in them"):
        opened(tmp_path / "x.tar")


def test_shards_named_after_classes_label_their_pictures(make, tmp_path):
    for number, name in enumerate(("n01440764", "n01443537")):
        members = [(f"{name}_{k}.JPEG", make.encoded(make.image(9 * number + k), "jpg")) for k in range(2)]
        make.tar(tmp_path / f"{name}.tar", members)
    source = opened(tmp_path)
    assert source.classes == ["n01440764", "n01443537"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "parts").mkdir()
    for number in range(2):  # these are parts of one set
        make.tar(tmp_path / "parts" / f"shard{number}.tar", [(f"{number}.png", make.encoded(make.image(1)))])
    assert opened(tmp_path / "parts").classes == ["parts"]


def test_labels_that_are_large_numbers_are_numbered(make, tmp_path):
    ids = (b"30000002", b"10000000000000000", b"30000002", b"9" * 5000, b"-7")
    members = [
        part
        for k, label in enumerate(ids)
        for part in ((f"{k}.png", make.encoded(make.image(k))), (f"{k}.cls", label))
    ]
    make.tar(tmp_path / "x.tar", members[:6])
    source = opened(tmp_path / "x.tar")
    assert source.classes == ["30000002", "10000000000000000"]
    assert source.labels.tolist() == [0, 1, 0]
    make.tar(tmp_path / "x.tar", members)
    assert opened(tmp_path / "x.tar").labels.tolist()[3:] == [2, -1]


def test_numbers_and_names_as_labels_and_shards_without_images_are_told(make, tmp_path):
    png = make.encoded(make.image(1))
    make.tar(tmp_path / "a.tar", [("0.png", png), ("0.cls", b"3"), ("1.png", png), ("1.cls", b"cat")])
    make.tar(tmp_path / "b.tar", [("captions.txt", b"none")])
    (tmp_path / "sub" / "deeper").mkdir(parents=True)
    (tmp_path / "sub" / "deeper" / "a.png").write_bytes(png)
    source = opened(tmp_path)
    assert "labels are numbers as well as names: 3, cat" in source.facts
    told = "2 files ignored (1 .txt, 1 folder): captions.txt, sub"
    assert source.facts[:2] == [told, "no image in 1 shard: b.tar"]


@pytest.mark.parametrize("inside", ["x.png", "x.tar"])
def test_images_and_shards_in_subfolders_beside_shards_are_not_passed_over(make, tmp_path, inside):
    members = [("a.png", make.encoded(make.image(1)))]
    make.tar(tmp_path / "a.tar", members)
    (tmp_path / "notes").mkdir()
    assert len(opened(tmp_path)) == 1
    (tmp_path / "more").mkdir()
    make.tar(tmp_path / "more" / "x.tar", members)
    (tmp_path / "more" / "x.tar").rename(tmp_path / "more" / inside)
    with pytest.raises(
        UserError, match=r"holds images or shards in more/ and 1 tar shard; .*data\.source='.*/\*\.tar'"
    ):
        opened(tmp_path)


def test_a_folder_called_as_a_shard_is_none_and_a_broken_link_is_named(make, tmp_path):
    (tmp_path / "0.tar").mkdir()
    make.tar(tmp_path / "1.tar", [("a.png", make.encoded(make.image(1)))])
    assert len(opened(tmp_path)) == 1
    (tmp_path / "2.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(UserError, match=r"2\.tar is a link to .*gone\.tar, which does not exist"):
        opened(tmp_path)


def test_endings_in_capitals_are_read_and_compressed_shards_are_named(make, tmp_path):
    make.tar(tmp_path / "a.TAR", [("A.PNG", make.encoded(make.image(1)))])
    assert len(opened(tmp_path)) == 1
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cannot seek in .*b\.tar\.gz.*data\.stream=true"):
        opened(tmp_path)


def test_folder_of_train_and_val_shards_is_refused_with_the_settings_to_use(make, tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        make.tar(tmp_path / name / "0.tar", [("a.png", make.encoded(make.image(1)))])
    with pytest.raises(UserError, match=r"look like splits .*use data\.source=.*train data\.val=.*val"):
        opened(tmp_path)


def test_what_was_taken_and_what_was_not_is_said_once_opened(make, tmp_path, capsys):
    members = [(f"{k}.png", make.encoded(make.image(k))) for k in range(40)]
    make.tar(tmp_path / "x.tar", [*members, *((f"{k}.cls", b"1") for k in range(1, 40)), ("a.npy", b"")])
    train, _ = open_images(DataConfig(source=str(tmp_path / "x.tar"), val="0.2"), tmp_path / "cache")
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("x: 40 images in 2 classes; ")
    assert "%, requested 20 %); 1 file ignored (1 .npy): a.npy; 1 image without a label" in said
    assert 'class "0" has no training image' in said
    assert all(fact in said for fact in train.facts)
