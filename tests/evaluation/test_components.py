import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ldmae.core.errors import UserError
from ldmae.evaluation.components import fit_components


@pytest.fixture(scope="module")
def latents():
    """Ten latents of 6 channels on a 4 x 5 grid, with correlated channels of different scales."""
    random = np.random.default_rng(0)
    cells = random.normal(size=(200, 6)) @ random.normal(size=(6, 6)) * np.logspace(-2, 2, 6) + 3
    return torch.tensor(cells.reshape(10, 4, 5, 6)).permute(0, 3, 1, 2).float()


def cells_of(latents):
    x = latents.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    return (x - x.mean(axis=0)) / x.std(axis=0)


def test_components_are_those_of_scikit_learn(latents):
    components = fit_components(latents)
    reference = PCA(3).fit(cells_of(latents))
    for k in range(3):
        axis = reference.components_[k]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        assert np.allclose(components.axes[:, k], axis, atol=1e-9)
    assert components.shares == pytest.approx(reference.explained_variance_ratio_)


def test_pictures_show_the_projections_between_percentiles(latents):
    components = fit_components(latents)
    projected = cells_of(latents) @ components.axes  # (200, 3)
    low, high = np.percentile(projected, [1, 99], axis=0)
    expected = np.rint(np.clip((projected - low) / (high - low), 0, 1) * 255).reshape(10, 4, 5, 3)
    pictures = components.pictures(latents, (8, 20))
    assert pictures.dtype == np.uint8
    assert pictures.shape == (10, 8, 20, 3)
    enlarged = np.repeat(np.repeat(expected, 2, axis=1), 4, axis=2)
    assert np.abs(pictures.astype(int) - enlarged).max() <= 1  # of rounding
    for k in range(3):
        assert (pictures[..., k] == 0).mean() == pytest.approx(0.01, abs=0.01)
        assert (pictures[..., k] == 255).mean() == pytest.approx(0.01, abs=0.01)


def test_pictures_depend_on_neither_signs_nor_order_nor_batches(latents):
    components = fit_components(latents)
    whole = components.pictures(latents, (16, 20))
    one_by_one = np.concatenate([components.pictures(latents[i : i + 1], (16, 20)) for i in range(10)])
    assert np.array_equal(whole, one_by_one)
    order = torch.randperm(10, generator=torch.manual_seed(0))
    again = fit_components(latents[order])
    assert np.abs(again.axes - components.axes).max() < 1e-9
    largest = np.take_along_axis(components.axes, np.abs(components.axes).argmax(axis=0)[None], axis=0)
    assert (largest > 0).all()


def test_fewer_than_three_channels_leave_the_other_colours_grey():
    latents = torch.randn(4, 2, 3, 3, generator=torch.manual_seed(0))
    components = fit_components(latents)
    pictures = components.pictures(latents, (3, 3))
    assert (pictures[..., 2] == 128).all()
    assert sum(components.shares) == pytest.approx(1)
    assert components.shares[2] == 0
    assert pictures[..., 0].std() > 30


def test_latents_without_components_are_refused(latents):
    with pytest.raises(UserError, match="at least 1 image, got 0"):
        fit_components(latents[:0])
    with pytest.raises(UserError, match="all the same number"):
        fit_components(torch.ones(2, 4, 3, 3))
    with pytest.raises(UserError, match="NaN"):
        fit_components(latents * math.nan)
