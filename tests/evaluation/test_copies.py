"""Nearest training images, and what is called a copy."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldmae.core.errors import UserError
from ldmae.evaluation import copies
from ldmae.evaluation.copies import _copy_metrics, _nearest_images, measure_copies


def random_images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


class OfArrays:
    """Images (N, 3, H, W) in uint8 as a source."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return Image.fromarray(self.images[index].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("at_once", [1, 7, 256])
def test_neighbours_are_those_of_brute_force(at_once, monkeypatch):
    monkeypatch.setattr(copies, "_AT_ONCE", at_once)
    images, training = random_images(5, 0), random_images(20, 1)
    found = _nearest_images(images, training)
    for i, image in enumerate(images):
        errors = torch.stack(
            [((image.double() - other.double()) / 255).pow(2).mean().sqrt() for other in training]
        )
        values, indices = errors.sort()
        assert found.indices[i].tolist() == indices[:2].tolist()
        torch.testing.assert_close(found.distances[i], values[:2].float())


def test_a_training_image_that_comes_again_is_a_copy_and_a_new_one_is_not():
    training = random_images(20, 1)
    slightly_changed = (training[3].int() + 3).clamp(0, 255).to(torch.uint8)
    found = _nearest_images(torch.stack([training[7], slightly_changed, random_images(1, 2)[0]]), training)
    assert found.copies().tolist() == [True, True, False]
    assert found.indices[:2, 0].tolist() == [7, 3]
    assert found.distances[0, 0] == 0


def test_what_lies_nearer_to_a_training_image_than_another_one_does_is_not_authentic():
    training = random_images(20, 1)
    blend = [
        (training[0].float().lerp(training[1].float(), share)).round().to(torch.uint8) for share in (0.1, 0.4)
    ]
    training[1] = training[0].int().add(20).clamp(0, 255).to(torch.uint8)  # a family of two look-alikes
    found = _nearest_images(torch.stack([training[2], *blend]), training)
    for i, other in enumerate(found.indices[:, 0].tolist()):
        others = torch.cat([training[:other], training[other + 1 :]])
        expected = _nearest_images(training[other : other + 1], others).distances[0, 0]
        torch.testing.assert_close(found.spacing[i], expected)
    assert found.authentic().tolist() == [False, False, True]
    assert not found.copies()[1:].any()


def test_a_copy_of_a_picture_that_training_saw_twice_is_one():
    training = random_images(20, 1)
    training[8] = training[7]
    assert _nearest_images(training[7:8], training).copies().tolist() == [True]


def test_a_mirrored_training_image_is_a_copy_only_where_training_saw_mirror_images():
    training = random_images(20, 1)
    mirrored = training[4:5].flip(-1)
    assert _nearest_images(mirrored, training, mirrored=True).copies().tolist() == [True]
    assert _nearest_images(mirrored, training).copies().tolist() == [False]


def test_a_symmetric_training_image_is_not_its_own_second_neighbour():
    training = random_images(20, 1)
    training[5] = torch.maximum(training[5], training[5].flip(-1))
    found = _nearest_images(training[5:6], training, mirrored=True)
    assert found.indices[0, 0] == 5
    assert found.indices[0, 1] != 5
    assert found.copies().tolist() == [True]


def test_results_stand_beside_those_of_held_out_images():
    training = random_images(20, 1)
    generated = _nearest_images(torch.cat([training[:1], random_images(3, 3)]), training)
    held_out = _nearest_images(random_images(6, 4), training)
    copied, authenticity, distance = _copy_metrics(generated, held_out, searched=20, training=20)
    assert copied.value == 0.25
    assert authenticity.value == pytest.approx(generated.authentic().float().mean().item())
    assert authenticity.value <= 0.75
    assert authenticity.reference == {"held-out images": held_out.authentic().double().mean().item()}
    assert copied.counts == {"generated": 4, "held out": 6, "training": 20}
    assert copied.reference == {"held-out images": 0}
    assert distance.value == pytest.approx(np.median(generated.distances[:, 0]))


def test_results_say_where_not_all_training_images_were_searched():
    training = random_images(20, 1)
    found = _nearest_images(random_images(3, 3), training)
    for result in _copy_metrics(found, found, searched=20, training=1_281_167):
        assert result.counts["training"] == 20
        assert result.note.endswith("; searched 20 of 1,281,167 training images")
    for result in _copy_metrics(found, found, searched=20, training=20):
        assert "searched" not in result.note


@pytest.mark.parametrize("training", [random_images(1, 0), torch.zeros(5, 3, 4, 4, dtype=torch.uint8)])
def test_too_few_training_images_or_others_shapes_are_refused(training):
    with pytest.raises(UserError, match="two training images of the shape"):
        _nearest_images(random_images(2, 1), training)


def test_held_out_images_without_a_class_are_no_reference():
    training = random_images(20, 1)
    real = OfArrays(training, np.zeros(20))
    held_out = torch.cat([training[:5], random_images(5, 3)])  # what has no class repeats training images
    of = {"size": 8, "mirrored": False, "batch_size": 4, "seed": 0}
    labels = np.repeat([-1, 0], 5)
    found = measure_copies(random_images(3, 4), real, OfArrays(held_out, labels), **of)
    assert found.metrics[0].reference == {"held-out images": 0.0}
    assert found.metrics[0].counts["held out"] == 5
    unlabelled = measure_copies(random_images(3, 4), real, OfArrays(held_out, np.full(10, -1)), **of)
    assert unlabelled.metrics[0].reference == {"held-out images": 0.5}
