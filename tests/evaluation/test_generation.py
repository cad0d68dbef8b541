import numpy as np
import pytest
import torch

from ldmae.core.errors import UserError
from ldmae.evaluation.generation import fidelity_results, frechet_distance, kernel_distance


class Extractor:
    """The part of a feature extractor that names the figures."""

    dimensions = 8
    kid_label = "KID-efficientnet_lite0"
    fd_label = "FD-efficientnet_lite0"


def features(count, shift=0.0, seed=0, dimensions=8):
    return torch.randn(count, dimensions, generator=torch.manual_seed(seed)) + shift


def unbiased_mmd(a, b):
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    a, b = a.double().numpy(), b.double().numpy()
    n, m = len(a), len(b)
    within_a = (kernel(a, a).sum() - np.trace(kernel(a, a))) / (n * (n - 1))
    within_b = (kernel(b, b).sum() - np.trace(kernel(b, b))) / (m * (m - 1))
    return within_a + within_b - 2 * kernel(a, b).mean()


def test_kernel_distance_on_whole_sets_is_the_unbiased_mmd():
    a, b = features(40), features(40, 0.5, seed=1)
    mean, deviation = kernel_distance(a, b, subset_size=40, num_subsets=3)
    assert mean == pytest.approx(unbiased_mmd(a, b), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_kernel_distance_matches_torch_fidelity_on_subsets():
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = features(60).double(), features(50, 0.5, seed=1).double()
    a, b = a[a.sum(1).argsort()], b[b.sum(1).argsort()]  # the order that ours makes of any
    expected = kid_features_to_metric(a, b, kid_subsets=7, kid_subset_size=20, rng_seed=3, verbose=False)
    assert kernel_distance(a, b, 20, 7, seed=3) == pytest.approx(tuple(expected.values()))


def test_kernel_distance_depends_on_the_seed_but_not_on_the_order():
    a, b = features(60), features(50, 0.5, seed=1)
    value = kernel_distance(a, b, 20, 5, seed=0)
    assert kernel_distance(a.flip(0), b[torch.randperm(50)], 20, 5, seed=0) == value
    assert kernel_distance(a, b, 20, 5, seed=1) != value


def test_kernel_distance_is_near_zero_for_one_distribution_and_grows_with_the_shift():
    a = features(400)
    near, far, farther = (kernel_distance(a, features(400, s, seed=1))[0] for s in (0, 0.3, 0.6))
    assert abs(near) < far / 3 < far < farther


def test_frechet_distance_matches_the_closed_form():
    # Diagonal covariances: |m1 - m2|² + Σ (s1 - s2)²; whitening makes the samples' moments exact
    scale_a, scale_b, shift = torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 2, 1, 5]), 1.5
    white = features(200, dimensions=4).double()
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov())).T
    expected = 4 * shift**2 + (scale_a - scale_b).square().sum().item()
    assert frechet_distance(white * scale_a, white * scale_b + shift) == pytest.approx(expected)


def test_frechet_distance_needs_more_images_than_features():
    assert frechet_distance(features(9), features(9, seed=1)) > 0
    with pytest.raises(UserError, match=r"at least 9 images of each kind, got 9 and 8.*KID"):
        frechet_distance(features(9), features(8))


@pytest.mark.parametrize(("size", "needed"), [(None, 10), (30, 30)])
def test_too_few_images_are_told_how_many_are_needed(size, needed):
    with pytest.raises(UserError, match=f"at least {needed} images of each kind, got 9 and 500"):
        kernel_distance(features(9), features(500), size)


def test_results_bear_labels_counts_and_subset_size():
    kid, fd = fidelity_results(features(60), features(70, 0.5, seed=1), Extractor())
    assert (kid.name, fd.name) == ("KID-efficientnet_lite0", "FD-efficientnet_lite0")
    assert kid.counts == fd.counts == {"generated": 60, "real": 70}
    assert kid.better == fd.better == "lower"
    assert "100 subsets of 60 images" in kid.note
    assert "all generated images" in kid.note
    assert kid.value == pytest.approx(kernel_distance(features(60), features(70, 0.5, seed=1))[0])


def test_small_sets_get_the_kernel_distance_alone():
    wide = [features(20, seed=s, dimensions=32) for s in (0, 1)]
    extractor = Extractor()
    extractor.dimensions = 32
    assert [result.name for result in fidelity_results(*wide, extractor)] == ["KID-efficientnet_lite0"]
