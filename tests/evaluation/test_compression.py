import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from ldmae.core.errors import UserError
from ldmae.evaluation.compression import (
    CompressionMetrics,
    channel_statistics,
    silhouette,
    within_group_variance,
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
    metrics = CompressionMetrics([level], **settings)
    metrics.update(range(len(latents)), latents, {level: groups})
    return {result.name: result for result in metrics.compute()}


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
            assert silhouette(cells, labels) == pytest.approx(expected, abs=1e-8)
        else:
            assert silhouette(cells, labels) is None


def test_cells_that_are_the_same_but_for_rounding_have_silhouette_zero():
    noise = np.random.default_rng(0).normal(size=(12, 7)) * 1e-8
    assert silhouette(np.linspace(1, 3, 7) + noise, np.arange(12) % 3) == 0


@pytest.mark.parametrize("value", [0.1, 0.3, -1 / 3, 1e-6, 12345.678])
def test_a_channel_that_varies_by_rounding_alone_has_deviation_zero(value):
    cells = np.full((1, 43), value, np.float32)
    cells[:, ::2] = np.nextafter(cells[:, ::2], np.float32(np.inf))  # the next number up
    mean, deviation = channel_statistics([cells] * 7)
    assert mean == pytest.approx(value)
    assert deviation == 0


def test_random_groups_have_the_variance_that_the_note_names():
    random = np.random.default_rng(0)
    cells, groups = random.normal(size=(12, 3)), np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3])
    values = [within_group_variance([(cells, random.permutation(groups))])[0] for _ in range(2000)]
    chance = (12 - 4) / (12 - 1)
    assert np.mean(values) == pytest.approx(chance, abs=0.01)
    latents = torch.tensor(cells.T.reshape(1, 3, 4, 3))
    note = measured(latents, groups.reshape(1, 4, 3))["sigma2(part)"].note
    assert f"at random, groups of these sizes would have {chance:.3f}" in note


def test_groups_are_per_image():
    latents, _ = some_latents(count=2)
    one_label = np.zeros((2, 6, 7), int)
    x = latents.double()
    x = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / x.std(dim=(0, 2, 3), keepdim=True, unbiased=False)
    expected = (x - x.mean(dim=(2, 3), keepdim=True)).square().mean() / x.square().mean()
    metrics = CompressionMetrics(["object"])
    metrics.update(["a", "b"], latents, {"object": one_label})
    (sigma2,) = metrics.compute()
    assert sigma2.value == pytest.approx(float(expected), rel=1e-6)
    assert metrics.unmeasured == ["rho(object): none of 2 images has two groups of which one has two cells"]


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
    assert f"at random, groups of these sizes would have {chance:.3f}" in bad["sigma2(part)"].note


def test_scaling_or_shifting_a_channel_changes_nothing_and_constant_channels_count_for_nothing():
    latents, groups = some_latents()
    expected = measured(latents, groups)
    scale = torch.tensor([1.0, 1000.0, 0.01, 3.0, -2.0]).view(1, 5, 1, 1)
    constant = torch.full_like(latents[:, :1], 0.3)
    other = measured(torch.cat([latents * scale + 7, constant], dim=1), groups)
    for name, result in expected.items():
        assert other[name].value == pytest.approx(result.value, rel=1e-3)


def by_process(latents, groups, shares, batch, **settings):
    """Collects in several processes' shares and merges them."""
    whole = CompressionMetrics(["part", "object"], **settings)
    for share in shares:
        part = CompressionMetrics(["part", "object"], **settings)
        for i in range(0, len(share), batch):
            rows = share[i : i + batch]
            part.update(
                rows, latents[rows], {"object": groups[rows] // 2, "part": torch.tensor(groups[rows])}
            )
        whole.merge(pickle.loads(pickle.dumps(part.collected())))
    return [result.to_dict() for result in whole.compute()]


@pytest.mark.parametrize("limit", [1000, 11])
def test_figures_depend_neither_on_batches_nor_processes_nor_order(limit):
    latents, groups = some_latents(count=30)
    expected = by_process(latents, groups, [list(range(30))], 30, limit=limit)
    order = np.random.default_rng(1).permutation(30)
    for shares, batch in (([order.tolist()], 1), ([order[:7].tolist(), order[7:].tolist()], 4)):
        assert by_process(latents, groups, shares, batch, limit=limit) == expected  # to the bit
    note = expected[0]["note"]
    assert ("on 11 images drawn from 30" in note) == (limit == 11)


def test_figures_of_all_images_do_not_depend_on_their_names():
    latents, groups = some_latents(count=20)
    names = CompressionMetrics(["part"], seed=3)
    names.update([f"folder/{i}.png" for i in range(20)], latents, {"part": groups})
    assert [r.value for r in names.compute()] == [r.value for r in measured(latents, groups).values()]


def test_the_limit_draws_images_by_key_and_seed_and_bounds_the_memory():
    latents, groups = some_latents(count=30)
    drawn = []
    for seed in (0, 0, 1):
        metrics = CompressionMetrics(["part"], limit=10, seed=seed)
        metrics.update(np.arange(30), latents, {"part": groups})
        kept = metrics.collected()["images"]
        assert sum(x.nbytes + g.nbytes for x, g in kept.values()) == 10 * 42 * 4 * (5 + 1)
        assert all(x.base is None for x, _ in kept.values())  # a view would keep the batch
        drawn.append(sorted(kept))
        assert len(kept) == 10
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != list(range(10))


@pytest.mark.parametrize("limit", [11, 30, 1000])
def test_adding_the_chosen_images_alone_gives_the_same_results(limit):
    latents, groups = some_latents(count=30)
    keys = [f"{k * 7 % 31}" for k in range(30)]
    whole, part = (CompressionMetrics(["part"], limit, seed=2) for _ in range(2))
    whole.update(keys, latents, {"part": groups})
    places = part.chosen(keys)
    part.pass_over(30 - len(places))
    assert len(places) == min(limit, 30)
    part.update([keys[k] for k in places], latents[places], {"part": groups[places]})
    assert part.compute() == whole.compute()  # notes too


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
    metrics = CompressionMetrics(["object", "part"])
    metrics.update(range(9), latents, {"object": np.full_like(groups, -1), "part": groups})
    assert [result.name for result in metrics.compute()] == ["sigma2(part)", "rho(part)"]
    assert [sentence.split(":")[0] for sentence in metrics.unmeasured] == ["sigma2(object)", "rho(object)"]


def test_what_cannot_be_measured_is_refused():
    latents, groups = some_latents()
    with pytest.raises(UserError, match="no images"):
        CompressionMetrics(["part"]).compute()
    with pytest.raises(UserError, match="NaN"):
        measured(latents * math.nan, groups)
    with pytest.raises(UserError, match="all the same number"):
        measured(torch.full_like(latents, 0.1), groups)
    with pytest.raises(UserError, match="no cell of 9 images has a group"):
        measured(latents, np.full_like(groups, -1))


def test_an_image_that_comes_twice_is_a_mistake():
    latents, groups = some_latents(count=2)
    metrics = CompressionMetrics(["part"])
    metrics.update([0, 1], latents, {"part": groups})
    with pytest.raises(AssertionError, match="unique"):
        metrics.update([1], latents[:1], {"part": groups[:1]})
    with pytest.raises(AssertionError, match="unique"):
        metrics.merge(metrics.collected())
