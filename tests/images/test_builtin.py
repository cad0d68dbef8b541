import numpy as np
import pytest

from ldmae.config.data import DataConfig
from ldmae.images.builtin import DigitsSource, EmojiSource, PhotoSource
from ldmae.images.index import open_images


@pytest.fixture(scope="module")
def emoji():
    return EmojiSource()


def test_emoji_come_in_a_dozen_classes_of_enough_pictures(emoji):
    assert len(emoji.classes) == 12
    counts = np.bincount(emoji.labels[emoji.labels >= 0], minlength=12)
    assert counts.min() >= 20
    assert 850 <= counts.sum() <= 1000
    assert 1800 <= len(emoji) <= 2000
    assert emoji.labels.min() == -1


def test_emoji_are_drawn_on_white_without_duplicates_and_skin_tones(emoji):
    assert emoji.read(0).size == (72, 72)
    pictures = {emoji.read(k).tobytes() for k in range(len(emoji))}
    assert len(pictures) == len(emoji)
    assert emoji.read(3).getpixel((0, 0)) == (255, 255, 255)
    assert not any(tone in emoji.describe(k) for k in range(len(emoji)) for tone in ("1f3fb", "1f3ff"))


@pytest.mark.parametrize(
    ("code", "name"),
    [("1f600", "faces"), ("2764", "hearts"), ("1f468-200d-2695-fe0f", "people"), ("1f431", "animals"),
     ("23-20e3", "signs"), ("1f1e9-1f1ea", "flags"), ("1f550", "clocks"), ("1f34e", "food"),
     ("1f966", "food")],
)  # fmt: skip
def test_emoji_bear_the_class_they_are_drawn_as(emoji, code, name):
    index = next(k for k in range(len(emoji)) if emoji.describe(k).endswith(f"{code}.png"))
    assert emoji.classes[emoji.labels[index]] == name


def test_emoji_fall_into_small_groups_of_near_duplicates(tmp_path):
    train, held_out = open_images(DataConfig(source="emoji"), tmp_path, progress=False)
    assert 60 <= len(held_out) <= 130
    assert "CC-BY 4.0" in train.licence


def test_digits_are_white_on_black_and_padded():
    source = DigitsSource()
    assert len(source) == 5000
    assert np.bincount(source.labels).tolist() == [500] * 10
    pixels = np.asarray(source.read(7))
    assert pixels.shape == (32, 32, 3)
    assert pixels[:2].max() == pixels[:, -2:].max() == 0
    assert pixels.max() > 200


def test_photo_crops_for_testing_overlap_no_training_crop():
    source = PhotoSource()
    assert len(source.classes) == 10
    assert source.read(0).size == (64, 64)
    for photo in range(len(source.classes)):
        places = source._places[source.labels == photo]
        train, test = places[places[:, 3] == 0], places[places[:, 3] == 1]
        assert len(train)
        assert len(test)
        assert train[:, 2].max() + 64 <= test[:, 2].min()


def test_photos_keep_their_own_split(tmp_path):
    train, held_out = open_images(DataConfig(source="photos"), tmp_path, progress=False)
    source = PhotoSource()
    assert len(held_out) == source.held_out.sum()
    assert len(train) == (~source.held_out).sum()
    config = DataConfig(source="photos", classes=source.classes[:2])
    assert len(open_images(config, tmp_path, progress=False)[1]) == source.held_out.sum()
