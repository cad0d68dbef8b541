import logging
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError
from ldmae.images import index as module
from ldmae.images.builtin import EmojiSource, PhotoSource
from ldmae.images.index import build_index, open_images, split_by_group
from ldmae.images.sources import FolderSource


def opened(folder, cache, **changes):
    return open_images(DataConfig(**{"source": str(folder), "val": "0.3", **changes}), cache, progress=False)


def names(source):
    return {source.describe(k).rpartition("/")[2] for k in range(len(source))}


def contents(source):
    return {source.read(k).tobytes() for k in range(len(source))}


def test_split_is_complete_disjoint_and_about_the_share(make, tmp_path):
    make.folder(tmp_path / "set", {"a": list(range(60)), "b": list(range(60, 100))})
    train, held_out = opened(tmp_path / "set", tmp_path / "cache")
    assert len(train) + len(held_out) == 100
    assert not contents(train) & contents(held_out)
    assert 15 <= len(held_out) <= 45
    assert train.classes == held_out.classes == ["a", "b"]


def test_split_is_stable_when_files_are_added_and_renamed(make, tmp_path):
    make.folder(tmp_path / "set", {"": list(range(40))})
    before = contents(opened(tmp_path / "set", tmp_path / "cache")[1])
    (tmp_path / "set" / "0003.png").rename(tmp_path / "set" / "zebra.png")
    make.folder(tmp_path / "set", {"": list(range(40, 60))})
    train, held_out = opened(tmp_path / "set", tmp_path / "cache")
    assert before <= contents(held_out)
    assert not before & contents(train)


def test_larger_share_holds_out_a_superset(make, tmp_path):
    make.folder(tmp_path / "set", {"": list(range(40))})
    small = names(opened(tmp_path / "set", tmp_path / "cache", val="0.1")[1])
    large = names(opened(tmp_path / "set", tmp_path / "cache", val="0.5")[1])
    assert small < large


def test_near_duplicates_stay_on_one_side(make, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for seed in range(40):
        image = make.image(seed, (96, 80))
        image.save(folder / f"{seed:02}-original.png")
        image.save(folder / f"{seed:02}-jpeg.jpg", quality=60)
        image.resize((60, 50), Image.Resampling.BICUBIC).save(folder / f"{seed:02}-small.webp", quality=90)
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"{seed:02}-mirrored.png")
        image.save(folder / f"{seed:02}-copy.png")
    group = build_index(FolderSource(folder), None, progress=False).group.reshape(40, 5)
    assert (group == group[:, :1]).all()
    assert len(np.unique(group)) == 40
    train, held_out = opened(folder, tmp_path / "cache")
    assert not {name[:2] for name in names(train)} & {name[:2] for name in names(held_out)}


def test_small_local_differences_are_no_near_duplicates(tmp_path):
    for k, mouth in enumerate([(20, 44, 44, 48), (26, 40, 38, 54), (20, 40, 44, 56)]):
        face = Image.new("RGB", (64, 64), "white")
        face.paste((255, 200, 60), (4, 4, 60, 60))
        face.paste("black", (20, 20, 26, 28))
        face.paste("black", (38, 20, 44, 28))
        face.paste("black", mouth)
        face.save(tmp_path / f"{k}.png")
    group = build_index(FolderSource(tmp_path), None, progress=False).group
    assert len(np.unique(group)) == 3


