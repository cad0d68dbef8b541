import pytest
import torch
from torch import nn

from ldmae.autoencoders.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from ldmae.config.autoencoder import TuningConfig
from ldmae.core.errors import UserError


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_the_patch_that_the_docs_name(layers, patch):
    torch.manual_seed(0)
    model = PatchDiscriminator(layers, 4)
    # without norms (which look at the whole image) the gradient of one logit covers its patch exactly
    model.layers = nn.Sequential(*[m for m in model.layers if not isinstance(m, nn.GroupNorm)])
    images = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = model(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = images.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [patch, patch]


@pytest.mark.parametrize("size", [32, 64, 256])
def test_images_of_the_sizes_it_is_for_have_patches(size):
    model = PatchDiscriminator(2 if size < 256 else 3, 8)
    assert model.smallest_image <= size
    logits = model(torch.rand(2, 3, size, size))
    assert logits.shape[:2] == (2, 1)
    assert min(logits.shape[2:]) >= 4


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_has_one_patch_and_a_smaller_none(layers):
    model = PatchDiscriminator(layers, 8)
    assert model(torch.rand(1, 3, model.smallest_image, model.smallest_image)).numel() == 1
    with pytest.raises((RuntimeError, ValueError)):
        model(torch.rand(1, 3, model.smallest_image - 1, model.smallest_image - 1))


def test_logits_of_an_image_do_not_depend_on_the_rest_of_the_batch():
    torch.manual_seed(0)
    model, images = PatchDiscriminator(2, 8).train(), torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(model(images)[:2], model(images[:2]), rtol=1e-5, atol=1e-6)
    assert not list(model.buffers())


def test_convolutions_start_from_a_normal_of_deviation_a_fiftieth():
    torch.manual_seed(0)
    weights = [m.weight for m in PatchDiscriminator(2, 32).modules() if isinstance(m, nn.Conv2d)]
    for weight in weights[1:3]:
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert weight.mean().item() == pytest.approx(0, abs=5e-4)


def test_hinge_losses_are_those_of_the_papers():
    real, fake = torch.randn(3, 1, 2, 4) * 2, torch.randn(3, 1, 2, 4) * 2
    expected = [
        sum(0.5 * max(0.0, 1 - r.item()) + 0.5 * max(0.0, 1 + f.item()) for r, f in zip(rs, fs, strict=True))
        / 8
        for rs, fs in zip(real.flatten(1), fake.flatten(1), strict=True)
    ]
    torch.testing.assert_close(hinge_discriminator_loss(real, fake), torch.tensor(expected))
    torch.testing.assert_close(hinge_generator_loss(fake), -fake.mean((1, 2, 3)))
    assert hinge_discriminator_loss(real.abs() + 1, -fake.abs() - 1).tolist() == [0, 0, 0]


def test_adaptive_weight_is_the_ratio_of_norms_that_autograd_finds():
    torch.manual_seed(0)
    body, last = nn.Linear(4, 3), nn.Linear(3, 2)
    x, y = torch.randn(5, 4), torch.randn(5, 2)
    output = last(body(x).tanh())
    restoration, adversarial = (output - y).square().mean(), -output.sin().mean()
    gradients = [
        torch.autograd.grad(loss, last.weight, retain_graph=True)[0] for loss in (restoration, adversarial)
    ]
    found = adaptive_weight(*gradients)
    # by hand: d mean (o - y)² / dW = 2 (o - y)ᵀ h / n, d -mean sin o / dW = -cos(o)ᵀ h / n
    hidden = body(x).tanh()
    ours = (2 * (output - y)).T @ hidden / 10
    theirs = -output.cos().T @ hidden / 10
    torch.testing.assert_close(found, (ours.norm() / (theirs.norm() + 1e-4)).detach())
    assert not found.requires_grad
    pulled = found * gradients[1]
    assert pulled.norm().item() == pytest.approx(gradients[0].norm().item(), rel=1e-2)


def test_adaptive_weight_has_a_limit_where_the_adversary_says_nothing():
    assert adaptive_weight(torch.full((2, 2), 1e9), torch.zeros(2, 2)).item() == 1e4
    assert adaptive_weight(torch.zeros(2), torch.ones(2)).item() == 0


@pytest.mark.parametrize("name", ["discriminator_layers", "discriminator_channels"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"{name} must be .*, got 0"):
        TuningConfig(**{name: 0})
