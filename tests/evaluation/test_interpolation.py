"""Interpolation between the latents of two images."""

import math

import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from ldmae.core.errors import UserError
from ldmae.evaluation.interpolation import (
    FRACTIONS,
    _choose_pairs,
    _InterpolationMetrics,
    interpolated_decodings,
)
from ldmae.evaluation.reconstruction import to_uint8

PAIRS = 3


class Identity(nn.Module):
    """Latents are the pixels: what lies between two images is their cross-fade."""

    encode = decode = staticmethod(lambda x: x)


@pytest.fixture(scope="module")
def ends():
    """Three pairs of 32 x 40 crops of a photograph, as images in [-1, 1]."""
    photo = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)
    crops = [photo[:, 40 * i : 40 * i + 32, 50 * i : 50 * i + 40] for i in range(2 * PAIRS)]
    return (torch.stack(crops) / 127.5 - 1).split(PAIRS)


def measure(first, second, **arguments):
    metrics = _InterpolationMetrics(**arguments)
    metrics.update(first, second, interpolated_decodings(Identity(), first, second, metrics.fractions))
    return metrics


def values(metrics):
    return {result.name: result.value for result in metrics.compute()}


def mean_psnr(x, y):
    pairs = zip(to_uint8(x).numpy(), to_uint8(y).numpy(), strict=True)
    return np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs])


def test_between_two_latents_lies_the_straight_line(ends):
    decoded = dict(interpolated_decodings(Identity(), *ends))
    assert list(decoded) == list(FRACTIONS)
    assert torch.equal(decoded[0.0], ends[0])
    assert torch.equal(decoded[1.0], ends[1])
    torch.testing.assert_close(decoded[0.25], 0.75 * ends[0] + 0.25 * ends[1])


def test_figures_match_their_references_and_lie_at_the_right_end(ends, perceptual):
    first, second = ends
    found = values(measure(first, second, perceptual=perceptual))
    quarter = 0.75 * first + 0.25 * second
    assert found["PSNR-first(t=0.25)"] == pytest.approx(mean_psnr(first, quarter), rel=1e-6)
    assert found["PSNR-second(t=0.25)"] == pytest.approx(mean_psnr(second, quarter), rel=1e-6)
    saved = [to_uint8(images) / 127.5 - 1 for images in (second, quarter)]
    distance = perceptual(*saved).mean().item()
    assert found["ST-LPIPS-alex-second(t=0.25)"] == pytest.approx(distance, rel=1e-5)
    assert found["PSNR-first(t=0)"] == found["PSNR-second(t=1)"] == math.inf
    assert len(found) == 2 * 2 * len(FRACTIONS)


def test_only_each_lines_own_end_has_a_better_direction(ends, perceptual):
    better = {result.name: result.better for result in measure(*ends, perceptual=perceptual).compute()}
    assert {name: direction for name, direction in better.items() if direction} == {
        "PSNR-first(t=0)": "higher",
        "ST-LPIPS-alex-first(t=0)": "lower",
        "PSNR-second(t=1)": "higher",
        "ST-LPIPS-alex-second(t=1)": "lower",
    }


def test_the_other_way_round_is_the_same_line(ends):
    there, back = values(measure(*ends)), values(measure(ends[1], ends[0]))
    for t in FRACTIONS:
        assert there[f"PSNR-first(t={t:g})"] == pytest.approx(back[f"PSNR-second(t={1 - t:g})"])


def test_counts_are_pairs_and_training_on_the_metric_is_said(ends, perceptual):
    found = measure(*ends, fractions=(0.5,), perceptual=perceptual, trained_on=("st-lpips-alex",)).compute()
    assert [result.counts for result in found] == [{"pairs": PAIRS}] * 4
    assert [result.trained_on_metric for result in found] == [False, False, True, True]
    assert [result.unit for result in found] == ["dB", "dB", "", ""]


def test_metrics_do_not_depend_on_batches(ends, perceptual):
    alone, parts = (_InterpolationMetrics(perceptual=perceptual) for _ in range(2))
    for metrics, batches in ((alone, [[0, 1, 2]]), (parts, [[2], [1, 0]])):
        for rows in batches:
            first, second = (images[rows] for images in ends)
            decoded = interpolated_decodings(Identity(), first, second, metrics.fractions)
            metrics.update(first, second, decoded)
    assert values(parts) == pytest.approx(values(alone), rel=1e-5, abs=1e-6)


# ---- pairs


def test_pairs_hold_no_image_twice_and_do_not_depend_on_the_files_order():
    keys = [f"{i}.png" for i in range(11)]
    chosen = _choose_pairs(keys, 99, seed=1)
    assert len({i for pair in chosen for i in pair}) == 10
    turned = keys[::-1]
    named = [[(names[a], names[b]) for a, b in _choose_pairs(names, 3, seed=1)] for names in (keys, turned)]
    assert named[0] == named[1] == [(keys[a], keys[b]) for a, b in chosen[:3]]
    assert _choose_pairs(keys, 3, seed=2) != chosen[:3]


def test_one_image_makes_no_pair():
    with pytest.raises(UserError, match="interpolation needs at least 2 images, got 1"):
        _choose_pairs(["a"], 1)


# ---- what is refused


def test_no_pairs_and_nan_are_refused(ends):
    with pytest.raises(UserError, match="no pairs to measure on"):
        _InterpolationMetrics().compute()
    with pytest.raises(UserError, match=r"an image decoded at t=0\.5 holds NaN"):
        _InterpolationMetrics((0.5,)).update(*ends, [(0.5, torch.full_like(ends[0], math.nan))])
