import os
import pickle
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

from ldmae.core.errors import UserError
from ldmae.images.base import Names, Subset, with_classes
from ldmae.images.settings import DataConfig
from ldmae.images.sources import FolderSource, is_stream, open_source


def test_subfolders_are_classes_in_order_with_nested_files(make, tmp_path):
    make.folder(tmp_path, {"dogs": [3], "cats": [1, 2], "cats/young": [5], "empty": []})
    source = FolderSource(tmp_path)
    assert source.classes == ["cats", "dogs"]
    assert source.labels.tolist() == [0, 0, 0, 1]
    assert [os.path.relpath(source.path(k), tmp_path) for k in range(4)] == [
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


def test_folder_that_cannot_be_looked_into_is_named(make, tmp_path, monkeypatch):
    make.folder(tmp_path, {"a": [1], "lost+found": [2], "secret": [3]})
    scandir = os.scandir

    def refuse(folder):
        if folder.endswith((b"secret", b"lost+found")):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot look into the folder .*secret \(Permission denied\)"):
        FolderSource(tmp_path)


def test_link_to_a_folder_above_does_not_loop(make, tmp_path):
    make.folder(tmp_path, {"a": [1], "b": [2]})
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert len(FolderSource(tmp_path)) == 2


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


def test_settings_go_through_omegaconf():
    config = OmegaConf.merge(OmegaConf.structured(DataConfig), {"source": "emoji", "classes": ["faces"]})
    assert OmegaConf.to_object(config) == DataConfig(source="emoji", classes=["faces"])
    assert not is_stream(DataConfig(source="emoji"))
    assert is_stream(DataConfig(source="https://example.org/a.tar"))
