import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision

from ldmae.core.errors import UserError
from ldmae.perception import lpips
from ldmae.perception.lpips import load_perceptual
from ldmae.perception.names import DISTANCES, SMALLEST

# (network, height, width): distances of `pattern_pairs` by the authors' own code (stlpips_pytorch 0.0.2)
REFERENCE = {
    ("alex", 32, 32): (0.3894887, 0.2105080, 0.0572396),
    ("alex", 48, 48): (0.3044859, 0.1862869, 0.0694948),
    ("alex", 47, 64): (0.3261818, 0.1950591, 0.0768065),
    ("alex", 128, 128): (0.4543844, 0.3638459, 0.1901142),
    ("vgg", 32, 32): (0.3778226, 0.2837418, 0.2234472),
    ("vgg", 48, 48): (0.4900999, 0.4739514, 0.3002113),
    ("vgg", 47, 64): (0.5257695, 0.4688158, 0.3199587),
}


def pattern_pairs(height, width):
    n, c = torch.arange(3.0)[:, None, None, None], torch.arange(3.0)[None, :, None, None]
    i, j = torch.arange(float(height))[:, None], torch.arange(float(width))[None, :]
    waves = torch.sin(0.31 * i * (1 + 0.2 * c) + 0.17 * j * (1 + n) + 0.5 * c)
    x = waves * torch.cos(0.11 * j - 0.07 * i * n)
    return x, (x + 0.35 * torch.sin(1.3 * i + 0.9 * j + c + n)).clamp(-1, 1)


@pytest.fixture(scope="module")
def alex():
    return load_perceptual("st-lpips-alex")


@pytest.fixture
def offline_lpips(monkeypatch):
    """Gives torchvision's download random weights, drawn from a fixed seed and returned."""

    def load(network):
        torch.manual_seed(0)
        vgg = torchvision.models.vgg
        features = (
            torchvision.models.alexnet().features if network == "alex" else vgg.make_layers(vgg.cfgs["D"])
        )
        state = {f"features.{name}": value for name, value in features.state_dict().items()}
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: state)
        return state

    return load


@pytest.mark.parametrize(("network", "height", "width"), REFERENCE)
def test_shift_tolerant_distance_matches_the_authors_code(network, height, width):
    x, y = pattern_pairs(height, width)
    distances = load_perceptual(f"st-lpips-{network}")(x, y)
    assert distances.dtype == torch.float32
    assert distances.tolist() == pytest.approx(REFERENCE[network, height, width], abs=2e-6)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_matches_the_lpips_package_on_the_same_weights(network, offline_lpips):
    import lpips as package

    state = offline_lpips(network)
    ours = load_perceptual(f"lpips-{network}")
    theirs = package.LPIPS(net=network, pnet_rand=True, verbose=False)  # their heads, then our trunk
    convolutions = [m for m in theirs.net.modules() if isinstance(m, torch.nn.Conv2d)]
    weights = [k for k in state if k.startswith("features.") and k.endswith("weight")]
    with torch.no_grad():
        for convolution, name in zip(convolutions, weights, strict=True):
            convolution.weight.copy_(state[name])
            convolution.bias.copy_(state[name.replace("weight", "bias")])
    x, y = pattern_pairs(48, 40)
    torch.testing.assert_close(ours(x, y), theirs(x, y).flatten().detach(), rtol=1e-4, atol=1e-6)


def test_unknown_name_proposes_the_nearest():
    with pytest.raises(UserError, match="did you mean 'st-lpips-alex'"):
        load_perceptual("st-lpips-alexnet")


def test_labels_never_call_the_shift_tolerant_distance_lpips(alex):
    assert (alex.name, alex.label) == ("st-lpips-alex", "ST-LPIPS-alex")
    assert all(label.startswith("ST-") == name.startswith("st-") for name, label in DISTANCES.items())


def test_equal_images_are_at_distance_zero_and_order_does_not_matter(alex):
    x, y = pattern_pairs(48, 48)
    assert alex(x, x).tolist() == [0, 0, 0]
    torch.testing.assert_close(alex(x, y), alex(y, x))


