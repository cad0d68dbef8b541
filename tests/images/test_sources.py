import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError
from ldmae.core.files import at_home
from ldmae.images.base import Names, Subset, with_classes
from ldmae.images.index import open_images
from ldmae.images.sources import FolderSource, is_stream, open_source
from ldmae.loading import load_autoencoder


def test_subfolders_are_classes_in_order_with_nested_files(make, tmp_path):
    make.folder(tmp_path, {"dogs": [3], "cats": [1, 2], "cats/young": [5], "empty": []})
    source = FolderSource(tmp_path)
    assert source.classes == ["cats", "dogs"]
    assert source.labels.tolist() == [0, 0, 0, 1]
    assert [os.path.relpath(source.describe(k), tmp_path) for k in range(4)] == [
        "cats/0001.png", "cats/0002.png", "cats/young/0005.png", "dogs/0003.png",
    ]  # fmt: skip
    assert source.read(3).tobytes() == make.image(3).tobytes()


def test_flat_folder_is_one_class_named_after_it(make, tmp_path):
    source = FolderSource(make.folder(tmp_path / "leaves", {"": [1, 2]}))
    assert source.classes == ["leaves"]
    assert source.labels.tolist() == [0, 0]


def test_hidden_and_foreign_files_are_ignored(make, tmp_path):
    make.folder(tmp_path, {"a": [1], ".trash": [2], "b": [3]})
    (tmp_path / "a" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "UPPER.JPG").write_bytes(make.encoded(make.image(4), "jpg"))
    assert FolderSource(tmp_path).labels.tolist() == [0, 0, 1]


def test_mixed_folder_is_refused(make, tmp_path):
    make.folder(tmp_path, {"": [1], "a": [2]})
    with pytest.raises(UserError, match="1 images directly in it and 1 in subfolders"):
        FolderSource(tmp_path)


def test_folder_of_splits_is_refused_with_the_settings_to_use(make, tmp_path):
    make.folder(tmp_path, {"train/cats": [1], "val/cats": [2]})
    with pytest.raises(UserError, match=r"data.source=.*train data.val=.*val"):
        FolderSource(tmp_path)
    make.folder(tmp_path / "alone", {"train/cats": [1]})
    with pytest.raises(UserError, match=r"\(train\): use data.source=.*alone/train$"):
        FolderSource(tmp_path / "alone")
    make.folder(tmp_path / "coco", {"train2017": [1], "val2017": [2]})
    with pytest.raises(UserError, match=r"look like splits \(train2017, val2017\)"):
        FolderSource(tmp_path / "coco")


def test_a_subfolder_without_images_is_told(make, tmp_path):
    make.folder(tmp_path, {"cats": [1], "dogs": [2]})
    (tmp_path / "birds").mkdir()
    assert FolderSource(tmp_path).facts == ["no image in 1 subfolder: birds"]


def test_a_pattern_of_images_is_told_to_give_their_folder(make, tmp_path):
    make.folder(tmp_path, {"cats": [1]})
    for pattern, folder in ((f"{tmp_path}/cats/*.png", f"{tmp_path}/cats"), (f"{tmp_path}/*", tmp_path)):
        with pytest.raises(
            UserError, match=f"no tar shard; .* give their folder, such as data.source={folder}$"
        ):
            open_source(DataConfig(source=pattern))


def test_folder_that_cannot_be_looked_into_is_named(make, tmp_path, monkeypatch):
    make.folder(tmp_path, {"a": [1], "lost+found": [2], "secret": [3]})
    scandir = os.scandir

    def refuse(folder):
        if folder.endswith((b"secret", b"lost+found")):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*secret \(Permission denied\)"):
        FolderSource(tmp_path)


def test_link_to_a_folder_above_does_not_loop(make, tmp_path):
    make.folder(tmp_path, {"a": [1], "b": [2]})
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert len(FolderSource(tmp_path)) == 2


def test_links_that_lead_nowhere_are_passed_over_and_named(make, tmp_path):
    make.folder(tmp_path, {"a": [1], "b": [2]})
    for name, target in (("itself.png", "itself.png"), ("gone.png", "nothing")):
        (tmp_path / "a" / name).symlink_to(target)
    (tmp_path / "itself").symlink_to("itself")
    source = open_source(DataConfig(source=str(tmp_path)))
    assert len(source) == 2
    assert "3 files ignored (3 leading nowhere)" in source.facts[0]


