import math

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from ldmae.core.errors import UserError
from ldmae.evaluation.compression import (
    _channel_statistics,
    _chosen_images,
    _compression_metrics,
    _silhouette,
    _within_group_variance,
)


def some_latents(count=9, channels=5, grid=(6, 7), groups=4, seed=0, pull=1.0):
    """Latents drawn around their groups' means; groups (N, h, w) with a few cells that bear none."""
    random = np.random.default_rng(seed)
    labels = random.integers(-1, groups, (count, *grid))
    means = random.normal(size=(count, groups + 1, channels)) * pull
    cells = np.stack([means[i][labels[i]] for i in range(count)]) + random.normal(
        size=(*labels.shape, channels)
    )
    scale, shift = random.uniform(0.1, 10, channels), random.uniform(-5, 5, channels)
    return torch.tensor(cells * scale + shift).permute(0, 3, 1, 2).float(), labels


def measured(latents, groups, level="part", **settings):
    found = _compression_metrics(latents, {level: groups}, **settings)
    return {metric.name: metric for metric in found.metrics}


def brute_force(latents, groups):
    """σ² and ρ cell by cell, by numpy's covariance and scikit-learn's silhouette."""
    x = latents.double().numpy().transpose(0, 2, 3, 1)  # (N, h, w, C)
    x = (x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2))
    cells, means, silhouettes = [], [], []
    for image, labels in zip(x, groups, strict=True):
        for k in set(labels.ravel()) - {-1}:
            cells.append(image[labels == k])
            means.append(np.repeat(cells[-1].mean(axis=0, keepdims=True), len(cells[-1]), axis=0))
        kept = labels >= 0
        silhouettes.append(silhouette_score(image[kept], labels[kept], metric="cosine"))
    cells, means = np.concatenate(cells), np.concatenate(means)
    within = np.trace(np.cov((cells - means).T, bias=True))
    return within / np.trace(np.cov(cells.T, bias=True)), np.mean(silhouettes)


def test_figures_match_covariances_and_scikit_learns_silhouette():
    latents, groups = some_latents()
    results = measured(latents, groups)
    sigma2, rho = brute_force(latents, groups)
    assert results["sigma2(part)"].value == pytest.approx(sigma2, rel=1e-9)
    assert results["rho(part)"].value == pytest.approx(rho, rel=1e-9)
    assert (results["sigma2(part)"].better, results["rho(part)"].better) == ("lower", "higher")
    assert results["sigma2(part)"].counts == {"images": 9, "groups": 36, "cells": int((groups >= 0).sum())}
    assert results["rho(part)"].counts == {"images": 9, "left out": 0}
    assert "this project's definition" in results["sigma2(part)"].note


@pytest.mark.parametrize("n", [3, 10, 100])
@pytest.mark.parametrize("groups", [2, 5, 40])
def test_silhouette_is_scikit_learns(n, groups):
    for seed in range(5):
        random = np.random.default_rng(seed)
        cells = random.normal(size=(n, 3))
        cells[0] = 0  # a cell at the origin has no direction
        labels = random.integers(0, groups, n) * 1000
        if 2 <= len(set(labels)) < n:
            expected = silhouette_score(cells, labels, metric="cosine")
            assert _silhouette(cells, labels) == pytest.approx(expected, abs=1e-8)
        else:
            assert _silhouette(cells, labels) is None


def test_cells_that_are_the_same_but_for_rounding_have_silhouette_zero():
    noise = np.random.default_rng(0).normal(size=(12, 7)) * 1e-8
    assert _silhouette(np.linspace(1, 3, 7) + noise, np.arange(12) % 3) == 0


@pytest.mark.parametrize("value", [0.1, 0.3, -1 / 3, 1e-6, 12345.678])
def test_a_channel_that_varies_by_rounding_alone_has_deviation_zero(value):
    cells = np.full((1, 43), value, np.float32)
    cells[:, ::2] = np.nextafter(cells[:, ::2], np.float32(np.inf))  # the next number up
    mean, std = _channel_statistics([cells] * 7)
    assert mean == pytest.approx(value)
    assert std == 0


def test_random_groups_have_the_variance_that_is_named_for_reference():
    random = np.random.default_rng(0)
    cells, groups = random.normal(size=(12, 3)), np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3])
    values = [_within_group_variance([(cells, random.permutation(groups))])[0] for _ in range(2000)]
    chance = (12 - 4) / (12 - 1)
    assert np.mean(values) == pytest.approx(chance, abs=0.01)
    latents = torch.tensor(cells.T.reshape(1, 3, 4, 3))
    sigma2 = measured(latents, groups.reshape(1, 4, 3))["sigma2(part)"]
    assert sigma2.reference == {"random groups of these sizes": chance}


