"""Which of the generated images are looked at for copies."""

import numpy as np
import pytest
import torch

from ldmae.evaluation.copies import COMPARED, compared_images
from ldmae.run.sample_cache import SampleSet


def generated(labels: np.ndarray, batch: int = 64) -> SampleSet:
    """Images of 1 x 1, each of which holds its own number in base 256."""

    def batches(start: int, stop: int):
        for first in range(start, stop, batch):
            numbers = torch.arange(first, min(first + batch, stop))
            yield torch.stack([numbers >> 16 & 255, numbers >> 8 & 255, numbers & 255], 1).byte()[
                ..., None, None
            ]

    return SampleSet(batches, len(labels), 1, labels, "", batch)


def looked_at(made: SampleSet, seed: int = 0) -> list[int]:
    images = made.select(compared_images(made.count, made.labels, seed)).long().flatten(1)
    return (images @ torch.tensor([65536, 256, 1])).tolist()


@pytest.mark.parametrize("classes", [1, 12, 200])
def test_of_few_classes_the_first_images_are_looked_at(classes):
    assert looked_at(generated(np.arange(500) % classes)) == list(range(200))
    assert looked_at(generated(np.arange(30) % classes)) == list(range(30))


def test_of_labels_in_order_images_are_drawn_from_all():
    labels = np.repeat(np.arange(12), 100)  # as `evaluation.sample_labels=training` has them
    numbers = looked_at(generated(labels))
    assert len(set(numbers)) == COMPARED
    assert set(labels[numbers]) == set(range(12))
    without = SampleSet(generated(labels).batches, len(labels), 1, None, "", 64)  # of a folder: by name
    assert looked_at(without) == numbers


def test_of_many_classes_images_are_drawn_from_all():
    labels = np.arange(5000) % 1000
    numbers = looked_at(generated(labels))
    assert len(set(numbers)) == COMPARED
    assert numbers == sorted(numbers) == looked_at(generated(labels))
    assert numbers != looked_at(generated(labels), seed=1)
    assert len(set(labels[numbers])) > 150
    for fifth in range(5):  # of the images, and of the classes
        assert 20 < sum(number // 1000 == fifth for number in numbers) < 60
        assert 20 < sum(labels[number] // 200 == fifth for number in numbers) < 60


def test_what_is_drawn_does_not_hang_on_batches():
    labels = np.arange(1007) % 1000
    assert looked_at(generated(labels, batch=64)) == looked_at(generated(labels, batch=10))