def test_file_names_that_are_no_unicode_are_read(make, tmp_path):
    if sys.platform == "darwin":
        pytest.skip("this file system takes Unicode names only")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(make.encoded(make.image(1)))
    source = pickle.loads(pickle.dumps(FolderSource(tmp_path)))
    assert source.read(0).size == (40, 32)


def test_folder_source_holds_no_python_object_per_file(make, tmp_path):
    make.folder(tmp_path, {"a": list(range(30)), "b": list(range(30, 60))})
    source = FolderSource(tmp_path)
    for value in vars(source).values():
        if isinstance(value, (list, tuple, dict, set)):
            assert len(value) <= 2  # class names
    assert isinstance(source._names, Names)
    assert isinstance(source._names.blob, bytes)
    assert source._names.offsets.dtype == np.int64


def test_fingerprint_follows_contents_and_labels_not_names(make, tmp_path):
    one = FolderSource(make.folder(tmp_path / "one" / "x", {"a": [1, 2], "b": [3]})).fingerprint()
    other = make.folder(tmp_path / "two" / "x", {"a": [1, 2], "b": [3]})
    (other / "a" / "0001.png").rename(other / "a" / "0000.png")
    assert FolderSource(other).fingerprint() == one
    (other / "a" / "0002.png").rename(other / "b" / "0002.png")
    assert FolderSource(other).fingerprint() != one


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_outside_utf_8_are_classes_as_any_other(make, tmp_path):
    other = os.fsdecode(b"caf\xe9")
    make.folder(tmp_path / "data", {"a": [1, 2, 3, 4], other: [5, 6, 7, 8]})
    train, held_out = open_images(DataConfig(source=str(tmp_path / "data"), val="0.3"), tmp_path / "cache")
    assert train.classes == held_out.classes == ["a", r"caf\udce9"]  # as text that any file can hold
    assert train.fingerprint() != held_out.fingerprint()


def test_results_of_runs_beside_the_images_are_no_class(make, tmp_path):
    make.folder(tmp_path / "photos", {"a": [1, 2, 3, 4], "b": [5, 6, 7, 8]})
    run = make.folder(tmp_path / "photos" / "runs" / "quick", {"samples": [9, 10]})
    (run / "stages.json").write_text("{}")
    source = FolderSource(tmp_path / "photos")
    assert source.classes == ["a", "b"]
    assert len(source) == 8
    assert "1 folder of results of ldmae" in source.facts[0]


def test_held_out_images_of_one_class_and_training_images_of_another_are_refused(make, tmp_path):
    make.folder(tmp_path / "train", {"cat": [1, 2, 3, 4]})
    make.folder(tmp_path / "val", {"dog": [5, 6, 7, 8]})
    with pytest.raises(UserError, match=r"data\.val has the class 'dog', which the training images lack"):
        open_images(DataConfig(source=f"{tmp_path}/train", val=f"{tmp_path}/val"), tmp_path / "cache")


@pytest.mark.parametrize("name", ["label_column", "image_column", "image_part"])
def test_settings_of_tables_and_shards_are_refused_for_folders(name, make, tmp_path):
    make.folder(tmp_path / "data", {"a": [1, 2, 3, 4], "b": [5, 6, 7, 8]})
    with pytest.raises(UserError, match=rf"data\.{name} is for .*, which .*data is not; omit it"):
        open_images(DataConfig(source=f"{tmp_path}/data", **{name: "x"}), tmp_path / "cache")


def test_subset_reads_through_and_pickles(make, tmp_path):
    source = FolderSource(make.folder(tmp_path, {"a": [1, 2], "b": [3]}))
    subset = pickle.loads(pickle.dumps(Subset(source, np.array([2, 0]))))
    assert subset.labels.tolist() == [1, 0]
    assert subset.describe(0) == source.describe(2)
    assert subset.read(1).tobytes() == source.read(0).tobytes()
    assert subset.fingerprint() != Subset(source, np.array([0, 2])).fingerprint()


