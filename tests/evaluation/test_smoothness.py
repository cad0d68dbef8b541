"""Latent smoothness: noise of growing size on the latents, decoded, against the originals."""

import math

import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from ldmae.core.errors import UserError
from ldmae.evaluation.distances import frechet_distance, kernel_distance
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.smoothness import (
    SmoothnessMetrics,
    latent_noise,
    noisy_decodings,
    perturbed,
)
from ldmae.perception.features import load_features
from ldmae.perception.names import FEATURES

COUNT = 12
KEYS = [f"images/{i}.png" for i in range(COUNT)]
STD = torch.tensor([0.5, 1.0, 0.25]).view(3, 1, 1)


class Scaled(nn.Module):
    """Latents are the pixels times a number; decoding divides by it."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def encode(self, x):
        return x * self.scale

    def decode(self, z):
        return z / self.scale


class Means:
    """Stands in for a feature extractor: an image's 6 features are the means of its halves' channels."""

    name, dimensions, labels = "inception", 6, FEATURES["inception"]

    def __call__(self, images):
        assert images.dtype == torch.uint8
        return torch.cat([half.float().mean(dim=(2, 3)) for half in images.chunk(2, dim=3)], dim=1) / 64


@pytest.fixture(scope="module")
def x():
    """Twelve 32 x 32 crops of a photograph, as images in [-1, 1]."""
    photo = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)
    crops = [photo[:, 20 * i : 20 * i + 32, 30 * i : 30 * i + 32] for i in range(COUNT)]
    return torch.stack(crops) / 127.5 - 1


def measure(x, rows=None, metrics=None, scale=1.0, sizes=(COUNT,), seed=0, **arguments):
    """Measures `Scaled` on some rows, in batches of the given sizes."""
    metrics = metrics or SmoothnessMetrics(**arguments)
    for batch in (torch.arange(COUNT) if rows is None else torch.tensor(rows)).split(list(sizes)):
        keys = [KEYS[i] for i in batch]
        images = noisy_decodings(Scaled(scale), keys, x[batch] * scale, STD * scale, metrics.epsilons, seed)
        metrics.update(x[batch], images)
    return metrics


def values(metrics):
    return {result.name: result.value for result in metrics.compute()}


# ---- the noise


def test_an_images_noise_is_its_own_whatever_the_batch():
    noise = latent_noise(["a", "b", 7], (4, 8, 8), seed=1)
    assert torch.equal(latent_noise(["b"], (4, 8, 8), seed=1)[0], noise[1])
    assert torch.equal(latent_noise([np.int64(7)], (4, 8, 8), seed=1)[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(latent_noise(["a"], (4, 8, 8), seed=2)[0], noise[0])


def test_the_noise_is_standard_normal():
    noise = latent_noise(range(8), (4, 32, 32))
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_each_channel_gets_noise_of_its_own_deviation_times_epsilon():
    z = torch.ones(64, 3, 8, 8)
    noise = latent_noise(range(64), (3, 8, 8))
    moved = perturbed(z, STD, noise, 0.2)
    torch.testing.assert_close(
        moved, 1 + 0.2 * torch.stack([0.5 * noise[:, 0], noise[:, 1], 0.25 * noise[:, 2]], 1)
    )
    assert torch.equal(perturbed(z, STD, noise, 0), z)


def test_the_noise_is_the_same_at_every_epsilon(x):
    decoded = dict(noisy_decodings(Scaled(), KEYS[:2], x[:2] * 0.1, STD, (0.1, 0.2)))
    torch.testing.assert_close(2 * (decoded[0.1] - x[:2] * 0.1), decoded[0.2] - x[:2] * 0.1)


# ---- the figures


def test_figures_match_their_references(x, perceptual):
    epsilons = (0.0, 0.2)
    decoded = dict(noisy_decodings(Scaled(), KEYS, x, STD, epsilons, seed=3))
    found = values(measure(x, epsilons=epsilons, perceptual=perceptual, seed=3))
    pairs = zip(to_uint8(x).numpy(), to_uint8(decoded[0.2]).numpy(), strict=True)
    expected = np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs])
    assert found["PSNR(eps=0.2)"] == pytest.approx(expected, rel=1e-6)
    saved = [to_uint8(images) / 127.5 - 1 for images in (x, decoded[0.2])]
    assert found["ST-LPIPS-alex(eps=0.2)"] == pytest.approx(perceptual(*saved).mean().item(), rel=1e-5)
    assert found["ST-LPIPS-alex(eps=0)"] == pytest.approx(0, abs=1e-6)


def test_the_area_is_that_of_trapezoids_over_the_range_of_epsilon(x, perceptual):
    epsilons = (0.3, 0.0, 0.1)  # in any order, and unevenly spaced
    found = {result.name: result for result in measure(x, epsilons=epsilons, perceptual=perceptual).compute()}
    heights = [found[f"ST-LPIPS-alex(eps={epsilon:g})"].value for epsilon in sorted(epsilons)]
    area = found["ST-LPIPS-alex-AUC"]
    trapezoid = getattr(np, "trapezoid", None) or np.trapz
    assert area.value == pytest.approx(trapezoid(heights, sorted(epsilons)) / 0.3)
    assert heights[0] < area.value < heights[-1]
    assert (area.better, area.counts) == ("lower", {"images": COUNT})
    assert area.note == "mean distance over eps from 0 to 0.3"


def test_one_epsilon_or_no_perceptual_distance_has_no_area(x, perceptual):
    assert list(values(measure(x, epsilons=(0.1,), perceptual=perceptual))) == [
        "PSNR(eps=0.1)",
        "ST-LPIPS-alex(eps=0.1)",
    ]
    assert list(values(measure(x, epsilons=(0.1, 0.2)))) == ["PSNR(eps=0.1)", "PSNR(eps=0.2)"]


def test_more_noise_is_worse_in_every_figure(x, perceptual):
    found = values(measure(x, epsilons=(0.05, 0.2, 0.8), perceptual=perceptual, extractor=Means()))
    for name, sign in (("PSNR", -1), ("ST-LPIPS-alex", 1)):
        curve = [sign * found[f"{name}(eps={epsilon})"] for epsilon in (0.05, 0.2, 0.8)]
        assert curve == sorted(curve)


def test_the_scale_of_the_latents_plays_no_part(x):
    arguments = {"epsilons": (0.1, 0.3), "extractor": Means()}
    assert values(measure(x, scale=8.0, **arguments)) == values(measure(x, **arguments))


def test_distances_of_features_are_those_of_the_originals_to_each_epsilons_images(x):
    metrics = measure(x, epsilons=(0.1, 0.5), extractor=Means())
    found, extractor = values(metrics), Means()
    for epsilon, images in noisy_decodings(Scaled(), KEYS, x, STD, (0.1, 0.5)):
        features = extractor(to_uint8(images)), extractor(to_uint8(x))
        assert found[f"rKID(eps={epsilon})"] == pytest.approx(kernel_distance(*features)[0], rel=1e-9)
        assert found[f"rFID(eps={epsilon})"] == pytest.approx(frechet_distance(*features), rel=1e-6)


def test_perfect_images_have_the_kernel_distance_that_the_docstring_says(x):
    found = values(measure(x, epsilons=(0.0,), extractor=Means()))
    features = Means()(to_uint8(x)).double()
    kernel = (features @ features.T / 6 + 1) ** 3
    others = (kernel.sum() - kernel.trace()) / (COUNT * (COUNT - 1))
    assert found["rKID(eps=0)"] == pytest.approx(-2 / COUNT * (kernel.trace() / COUNT - others).item())
    assert found["rKID(eps=0)"] < 0
    assert found["rFID(eps=0)"] == pytest.approx(0, abs=1e-6)


def test_efficientnets_distances_bear_its_name_and_too_few_images_have_no_frechet_distance(x):
    found = measure(x[:COUNT], epsilons=(0.2,), extractor=load_features("efficientnet_lite0")).compute()
    assert [result.name for result in found] == ["PSNR(eps=0.2)", "rKID-efficientnet_lite0(eps=0.2)"]
    assert found[1].better == "lower"
    assert found[1].note.startswith("compare at equal numbers of images")


def test_figures_depend_neither_on_batches_nor_on_order(x, perceptual):
    arguments = {"epsilons": (0.0, 0.1, 0.3), "perceptual": perceptual, "extractor": Means(), "seed": 2}
    rows = [4, 2, 6, 0, 1, 5, 3, 11, 10, 7, 9, 8]  # places in the folder change, names do not
    whole, alone = (values(measure(x, sizes=sizes, **arguments)) for sizes in ((COUNT,), (1,) * COUNT))
    assert alone == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert values(measure(x, rows, sizes=(5, 7), **arguments)) == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert values(measure(x, rows, sizes=(1,) * COUNT, **arguments)) == alone


def test_equal_images_are_left_out_of_psnr_and_said_and_training_on_the_metric_is_said(x, perceptual):
    metrics = measure(x, epsilons=(0.0, 0.1), perceptual=perceptual, trained_on=("st-lpips-alex",))
    found = {result.name: result for result in metrics.compute()}
    assert found["PSNR(eps=0)"].value == math.inf
    assert found["PSNR(eps=0)"].note == f"{COUNT} pairs are identical and left out"
    assert (found["PSNR(eps=0.1)"].unit, found["PSNR(eps=0.1)"].better) == ("dB", "higher")
    for name in ("ST-LPIPS-alex(eps=0)", "ST-LPIPS-alex-AUC"):
        assert found[name].trained_on_metric
    assert not found["PSNR(eps=0.1)"].trained_on_metric


# ---- what is refused


def test_no_images_too_few_images_and_nan_are_refused(x):
    with pytest.raises(UserError, match="no images to measure on"):
        SmoothnessMetrics().compute()
    with pytest.raises(UserError, match="a kernel distance needs at least 10 images"):
        measure(x, range(9), sizes=(9,), epsilons=(0.1,), extractor=Means()).compute()
    with pytest.raises(UserError, match=r"an image decoded at eps=0\.1 holds NaN or infinity"):
        SmoothnessMetrics((0.1,)).update(x, [(0.1, torch.full_like(x, math.nan))])


def test_a_batch_that_lacks_an_epsilon_is_a_mistake_of_the_program(x):
    with pytest.raises(AssertionError, match=r"decoded at \[0\.1\], expected \[0\.1, 0\.2\]"):
        SmoothnessMetrics((0.1, 0.2)).update(x, [(0.1, x)])