def test_unreadable_images_are_named_skipped_and_counted(make, tmp_path, caplog):
    make.folder(tmp_path / "set", {"": list(range(20))})
    whole = (tmp_path / "set" / "0007.png").read_bytes()
    (tmp_path / "set" / "0007.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"1 of the 20 images of set are unreadable.*0007\.png.*=0\.05"):
        opened(tmp_path / "set", tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        train, held_out = opened(tmp_path / "set", tmp_path / "cache", max_unreadable=0.05)
    assert len(train) + len(held_out) == 19
    assert "0007.png" not in names(train) | names(held_out)
    assert "skipped 1 unreadable of 20 images" in caplog.text
    assert train.unreadable == 1
    assert "0007.png" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "an empty file"), (b"<html>gone</html>", "not an image of a known format")],
)
def test_reason_of_an_unreadable_image_can_be_read(make, tmp_path, content, reason):
    make.folder(tmp_path, {"": [1]})
    (tmp_path / "bad.png").write_bytes(content)
    (broken,) = build_index(FolderSource(tmp_path), None, progress=False).broken
    assert f"bad.png ({reason}" in broken
    assert "0x" not in broken  # no address in the memory of a program that has ended
    with pytest.raises(OSError, match=reason):
        FolderSource(tmp_path).read(1)