def test_chosen_classes_are_kept_in_order_and_others_lose_their_label(make, tmp_path):
    make.folder(tmp_path, {"a": [1], "b": [2], "c": [3]})
    source = open_source(DataConfig(source=str(tmp_path), classes=["c", "a"]))
    assert source.classes == ["c", "a"]
    assert source.labels.tolist() == [1, -1, 0]
    with pytest.raises(UserError, match=r"lacks; did you mean|which .* lacks"):
        open_source(DataConfig(source=str(tmp_path), classes=["d"]))


@pytest.mark.parametrize("classes", [[], ["a", "b", "a"]])
def test_classes_that_are_none_or_named_twice_are_refused(classes):
    with pytest.raises(UserError, match=r"data\.classes must name each class once, at least one"):
        DataConfig(source="emoji", classes=classes)


def test_unlabelled_images_stay_unlabelled_when_classes_are_matched(make, tmp_path):
    source = FolderSource(make.folder(tmp_path, {"a": [1], "b": [2]}))
    partly = Subset(source, np.arange(2), labels=np.array([-1, 1]))
    assert with_classes(partly, ["b", "a"]).labels.tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "data.source is not set"),
        ("emojis", "did you mean 'emoji'"),
        ("/nowhere/at/all", "there is no folder or file /nowhere/at/all"),
        ("https://example.org/{00..03}.tar", "can only be streamed"),
    ],
)
def test_source_that_does_not_exist_is_named_with_the_next_move(name, message):
    with pytest.raises(UserError, match=message):
        open_source(DataConfig(source=name))


def test_misspelt_folder_gets_the_nearest_name(make, tmp_path):
    make.folder(tmp_path / "flowers", {"a": [1]})
    with pytest.raises(UserError, match="did you mean 'flowers'"):
        open_source(DataConfig(source=str(tmp_path / "flower")))


def test_empty_folder_and_single_picture_are_refused(make, tmp_path):
    with pytest.raises(UserError, match="no images in the folder"):
        open_source(DataConfig(source=str(tmp_path)))
    (tmp_path / "x.png").write_bytes(make.encoded(make.image(1)))
    with pytest.raises(UserError, match="expected a folder"):
        open_source(DataConfig(source=str(tmp_path / "x.png")))


def test_an_address_is_streamed():
    assert not is_stream(DataConfig(source="emoji"))
    assert is_stream(DataConfig(source="https://example.org/a.tar"))


# ---- what is passed over, and what a folder holds