def test_groups_are_per_image():
    latents, _ = some_latents(count=2)
    one_label = np.zeros((2, 6, 7), int)
    x = latents.double()
    x = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / x.std(dim=(0, 2, 3), keepdim=True, unbiased=False)
    expected = (x - x.mean(dim=(2, 3), keepdim=True)).square().mean() / x.square().mean()
    found = _compression_metrics(latents, {"object": one_label})
    (sigma2,) = found.metrics
    assert sigma2.value == pytest.approx(float(expected), rel=1e-6)
    assert found.left_out == ["rho(object): none of 2 images has two groups of which one has two cells"]


def test_latents_that_follow_their_groups_are_tight_and_apart_and_random_ones_are_not():
    good = measured(*some_latents(count=40, pull=30.0))
    latents, groups = some_latents(count=40, pull=0.0)
    bad = measured(latents, groups)
    assert good["sigma2(part)"].value < 0.01
    assert good["rho(part)"].value > 0.9
    assert -0.2 < bad["rho(part)"].value < 0  # below 0, for b is the nearest of several
    cells, parts = int((groups >= 0).sum()), 4 * 40
    chance = (cells - parts) / (cells - 1)
    assert bad["sigma2(part)"].value == pytest.approx(chance, abs=0.02)
    assert list(bad["sigma2(part)"].reference.values()) == [pytest.approx(chance)]


def test_scaling_or_shifting_a_channel_changes_nothing_and_constant_channels_count_for_nothing():
    latents, groups = some_latents()
    expected = measured(latents, groups)
    scale = torch.tensor([1.0, 1000.0, 0.01, 3.0, -2.0]).view(1, 5, 1, 1)
    constant = torch.full_like(latents[:, :1], 0.3)
    other = measured(torch.cat([latents * scale + 7, constant], dim=1), groups)
    for name, result in expected.items():
        assert other[name].value == pytest.approx(result.value, rel=1e-3)


def test_metrics_do_not_depend_on_the_order_of_images():
    latents, groups = some_latents(count=30)
    order = np.random.default_rng(1).permutation(30)
    assert measured(latents[order], groups[order]) == measured(latents, groups)  # to the bit


def test_images_are_drawn_by_key_and_seed():
    keys = [f"{k * 7 % 31}" for k in range(30)]
    drawn = [_chosen_images(keys, 10, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(drawn[0]) != list(range(10))
    back = keys[::-1]
    assert {keys[k] for k in drawn[0]} == {back[k] for k in _chosen_images(back, 10)}
    assert _chosen_images(keys, 1000) == list(range(30))
    few = measured(*some_latents(), drawn_from=30)
    assert all("on 9 images drawn from 30" in metric.note for metric in few.values())


def test_images_without_two_groups_are_left_out_of_rho_and_counted():
    latents, groups = some_latents()
    alone, single = groups.copy(), np.arange(42).reshape(6, 7)
    alone[2] = 0  # one group
    alone[4] = single  # every cell its own
    alone[5] = -1  # none
    results = measured(latents, alone)
    kept = [i for i in range(9) if i not in (2, 4, 5)]
    assert results["rho(part)"].counts == {"images": 6, "left out": 3}
    x = latents.double().numpy().transpose(0, 2, 3, 1)
    x = (x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2))
    expected = np.mean(
        [silhouette_score(x[i][groups[i] >= 0], groups[i][groups[i] >= 0], metric="cosine") for i in kept]
    )
    assert results["rho(part)"].value == pytest.approx(expected, rel=1e-9)
    assert "left out" in results["rho(part)"].note
    assert results["sigma2(part)"].counts["images"] == 8


def test_a_level_without_groups_is_said_and_spoils_no_other():
    latents, groups = some_latents()
    found = _compression_metrics(latents, {"object": np.full_like(groups, -1), "part": groups})
    assert [metric.name for metric in found.metrics] == ["sigma2(part)", "rho(part)"]
    assert [sentence.split(":")[0] for sentence in found.left_out] == ["sigma2(object)", "rho(object)"]


def test_what_cannot_be_measured_is_refused():
    latents, groups = some_latents()
    with pytest.raises(UserError, match="at least 1 image, got 0"):
        measured(latents[:0], groups[:0])
    with pytest.raises(UserError, match="NaN"):
        measured(latents * math.nan, groups)
    with pytest.raises(UserError, match="all the same number"):
        measured(torch.full_like(latents, 0.1), groups)
    with pytest.raises(UserError, match="no cell of 9 images has a group"):
        measured(latents, np.full_like(groups, -1))
