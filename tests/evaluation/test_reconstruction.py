import math

import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldmae.core.errors import UserError
from ldmae.evaluation.distances import frechet_distance, kernel_distance
from ldmae.evaluation.reconstruction import PairMetrics, psnr, ssim, to_uint8
from ldmae.perception.names import FEATURES


@pytest.fixture(scope="module")
def pairs():
    """Seven 40 x 48 crops of a photograph, as images in [-1, 1], and noisy copies."""
    photo = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)
    x = torch.stack([photo[:, 30 * i : 30 * i + 40, 40 * i : 40 * i + 48] for i in range(7)]) / 127.5 - 1
    noise = torch.randn(x.shape, generator=torch.manual_seed(0))
    return x, x + noise * torch.linspace(0.02, 0.3, 7).view(-1, 1, 1, 1)


def values(metrics):
    return {result.name: result.value for result in metrics.compute()}


def test_figures_match_scikit_image(pairs):
    metrics = PairMetrics()
    metrics.update(*pairs)
    x, y = (to_uint8(images).permute(0, 2, 3, 1).numpy() for images in pairs)
    expected = {
        "L1": np.mean([np.abs(a / 255 - b / 255).mean() for a, b in zip(x, y, strict=True)]),
        "PSNR": np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(x, y, strict=True)]),
        "SSIM": np.mean(
            [
                structural_similarity(
                    a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2
                )
                for a, b in zip(x, y, strict=True)
            ]
        ),
    }
    assert values(metrics) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1] * 7])
def test_figures_depend_neither_on_batches_nor_on_order(pairs, perceptual, sizes):
    whole = PairMetrics(perceptual=perceptual)
    whole.update(*pairs)
    split = PairMetrics(perceptual=perceptual)
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    for rows in order.split(sizes):
        split.update(pairs[0][rows], pairs[1][rows])
    expected = values(whole)
    distance = expected.pop(perceptual.label)
    measured = values(split)
    assert measured.pop(perceptual.label) == pytest.approx(distance, rel=1e-5)
    assert measured == pytest.approx(expected, rel=1e-12)


def test_images_are_rounded_and_clipped_as_saving_does(pairs):
    exact, saved = PairMetrics(), PairMetrics()
    exact.update(pairs[0], pairs[1] * 1.2)
    saved.update(pairs[0], to_uint8(pairs[1] * 1.2) / 127.5 - 1)
    assert values(exact) == values(saved)
    assert to_uint8(torch.tensor([-9.0, -1.0, -0.9999, 0.0, 1.0, 9.0])).tolist() == [0, 0, 0, 128, 255, 255]


def test_results_say_unit_direction_and_training_metric(pairs, perceptual):
    metrics = PairMetrics(perceptual=perceptual, trained_on=("st-lpips-alex",))
    metrics.update(*pairs)
    results = {result.name: result for result in metrics.compute()}
    assert list(results) == ["L1", "PSNR", "SSIM", "ST-LPIPS-alex"]
    assert {name: result.better for name, result in results.items()} == {
        "L1": "lower", "PSNR": "higher", "SSIM": "higher", "ST-LPIPS-alex": "lower",
    }  # fmt: skip
    assert results["PSNR"].unit == "dB"
    assert [name for name, result in results.items() if result.trained_on_metric] == ["ST-LPIPS-alex"]


def test_equal_pairs_are_left_out_of_psnr_and_said(pairs):
    x, y = pairs[0], pairs[1].clone()
    y[0] = x[0]
    metrics, others = PairMetrics(), PairMetrics()
    metrics.update(x, y)
    others.update(x[1:], y[1:])
    result = metrics.compute()[1]
    assert result.value == pytest.approx(others.compute()[1].value)
    assert result.note.startswith("1 pair is identical")
    assert result.counts == {"images": 7}


def test_equal_images_only_give_infinite_psnr(pairs):
    metrics = PairMetrics()
    metrics.update(pairs[0], pairs[0])
    assert values(metrics) == {"L1": 0, "PSNR": math.inf, "SSIM": pytest.approx(1)}


def test_single_images_have_single_values(pairs):
    x, y = to_uint8(pairs[0][:1]), to_uint8(pairs[1][:1])
    assert psnr(x, y).shape == ssim(x, y).shape == (1,)


def test_psnr_is_exact_in_float64():
    black, white = (
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.full((1, 3, 8, 8), 255, dtype=torch.uint8),
    )
    one = black + 1
    assert psnr(black, white).item() == 0
    assert psnr(black, one).item() == pytest.approx(20 * math.log10(255), rel=1e-15)


def test_no_images_small_images_and_nan_are_refused():
    with pytest.raises(UserError, match="no images"):
        PairMetrics().compute()
    with pytest.raises(UserError, match="at least 11x11 pixels, got 8x16"):
        PairMetrics().update(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 16))
    with pytest.raises(UserError, match="NaN"):
        PairMetrics().update(torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), math.nan))


class Corners:
    """Three features of an image: the means of a corner's red, green and blue."""

    name, dimensions, labels = "corners", 3, FEATURES["inception"]

    def __call__(self, images):
        assert images.dtype == torch.uint8
        return images.float()[..., :8, :8].mean(dim=(2, 3)) / 255


def test_features_of_all_pairs_are_compared_as_two_sets_whatever_the_batches():
    x = torch.rand(12, 3, 16, 16) * 2 - 1
    y = x * 0.8
    whole, split = (PairMetrics(extractor=Corners()) for _ in range(2))
    whole.update(x, y)
    for rows in torch.randperm(12).split([5, 7]):
        split.update(x[rows], y[rows])
    features = Corners()(to_uint8(y)), Corners()(to_uint8(x))
    assert values(whole)["rKID"] == pytest.approx(kernel_distance(*features)[0], rel=1e-9)
    assert values(whole)["rFID"] == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert values(split) == pytest.approx(values(whole), rel=1e-12)


def test_a_frechet_distance_of_too_few_images_is_made_only_when_asked():
    class Many(Corners):
        dimensions = 27

        def __call__(self, images):
            return images.float()[..., :3, :3].flatten(1) / 255

    x = torch.rand(12, 3, 16, 16) * 2 - 1
    plain, shrunk = (PairMetrics(extractor=Many(), shrink=asked) for asked in (False, True))
    for metrics in (plain, shrunk):
        metrics.update(x, x * 0.8)
    found = {result.name: result for result in plain.compute()}
    assert "rFID" not in found
    assert "rFID needs 28 images, or evaluation.shrink_covariance=true" in found["rKID"].note
    asked = {result.name: result for result in shrunk.compute()}["rFID"]
    assert asked.value == pytest.approx(
        frechet_distance(Many()(to_uint8(x * 0.8)), Many()(to_uint8(x)), True)
    )
    assert "shrunk covariances" in asked.note


def test_a_decoder_to_zero_and_one_is_told(pairs):
    metrics = PairMetrics()
    x = pairs[0]
    metrics.update(x, (x + 1) / 2)
    told = "all decoded values are in [0, 1], expected [-1, 1]"
    assert all(told in result.note for result in metrics.compute())
    metrics.update(x, x)
    assert not any(told in result.note for result in metrics.compute())
    collapsed = PairMetrics()
    collapsed.update(x, torch.full_like(x, 0.1))
    assert not any(told in result.note for result in collapsed.compute())