def test_other_files_are_counted_and_what_systems_leave_is_no_class(make, tmp_path):
    make.folder(
        tmp_path,
        {"a": [1, 2], "b": [3], "@eaDir": [4], "#recycle": [5], "$RECYCLE.BIN": [6], "__MACOSX": [7]},
    )
    make.folder(tmp_path, {"a/@eaDir": [8], ".hidden": [9]})
    for name in ("notes.txt", "a/x.heic", "b/y.heic", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    source = FolderSource(tmp_path)
    assert source.classes == ["a", "b"]
    assert len(source) == 3
    (fact,) = source.facts
    assert fact.startswith("3 files ignored (2 .heic, 1 .txt): ")
    assert "notes.txt" in fact


@pytest.mark.parametrize("ending", ["ppm", "pgm", "avif"])
def test_rarer_formats_are_read(make, tmp_path, ending):
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads none")
    make.folder(tmp_path, {"a": [1]})
    image = make.image(2).convert("L" if ending == "pgm" else "RGB")
    image.save(tmp_path / "a" / f"x.{ending}", {"pgm": "PPM"}.get(ending, ending.upper()))
    assert len(FolderSource(tmp_path)) == 2


def test_two_spellings_of_an_accent_are_one_class_everywhere(make, tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    make.folder(tmp_path / "train", {decomposed: [1, 2, 3], "tea": [4, 5]})
    make.folder(tmp_path / "val", {composed: [6], "tea": [7]})
    config = DataConfig(
        source=str(tmp_path / "train"), val=str(tmp_path / "val"), classes=[decomposed, "tea"]
    )
    train, held_out = open_images(config, tmp_path / "cache", progress=False)
    assert train.classes == held_out.classes == [composed, "tea"]
    assert (train.labels >= 0).all()
    assert held_out.labels.tolist() == [0, 1]


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_pictures_win_over_a_table_without_images_and_are_not_chosen_over_one_with(make, tmp_path):
    make.folder(tmp_path / "one", {"a": [1], "b": [2]})
    write_parquet(tmp_path / "one" / "a-metadata.parquet", file_name=["a/0001.png"], text=["x"])
    assert isinstance(open_source(DataConfig(source=str(tmp_path / "one"))), FolderSource)
    make.tar(tmp_path / "two.tar", [("a.png", make.encoded(make.image(1)))])
    (tmp_path / "two").mkdir()
    (tmp_path / "two.tar").rename(tmp_path / "two" / "x.tar")
    write_parquet(tmp_path / "two" / "a.parquet", key=["a"])
    assert len(open_source(DataConfig(source=str(tmp_path / "two")))) == 1
    write_parquet(tmp_path / "one" / "b.parquet", image=[make.encoded(make.image(1))])
    (tmp_path / "one" / "a-metadata.parquet").unlink()
    with pytest.raises(UserError, match=r"a table with images \(b\.parquet\) beside pictures"):
        open_source(DataConfig(source=str(tmp_path / "one")))
    make.folder(tmp_path / "two", {"": [3]})
    with pytest.raises(UserError, match="1 image and 1 tar shard;"):
        open_source(DataConfig(source=str(tmp_path / "two")))


@pytest.mark.parametrize("first", ["0.parquet", "z.parquet"])  # whatever the folder lists first
def test_table_beside_pictures_of_a_class_is_another_file_and_in_a_folder_of_its_own_is_refused(
    make, tmp_path, first
):
    content = [make.encoded(make.image(1))]
    folder = make.folder(tmp_path / "set", {"a": [1, 2], "b": [3]})
    write_parquet(folder / "a" / first, image=content)
    source = open_source(DataConfig(source=str(folder)))
    assert len(source) == 3
    assert len(source.facts) == 1
    assert source.facts[0].startswith("1 file ignored (1 .parquet): ")
    assert source.facts[0].endswith(f"set/a/{first}")
    write_parquet(folder / "data" / first, image=content)
    with pytest.raises(UserError, match=rf"a table with images \({first}\) beside pictures"):
        open_source(DataConfig(source=str(folder)))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/y", f"{{0..{'9' * 300}}}.tar", "[" * 300])
def test_name_that_no_system_takes_does_not_exist(name):
    with pytest.raises(UserError, match=r"there is no folder or file|does not exist"):
        open_source(DataConfig(source=name))


def test_deep_grey_is_scaled_by_the_range_of_all_images_and_said(make, tmp_path):
    for k, top in enumerate((4000, 1000)):  # 12 bits in files of 16
        pixels = np.linspace(0, top, 32 * 32).reshape(32, 32).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        Image.fromarray(np.rot90(pixels)).save(tmp_path / f"{k}-turned.png")
    config = DataConfig(source=str(tmp_path), val="0.5")
    sources = open_images(config, tmp_path / "cache", progress=False)
    peaks = {Path(s.describe(k)).name: np.asarray(s.read(k)).max() for s in sources for k in range(len(s))}
    assert peaks["0.png"] == round(4000 / 4095 * 255)
    assert peaks["1.png"] == round(1000 / 4095 * 255)
    assert "grey deeper than 8 bits is scaled: 0 is black, 4095 white" in sources[0].facts


def test_home_is_meant_by_a_tilde_wherever_a_path_is_typed(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make.folder(tmp_path / "set", {"": [1, 2]})
    assert len(open_source(DataConfig(source="~/set"))) == 2
    words = [
        "~/x",
        "autoencoder.source=~/x",
        "data={~/a,~/b}.tar",
        "official:~/x",
        "https://host/~user/a.tar",
    ]
    home = str(tmp_path)
    assert [at_home(word) for word in words] == [
        f"{home}/x",
        f"autoencoder.source={home}/x",
        f"data={{{home}/a,{home}/b}}.tar",
        f"official:{home}/x",
        words[4],
    ]
    with pytest.raises(UserError, match=f"{home}/set holds no diffusers autoencoder"):
        load_autoencoder("~/set")


def test_what_is_passed_over_among_held_out_images_is_said(make, tmp_path):
    make.folder(
        tmp_path, {f"{side}/{name}": [k] for k, name in enumerate(("cats", "dogs")) for side in ("a",)}
    )
    make.folder(tmp_path, {"a/cats": [5, 6, 7], "b/cats": [5, 20, 21, 22]})  # 5 is on both sides
    (tmp_path / "b" / "cats" / "more.heic").write_bytes(b"x")
    mirrored = make.image(6).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(tmp_path / "b" / "cats" / "mirrored.png")
    for _ in range(2):  # the second time from what was kept
        train, unseen = open_images(DataConfig(source=f"{tmp_path}/a", val=f"{tmp_path}/b"), tmp_path / "c")
        for fact in (
            "1 of 5 images are training images",
            "1 of 5 images look like training images",
            "1 file ignored (1 .heic)",
            'class "dogs" has no image',
        ):
            assert any(told.startswith(f"held out: {fact}") for told in train.facts), train.facts
        assert np.isin(unseen.group, train.group).sum() == 2


def test_a_built_in_set_is_told_from_a_folder_of_its_name(make, tmp_path, monkeypatch):
    make.folder(tmp_path, {"digits/cats": [1], "digits/dogs": [2]})
    monkeypatch.chdir(tmp_path)
    assert open_source(DataConfig(source="digits")).facts == [
        "the built-in set, not the folder digits here, which is data.source=./digits"
    ]
    assert len(open_source(DataConfig(source="./digits"))) == 2


def test_an_outer_folder_that_makes_all_images_one_class_is_said(make, tmp_path):
    source = FolderSource(make.folder(tmp_path, {"Images/cats": [1], "Images/dogs": [2]}))
    assert source.facts == [
        f"2 folders in {tmp_path}/Images are one class; for a class each give data.source={tmp_path}/Images"
    ]
    assert FolderSource(make.folder(tmp_path / "flat", {"only": [1, 2]})).facts == []


def test_a_source_of_ones_own_is_checked(tmp_path, monkeypatch):
    (tmp_path / "own_images.py").write_text(
        "from PIL import Image\n"
        "class Own:\n"
        "    name, licence, classes, labels = 'own', '', ('a', 'b'), [0, 1, -1]\n"
        "    def __len__(self): return 3\n"
        "    def read(self, k): return Image.effect_noise((40, 40), 90 + k).convert('RGBA')\n"
        "    def describe(self, k): return str(k)\n"
        "    def fingerprint(self): return 'own'\n"
        "class Beyond(Own): labels = [0, 1, 2]\n"
        "class Short(Own): labels = [0, 1]\n"
        "class Empty(Own):\n"
        "    labels = []\n"
        "    def __len__(self): return 0\n"
        "class Array(Own):\n"
        "    def read(self, k): return [[0]]\n"
        "class Numbered(Own): classes = [7, 8]\n"
        "class Broken(Own):\n"
        "    def __init__(self): raise OSError('no disk')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    train, held_out = open_images(
        DataConfig(source="own_images:Own", val="0.4"), tmp_path / "c", progress=False
    )
    assert sorted([*train.labels, *held_out.labels]) == [-1, 0, 1]
    for name, told in (
        ("Beyond", "one of them 2; expected 3 indices of its classes, up to 1, -1 for none"),
        ("Short", r"labels of shape \(2,\); expected 3 indices"),
        ("Empty", "gave Empty, without images; expected"),
        ("Numbered", "gave Numbered, without texts as name, licence and classes"),
        ("Broken", r"own_images:Broken\(\) failed: OSError: no disk"),
    ):
        with pytest.raises(UserError, match=told):
            open_source(DataConfig(source=f"own_images:{name}"))
    with pytest.raises(UserError, match=r"read\(\) gave list, expected a PIL image"):
        open_images(DataConfig(source="own_images:Array", val="0.4"), tmp_path / "a", progress=False)


def test_the_folder_of_a_preset_that_is_missing_says_how_it_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the relative name reads like OWNER/NAME
    for folder in (tmp_path, "."):
        with pytest.raises(UserError, match=r"`ldmae prepare emoji-sets .*emoji-three --set twemoji"):
            open_source(DataConfig(source=str(Path(folder, "emoji-three", "train"))))
