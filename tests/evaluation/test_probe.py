import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from ldmae.core.errors import UserError
from ldmae.evaluation.probe import _linear_probe, _mean_pooled


@pytest.fixture(scope="module")
def data():
    """Three classes of unequal size that overlap: 200 features to train on, 100 held out."""
    x, y = make_classification(
        300, 8, n_informative=4, n_classes=3, weights=[0.6, 0.3, 0.1], class_sep=0.7, random_state=0
    )
    x = torch.from_numpy(x * np.arange(1, 9) + 3).float()
    return x[:200], y[:200], x[200:], y[200:]


def test_accuracies_are_those_of_scikit_learn(data):
    x, y, unseen, truth = data
    accuracy, balanced = _linear_probe(*data)
    mean, deviation = x.double().mean(dim=0), x.double().std(dim=0, unbiased=False)
    reference = LogisticRegression(max_iter=5000).fit((x - mean) / deviation, y)
    named = reference.predict((unseen - mean) / deviation)
    assert accuracy.value == pytest.approx(np.mean(named == truth), abs=0.011)  # one image of 100
    assert balanced.value == pytest.approx(balanced_accuracy_score(truth, named), abs=0.05)
    assert 0.6 < accuracy.value < 0.95
    assert accuracy.counts == {"training": 200, "held-out": 100, "classes": 3}
    assert accuracy.reference == {"always the most frequent class": np.mean(truth == 0)}
    assert balanced.reference == {"chance": 1 / 3}


def test_the_scale_of_channels_and_the_order_of_images_do_not_matter(data):
    x, y, unseen, truth = data
    expected = [result.value for result in _linear_probe(*data)]
    assert [result.value for result in _linear_probe(*data)] == expected
    scale = torch.logspace(-3, 3, 8)
    order, other = np.random.default_rng(0).permutation(200), np.random.default_rng(1).permutation(100)
    again = _linear_probe(x[order] * scale, y[order], unseen[other] * scale, truth[other])
    assert [result.value for result in again] == expected


def test_images_without_a_class_are_left_out(data):
    x, y, unseen, truth = data
    expected = _linear_probe(*data)
    more = _linear_probe(
        torch.cat([x, x + 100]),
        np.append(y, [-1] * 200),
        torch.cat([unseen, unseen]),
        np.append(truth, [-1] * 100),
    )
    assert more == expected


def test_held_out_classes_that_training_lacks_count_as_wrong_and_are_said(data):
    x, y, unseen, truth = data
    changed = np.where(truth == 2, 9, truth)
    kept = y != 2
    accuracy, balanced = _linear_probe(x[kept], y[kept], unseen, changed)
    assert accuracy.value <= np.mean(truth != 2)
    assert balanced.value <= 2 / 3
    assert f"{(truth == 2).sum()} held-out images are of classes" in accuracy.note


def test_noise_is_read_no_better_than_by_chance():
    generator = torch.manual_seed(0)
    x, labels = torch.randn(600, 6, generator=generator), np.arange(600) % 4
    accuracy, balanced = _linear_probe(x[:400], labels[:400], x[400:], labels[400:])
    assert accuracy.value < 0.36
    assert balanced.value < 0.36


def test_pooling_is_the_mean_over_the_grid():
    latents = torch.randn(3, 5, 4, 6, generator=torch.manual_seed(0))
    pooled = _mean_pooled(latents.to(torch.bfloat16))
    assert pooled.dtype == torch.float32
    assert torch.allclose(pooled, latents.to(torch.bfloat16).float().flatten(2).mean(dim=2), atol=1e-6)
    assert torch.equal(_mean_pooled(latents)[1:2], _mean_pooled(latents[1:2]))


def test_one_class_too_few_images_and_nan_are_refused(data):
    x, y, unseen, truth = data
    with pytest.raises(UserError, match=r"at least 2 classes of training images, got 1"):
        _linear_probe(x, np.zeros(200, int), unseen, truth)
    with pytest.raises(UserError, match=r"at least 10 held-out images .* got 9"):
        _linear_probe(x, y, unseen[:9], truth[:9])
    with pytest.raises(UserError, match=r"training images .* got 0;"):
        _linear_probe(x, np.full(200, -1), unseen, truth)
    with pytest.raises(UserError, match="at least 1 held-out image of a class trained on, got 0"):
        _linear_probe(x, y, unseen, truth + 3)
    with pytest.raises(UserError, match="NaN"):
        _linear_probe(x * math.inf, y, unseen, truth)