def test_distance_does_not_depend_on_the_batch(alex):
    x, y = pattern_pairs(32, 32)
    alone = torch.cat([alex(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alex(x, y), alone, rtol=1e-5, atol=1e-7)


def test_gradient_matches_finite_differences(alex):
    x, y = pattern_pairs(32, 32)
    x = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(alex(x, y[:1]).sum(), x)
    step = 0.01 * gradient / gradient.norm()
    with torch.no_grad():
        slope = (alex(x + step, y[:1]) - alex(x - step, y[:1])).item() / 0.02
    assert slope == pytest.approx(gradient.norm().item(), rel=0.05)


def test_gradient_flows_into_the_second_image_only_when_asked(alex):
    x, y = pattern_pairs(32, 32)
    x.requires_grad_()
    y_live = y.clone().requires_grad_()
    alex(x, y_live).sum().backward()
    assert y_live.grad is not None
    assert y_live.grad.abs().sum() > 0
    gradient = x.grad.clone()
    x.grad = None
    alex(x, y).sum().backward()
    torch.testing.assert_close(x.grad, gradient)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_is_finite_on_flat_images(alex, autocast):
    x = torch.zeros(2, 3, 48, 48)
    x[1] = 1
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        alex(x, -torch.ones_like(x)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_place_where_every_channel_is_off_has_zero_gradient():
    before_relu = torch.full((1, 4, 2, 2), -1.0, requires_grad=True)
    lpips._unit(before_relu.relu()).sum().backward()
    assert torch.equal(before_relu.grad, torch.zeros_like(before_relu))


@pytest.mark.parametrize("size", [(48, 48), (32, 32), (33, 30), (21, 64)])
def test_autocast_gives_nearly_the_same_distance_in_float32(alex, size):
    x, y = pattern_pairs(*size)
    with torch.autocast("cpu", torch.bfloat16):
        fast = alex(x, y)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, alex(x, y), rtol=0.02, atol=1e-3)


def test_nothing_in_it_can_train_or_be_registered(alex):
    class Objective(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.perceptual = alex

    assert not isinstance(alex, torch.nn.Module)
    assert not Objective().state_dict()
    assert not list(alex._trunk.parameters())
    assert not alex._trunk.training
    assert alex.to("cpu") is alex


@pytest.mark.parametrize("name", DISTANCES)
def test_smallest_size_works_and_one_pixel_less_is_refused(name, offline_lpips):
    if not name.startswith("st-"):
        offline_lpips(name.removeprefix("lpips-"))
    distance = load_perceptual(name)
    size = SMALLEST[name]
    x, y = pattern_pairs(size, size)
    assert all(math.isfinite(value) for value in distance(x, y).tolist())
    with pytest.raises(UserError, match=f"at least {size}x{size} pixels, got {size + 9}x{size - 1}"):
        distance(*pattern_pairs(size + 9, size - 1))
    with pytest.raises(RuntimeError):  # the limit is the network's, not a guess
        distance._trunk(torch.zeros(1, 3, size - 1, size - 1))


@pytest.mark.parametrize(("height", "width"), [(25, 25), (24, 24), (25, 24), (24, 25)])
def test_merged_convolution_equals_convolution_then_blur(height, width):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 3, 11, 11, generator=generator), torch.randn(5, generator=generator)
    x = torch.randn(2, 3, height, width, generator=generator)
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    blur = (taps[:, None] * taps).expand(5, 1, 3, 3)
    plain = F.pad(F.conv2d(x, weight, bias, padding=2), (2, 2, 2, 2), mode="reflect")
    expected = F.conv2d(plain, blur, stride=2, groups=5)
    torch.testing.assert_close(lpips._BlurredConv(weight, bias, 2)(x), expected, rtol=1e-4, atol=1e-4)


def test_weights_are_found_without_importing_their_package():
    import subprocess
    import sys

    code = (
        "import sys; from ldmae.perception.lpips import load_perceptual; load_perceptual('st-lpips-alex'); "
        "assert not {'stlpips_pytorch', 'lpips'} & set(sys.modules)"
    )
    source = Path(lpips.__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source)}, timeout=300)


def test_deterministic_mode_gives_the_same_by_operations_that_have_a_deterministic_gradient(monkeypatch):
    torch.manual_seed(0)
    distance = load_perceptual("st-lpips-alex")
    images = torch.rand(2, 3, 36, 29) * 2 - 1
    decoded = (images + 0.2 * torch.randn_like(images)).requires_grad_()
    expected = distance(decoded, images)
    (slope,) = torch.autograd.grad(expected.sum(), decoded)
    pad = torch.nn.functional.pad

    def refuse_reflection(*arguments, **options):  # what torch does on CUDA
        assert options.get("mode") != "reflect"
        return pad(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "pad", refuse_reflection)
    torch.use_deterministic_algorithms(True)
    try:
        found = distance(decoded, images)
        (same_slope,) = torch.autograd.grad(found.sum(), decoded)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(same_slope, slope)