@pytest.mark.parametrize("quality", [30, 95])
def test_truncated_jpeg_is_unreadable(tmp_path, quality):
    image = Image.effect_noise((300, 300), 60)
    image.save(tmp_path / "a.jpg", quality=quality)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(content[: len(content) * 9 // 10])
    index = build_index(FolderSource(tmp_path), None, progress=False)
    assert index.readable.tolist() == [True, False]
    assert "b.jpg" in index.broken[0]


def test_second_start_reads_the_cache_and_looks_at_nothing(make, tmp_path, monkeypatch):
    make.folder(tmp_path / "set", {"": list(range(20))})
    (tmp_path / "set" / "bad.png").write_bytes(b"bad")
    first = opened(tmp_path / "set", tmp_path / "cache", max_unreadable=0.1)

    def never(*_):
        raise AssertionError("looked again")

    monkeypatch.setattr(module, "_look", never)
    second = opened(tmp_path / "set", tmp_path / "cache", max_unreadable=0.1)
    assert [source.fingerprint() for source in first] == [source.fingerprint() for source in second]
    with pytest.raises(UserError, match=r"bad\.png"):
        opened(tmp_path / "set", tmp_path / "cache")


def test_images_mended_after_a_refusal_are_read_though_as_large_as_before(make, tmp_path):
    make.folder(tmp_path / "set", {"": list(range(20))})
    path, cache = tmp_path / "set" / "0007.png", tmp_path / "cache"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    for _ in range(2):  # the second reads the kept index
        with pytest.raises(UserError, match=r"0007\.png"):
            opened(tmp_path / "set", cache)
    path.write_bytes(whole)
    assert sum(map(len, opened(tmp_path / "set", cache))) == 20


def bitmaps(make, root, first):
    """Writes pictures whose files have the same names, sizes and times whatever is in them."""
    for k in range(20):
        path = root / "ab"[k % 2] / f"{k}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make.encoded(make.image(first + k), "bmp"))
        os.utime(path, ns=(10**18, 10**18))
    return root


def test_images_of_equal_names_sizes_and_times_are_not_taken_for_one_another(make, tmp_path):
    one, other = (bitmaps(make, tmp_path / name, first) for name, first in (("x/set", 0), ("y/set", 100)))
    train, held_out = opened(one, tmp_path / "cache", val=str(other))
    assert (len(train), len(held_out)) == (20, 20)
    assert train.fingerprint() != held_out.fingerprint()


def test_file_of_another_content_is_read_again_and_no_other(make, tmp_path, monkeypatch):
    folder = bitmaps(make, tmp_path / "set", 0)
    before = [source.fingerprint() for source in opened(folder, tmp_path / "cache")]
    (folder / "a" / "4.bmp").write_bytes(make.encoded(make.image(77), "bmp"))
    looked = []
    with monkeypatch.context() as patch:
        look = module._look
        patch.setattr(module, "_look", lambda source, k: looked.append(source.describe(k)) or look(source, k))
        train, held_out = opened(folder, tmp_path / "cache")
    assert looked == [str(folder / "a" / "4.bmp")]
    assert [train.fingerprint(), held_out.fingerprint()] != before
    fresh = opened(folder, tmp_path / "other")
    assert [s.fingerprint() for s in fresh] == [train.fingerprint(), held_out.fingerprint()]
    assert [s.fingerprint() for s in opened(folder, tmp_path / "cache")] == [s.fingerprint() for s in fresh]


def test_images_moved_elsewhere_keep_their_fingerprint_and_labels_are_part_of_it(make, tmp_path):
    folder = make.folder(tmp_path / "set", {"a": list(range(10)), "b": list(range(10, 20))})
    before = opened(folder, tmp_path / "cache")[0].fingerprint()
    folder.rename(tmp_path / "moved")
    assert opened(tmp_path / "moved", tmp_path / "cache")[0].fingerprint() == before
    (tmp_path / "moved" / "b").rename(tmp_path / "moved" / "c")
    assert opened(tmp_path / "moved", tmp_path / "cache")[0].fingerprint() != before


@pytest.mark.parametrize("damage", ["empty", "cut", "of another kind", "of another length", "a folder"])
def test_damaged_index_is_made_again(make, tmp_path, damage):
    folder = make.folder(tmp_path / "set", {"": list(range(20))})
    before = [source.fingerprint() for source in opened(folder, tmp_path / "cache")]
    (cache,) = (tmp_path / "cache").iterdir()
    content = cache.read_bytes()
    if damage == "empty":
        cache.write_bytes(b"")
    elif damage == "cut":
        cache.write_bytes(content[: len(content) // 2])
    elif damage == "of another kind":
        np.savez(cache, stamps=np.zeros(3))
    elif damage == "of another length":
        with np.load(cache) as stored:
            np.savez(cache, **{**stored, "group": stored["group"][:3]})
    else:
        cache.unlink()
        cache.mkdir()
    for _ in range(2):
        assert [source.fingerprint() for source in opened(folder, tmp_path / "cache")] == before


def test_at_least_one_image_on_either_side(make, tmp_path):
    make.folder(tmp_path / "set", {"": [1, 2, 3]})
    for share in ("0.000001", "0.999999"):
        train, held_out = opened(tmp_path / "set", tmp_path / "cache", val=share)
        assert {len(train), len(held_out)} == {1, 2}


def test_too_few_images_and_all_alike_are_refused(make, tmp_path):
    make.folder(tmp_path / "one", {"": [1]})
    with pytest.raises(UserError, match="too few"):
        opened(tmp_path / "one", tmp_path / "cache")
    make.folder(tmp_path / "same", {"": [1]})
    (tmp_path / "same" / "again.png").write_bytes((tmp_path / "same" / "0001.png").read_bytes())
    with pytest.raises(UserError, match="near-duplicates of one another"):
        opened(tmp_path / "same", tmp_path / "cache")


@pytest.mark.parametrize("val", ["0", "1.5", "-0.1", "nan"])
def test_share_outside_zero_to_one_is_refused(make, tmp_path, val):
    make.folder(tmp_path / "set", {"": [1, 2]})
    with pytest.raises(UserError, match=r"data\.val must be a share"):
        opened(tmp_path / "set", tmp_path / "cache", val=val)


def test_held_out_folder_is_matched_by_class_names(make, tmp_path):
    make.folder(tmp_path / "train", {"a": [1], "b": [2], "c": [3]})
    make.folder(tmp_path / "val", {"c": [4], "a": [5]})
    train, held_out = opened(tmp_path / "train", tmp_path / "cache", val=str(tmp_path / "val"))
    assert train.labels.tolist() == [0, 1, 2]
    assert held_out.labels.tolist() == [0, 2]
    assert held_out.classes == train.classes
    make.folder(tmp_path / "val", {"bb": [6]})
    with pytest.raises(UserError, match=r"'bb', which the training images lack"):
        opened(tmp_path / "train", tmp_path / "cache", val=str(tmp_path / "val"))


def test_training_images_cannot_be_the_held_out_ones(make, tmp_path):
    make.folder(tmp_path / "train", {"": [1, 2]})
    for val in (tmp_path / "train", tmp_path / "train" / ".." / "train"):
        with pytest.raises(UserError, match=r"are the training images themselves; .*data\.val=0\.05"):
            opened(tmp_path / "train", tmp_path / "cache", val=str(val))


def test_held_out_images_that_are_training_images_are_refused(make, tmp_path):
    make.folder(tmp_path / "train", {"a": [1, 2], "b": [3, 4]})
    with pytest.raises(UserError, match="train has no splits, but 'val' was requested"):
        opened(tmp_path / "train", tmp_path / "cache", val="split:val")
    with pytest.raises(UserError, match=r"2 of the 2 images that data.val=.* holds out are training images"):
        opened(tmp_path / "train", tmp_path / "cache", val=str(make.folder(tmp_path / "b", {"b": [3, 4]})))


def test_two_sources_that_keep_what_was_found_in_one_place_stay_apart(make, tmp_path, monkeypatch):
    make.folder(tmp_path / "train", {"a": [1, 2]})
    make.folder(tmp_path / "val", {"a": [3, 4, 5]})  # as sources of one's own by the same name do
    monkeypatch.setattr(module, "_looks_of", lambda source, folder: folder / "images.npz")
    train, held_out = opened(tmp_path / "train", tmp_path / "cache", val=str(tmp_path / "val"))
    assert not np.isin(held_out.group, train.group).any()
    assert not any("look like" in fact for fact in train.facts)


def test_held_out_images_without_subfolders_are_refused(make, tmp_path):
    make.folder(tmp_path / "train", {"a": [1], "b": [2]})
    make.folder(tmp_path / "val", {"": [4, 5]})
    with pytest.raises(UserError, match="are not in subfolders, so their classes are unknown"):
        opened(tmp_path / "train", tmp_path / "cache", val=str(tmp_path / "val"))


def test_chosen_classes_move_no_image_to_the_other_side(make, tmp_path):
    make.folder(tmp_path / "set", {"a": list(range(30)), "b": list(range(30, 60))})
    _, held_out = opened(tmp_path / "set", tmp_path / "cache")
    _, chosen = opened(tmp_path / "set", tmp_path / "cache", classes=["b"])
    assert contents(chosen) == contents(held_out)
    assert chosen.classes == ["b"]


def test_two_flat_folders_are_the_same_class(make, tmp_path):
    make.folder(tmp_path / "train", {"": [1, 2]})
    make.folder(tmp_path / "val", {"": [3]})
    train, held_out = opened(tmp_path / "train", tmp_path / "cache", val=str(tmp_path / "val"))
    assert train.classes == held_out.classes == ["train"]
    assert held_out.labels.tolist() == [0]


def near_duplicates(make, folder, groups, each):
    """Writes groups of pictures that are the same but for the quality they were saved at."""
    folder.mkdir(parents=True)
    for seed in range(groups):
        for k in range(each):
            content = make.encoded(make.image(seed, (64, 64)), "jpg", quality=95 - k)
            (folder / f"{seed:03}-{k}.jpg").write_bytes(content)
    return folder


def test_share_held_out_does_not_grow_with_the_size_of_groups(make, tmp_path):
    index = build_index(FolderSource(near_duplicates(make, tmp_path / "set", 120, 6)), None, progress=False)
    assert len(np.unique(index.group)) == 120
    assert 0.02 < (index.group < np.uint64(0.1 * 2**64)).mean() < 0.2  # the smallest of six: 0.47
    assert (index.group.reshape(120, 6) == index.group.reshape(120, 6)[:, :1]).all()


def test_images_without_near_duplicates_stay_where_their_content_puts_them(make, tmp_path):
    index = build_index(FolderSource(make.folder(tmp_path, {"": list(range(30))})), None, progress=False)
    assert (index.group == index.content).all()


def test_share_that_is_far_from_what_was_asked_is_said(make, tmp_path):
    folder = near_duplicates(make, tmp_path / "set", 3, 8)
    train, held_out = opened(folder, tmp_path / "cache", val="0.05")
    assert len(held_out) == 8
    assert any("33.3 % held out is far from the 5 %" in fact for fact in train.facts)


def test_class_never_loses_its_only_image(make, tmp_path):
    layout = {"many": list(range(40)), **{f"one{k}": [100 + k] for k in range(12)}}
    train, held_out = opened(make.folder(tmp_path / "set", layout), tmp_path / "cache", val="0.5")
    assert set(train.labels.tolist()) == set(range(13))
    assert set(held_out.labels.tolist()) == {0}
    make.folder(tmp_path / "ones", {"a": [1], "b": [2]})
    with pytest.raises(UserError, match="every class has one image"):
        opened(tmp_path / "ones", tmp_path / "cache")


def pictures(kind, count):
    """Returns pictures that are no near-duplicates of one another, or of a built-in set, drawn at random."""
    if kind not in ("emoji", "photographs"):
        return [sparse_picture(kind, seed) for seed in range(count)]
    source = EmojiSource() if kind == "emoji" else PhotoSource(stride=64)
    drawn = np.random.default_rng(0).permutation(len(source))[:count]
    return [source.read(int(k)) for k in drawn]


def sparse_picture(kind, seed):
    """Returns a picture with little in it, different for every seed."""
    rng = np.random.default_rng(seed)
    if kind == "faint noise":
        return Image.fromarray((128 + rng.normal(0, 2, (96, 96, 3))).clip(0, 255).astype(np.uint8))
    image = Image.new("RGB", (96, 96), "white" if kind == "text" else "black")
    draw = ImageDraw.Draw(image)
    if kind == "text":
        for row in range(6, 90, 12):
            x = 6
            while x < 84:
                width = int(rng.integers(4, 16))
                draw.rectangle((x, row, min(x + width, 90), row + 6), fill="black")
                x += width + 3
    else:
        radius = {"dots": 2, "cells": 7, "stars": 0}[kind]
        for x, y in rng.integers(8, 88, (9 if kind == "cells" else 14, 2)).tolist():
            draw.point((x, y), fill=(220, 220, 220))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(220, 220, 220))
    return image


@pytest.mark.parametrize(
    ("kind", "apart", "again", "smaller", "mirrored"),
    [
        ("text", 1, 1, 1, 1),
        ("dots", 1, 1, 1, 1),
        ("cells", 1, 1, 1, 1),
        ("stars", 1, 1, 1, 1),
        ("faint noise", 1, 0, 1, 1),  # JPEG leaves none of it
        ("emoji", 1, 1, 1, 1),
        ("photographs", 1, 1, 0.97, 1),
    ],
)
def test_near_duplicates_are_found_and_other_pictures_are_none(
    tmp_path, kind, apart, again, smaller, mirrored
):
    """Shares of 60 pictures: no near-duplicate of another, found when saved again, made smaller, mirrored."""
    for k, image in enumerate(pictures(kind, 60)):
        image.save(tmp_path / f"{k:02}-a.png")
        image.save(tmp_path / f"{k:02}-again.jpg", quality=75)
        two_thirds = (image.width * 2 // 3, image.height * 2 // 3)
        image.resize(two_thirds, Image.Resampling.BICUBIC).save(tmp_path / f"{k:02}-b.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / f"{k:02}-c.png")
    group = build_index(FolderSource(tmp_path), None, progress=False).group.reshape(60, 4)
    found = (group == group[:, :1]).mean(axis=0)
    slack = 0.05  # of Pillow's other versions
    assert len(np.unique(group[:, 0])) >= (apart - slack) * 60
    assert (found[1:] >= np.array([again, smaller, mirrored]) - slack).all(), found


def test_groups_are_split_whole():
    group = np.repeat(np.random.default_rng(0).integers(0, 2**63, 200, dtype=np.uint64) * 2, 3)
    held_out = split_by_group(group, 0.2)
    assert 0.1 < held_out.mean() < 0.3
    assert not set(group[held_out]) & set(group[~held_out])
