import numpy as np
import pytest
import torch

from ldmae.core.errors import UserError
from ldmae.evaluation import distances
from ldmae.evaluation.distances import (
    Statistics,
    fit_gaussian,
    frechet_distance,
    frechet_of_statistics,
    inception_score,
    kernel_distance,
    precision_recall,
)
from ldmae.evaluation.generation import fidelity_metrics, generation_metrics
from ldmae.evaluation.references import Reference
from ldmae.perception.features import Features
from ldmae.perception.names import FEATURES


class Extractor:
    """The part of a feature extractor that names the figures."""

    labels = FEATURES["efficientnet_lite0"]


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


@pytest.mark.parametrize("subsets", [9, 7, 6])  # at once, all but one set, and one after another
def test_kernel_distance_matches_torch_fidelity_on_subsets(subsets):
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = features(60).double(), features(50, 0.5, seed=1).double()
    a, b = a[a.sum(1).argsort()], b[b.sum(1).argsort()]  # the order that ours makes of any
    expected = kid_features_to_metric(
        a, b, kid_subsets=subsets, kid_subset_size=20, rng_seed=3, verbose=False
    )
    assert kernel_distance(a, b, 20, subsets, seed=3) == pytest.approx(tuple(expected.values()))


def test_kernel_distance_depends_on_the_seed_but_not_on_the_order():
    a, b = features(60), features(50, 0.5, seed=1)
    value = kernel_distance(a, b, 20, 5, seed=0)
    assert kernel_distance(a.flip(0), b[torch.randperm(50)], 20, 5, seed=0) == value
    assert kernel_distance(a, b, 20, 5, seed=1) != value


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63 - 1])
def test_kernel_distance_takes_every_seed_that_settings_take(seed):
    a, b = features(40), features(40, 0.3, 1)
    assert kernel_distance(a, b, 20, 5, seed) == kernel_distance(a, b, 20, 5, seed)
    assert kernel_distance(a, b, 20, 5, seed) != kernel_distance(a, b, 20, 5, 0)


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
    with pytest.raises(UserError, match=r"at least 9 images of each kind, got 8.*KID"):
        frechet_distance(features(9), features(8))


def test_frechet_distance_of_correlated_gaussians_matches_the_closed_form():
    from scipy.linalg import sqrtm

    draw = np.random.default_rng(0)
    roots, means = draw.normal(size=(2, 6, 6)), draw.normal(size=(2, 6))
    first, second = (root @ root.T for root in roots)
    half = sqrtm(first)  # tr sqrt(A^½ B A^½) is the textbook's form of the same term
    cross = np.trace(sqrtm(half @ second @ half)).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(first + second) - 2 * cross
    gaussians = Statistics(means[0], first), Statistics(means[1], second)
    assert frechet_of_statistics(*gaussians) == pytest.approx(expected)


def test_covariances_are_shrunk_only_where_asked_and_needed():
    from sklearn.covariance import LedoitWolf

    few, many = features(20, dimensions=32), features(60, 0.5, seed=1, dimensions=32)
    with pytest.raises(UserError, match="at least 33 images"):
        frechet_distance(few, many)
    shrunk = LedoitWolf().fit(few.double().numpy())
    plain = Statistics(many.double().mean(0).numpy(), np.cov(many.double().numpy(), rowvar=False))
    expected = frechet_of_statistics(Statistics(shrunk.location_, shrunk.covariance_), plain)
    assert frechet_distance(few, many, shrink=True) == pytest.approx(expected, rel=1e-6)
    assert fit_gaussian(few, shrink=True).shrinkage == pytest.approx(shrunk.shrinkage_)
    assert frechet_distance(many, many + 1, shrink=True) == frechet_distance(many, many + 1)
    with pytest.raises(UserError, match="at least 10 images"):
        frechet_distance(features(9, dimensions=32), many, shrink=True)


# ---- Inception Score


def test_inception_score_of_one_split_matches_its_formula():
    logits = features(50, dimensions=6) * 3
    p = logits.double().softmax(1).numpy()
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    value, deviation = inception_score(logits)
    assert value == pytest.approx(expected)
    assert deviation == 0


def test_inception_score_cuts_splits_as_adm_does():
    # n sure images of n classes score n: splits of 3, 3 and 1 images
    sure = torch.eye(7) * 100
    value, deviation = inception_score(sure, split_size=3)
    assert value == pytest.approx((3 + 3 + 1) / 3)
    assert deviation == pytest.approx(np.std([3, 3, 1]))


def test_inception_score_depends_on_the_seed_but_not_on_the_order():
    logits = features(60, dimensions=6) * 3
    value = inception_score(logits, split_size=20)
    assert inception_score(logits.flip(0), split_size=20) == value
    assert inception_score(logits[torch.randperm(60)], split_size=20) == value
    assert inception_score(logits, split_size=20, seed=1) != value


def test_splits_are_mixed_however_the_images_are_sorted():
    # Two classes that any sorting tells apart: splits of one class each would score 1
    logits = torch.tensor([[90.0, 0.0], [0.0, 100.0]]).repeat_interleave(100, dim=0)
    assert inception_score(logits, split_size=100)[0] > 1.9


# ---- precision and recall


def manifold_share(inside, of, k=3):
    """Brute force: the share of `inside` that lies within the k-th neighbour's distance of any of `of`."""
    inside, of = inside.double().numpy(), of.double().numpy()
    radii = [sorted(np.linalg.norm(of - x, axis=1))[k] for x in of]  # [0] is itself
    return np.mean([any(np.linalg.norm(x - y) <= r for y, r in zip(of, radii, strict=True)) for x in inside])


def test_precision_and_recall_match_brute_force():
    generated, real = features(70) * 0.7, features(50, 0.8, seed=1)
    expected = manifold_share(generated, real), manifold_share(real, generated)
    assert 0 < expected[1] < expected[0] < 1
    assert precision_recall(generated, real) == expected
    expected = manifold_share(generated, real, 1), manifold_share(real, generated, 1)
    assert precision_recall(generated, real, neighbours=1) == expected


def test_precision_and_recall_depend_neither_on_the_order_nor_on_the_memory(monkeypatch):
    generated, real = features(70) * 0.7, features(50, 0.8, seed=1)
    value = precision_recall(generated, real)
    assert precision_recall(generated.flip(0), real[torch.randperm(50)]) == value
    monkeypatch.setattr(distances, "_DISTANCE_ROWS", 7)
    assert precision_recall(generated, real) == value


def test_precision_and_recall_need_more_images_than_neighbours():
    assert precision_recall(features(4), features(4)) == (1, 1)
    with pytest.raises(UserError, match=r"at least 4 images of each kind, got 3"):
        precision_recall(features(3), features(9))


# ---- kernel distance and results


@pytest.mark.parametrize(("size", "needed"), [(None, 10), (30, 30)])
def test_too_few_images_are_told_how_many_are_needed(size, needed):
    with pytest.raises(UserError, match=f"at least {needed} images of each kind, got 9"):
        kernel_distance(features(9), features(500), size)


def test_results_bear_labels_counts_and_subset_size():
    kid, fd = fidelity_metrics(features(60), features(70, 0.5, seed=1), Extractor())
    assert (kid.name, fd.name) == ("KID-efficientnet_lite0", "FD-efficientnet_lite0")
    assert kid.counts == fd.counts == {"generated": 60, "real": 70}
    assert kid.better == fd.better == "lower"
    assert "100 subsets of 60 images" in kid.note
    assert "all generated images" in kid.note
    assert list(kid.spread) == ["standard deviation over subsets"]
    assert kid.value == pytest.approx(kernel_distance(features(60), features(70, 0.5, seed=1))[0])


# ---- all figures of generated images


def measured(count, shift=0.0, seed=0, dimensions=8):
    pooled, spatial = (features(count, shift, seed + i, dimensions) for i in (0, 100))
    return Features("efficientnet_lite0", pooled, spatial, features(count, 0, seed + 200, 5) * 3)


def referred(images):
    return Reference(images.extractor, fit_gaussian(images.pooled), fit_gaussian(images.spatial), images)


LITE0 = [f"{name}-efficientnet_lite0" for name in ("FD", "sFD", "IS", "KID", "precision", "recall")]


def test_all_figures_are_given_by_their_names_and_are_the_functions_own():
    generated, real = measured(60), measured(70, 0.5, seed=1)
    results = generation_metrics(generated, referred(real))
    assert [result.name for result in results] == LITE0
    expected = [
        frechet_distance(generated.pooled, real.pooled),
        frechet_distance(generated.spatial, real.spatial),
        inception_score(generated.logits)[0],
        kernel_distance(generated.pooled, real.pooled)[0],
        *precision_recall(generated.pooled, real.pooled),
    ]
    assert [result.value for result in results] == pytest.approx(expected)
    assert [result.better for result in results] == ["lower", "lower", "higher", "lower", "higher", "higher"]
    counts = {"generated": 60, "real": 70}
    assert all(result.counts == counts for result in results if not result.name.startswith("IS"))
    assert "one split of 60 images" in results[2].note
    assert not any("left out" in result.note for result in results)


def test_figures_ignore_the_order_of_both_sets_to_the_bit():
    generated, real = measured(60), measured(70, 0.5, seed=1)
    mixed = generated.select(torch.randperm(60)), real.select(torch.randperm(70))
    assert generation_metrics(mixed[0], referred(mixed[1])) == generation_metrics(generated, referred(real))


def test_what_too_few_images_leave_out_stands_in_the_first_note():
    generated, real = measured(20, dimensions=32), measured(70, 0.5, seed=1, dimensions=32)
    results = generation_metrics(generated, referred(real))
    assert [result.name for result in results] == LITE0[2:]
    reason = "needs at least 33 images of each kind, got 20 generated and 70 real; take more, or set"
    assert f"left out: FD-efficientnet_lite0: it {reason}" in results[0].note
    assert f"sFD-efficientnet_lite0: it {reason}" in results[0].note
    results = generation_metrics(measured(3, dimensions=32), referred(real), shrink=True)
    assert [result.name for result in results] == LITE0[2:3]
    for shrink in (False, True):  # which would not help
        note = generation_metrics(measured(3, dimensions=32), referred(real), shrink=shrink)[0].note
        assert "FD-efficientnet_lite0: it needs at least 10 images of each kind, got 3 generated" in note
        assert "recall-efficientnet_lite0: it needs at least 4" in note
        assert "70 real; take more; " in note


def test_a_set_needs_one_image_more_than_features():
    enough, too_few = measured(9), measured(8, seed=1)
    assert generation_metrics(enough, referred(measured(9, seed=1)))[0].name == LITE0[0]
    for pair in ((enough, too_few), (too_few, enough)):
        assert generation_metrics(pair[0], referred(pair[1]))[0].name == LITE0[2]


def test_shrunk_figures_say_so_and_of_which_set():
    few, many = measured(20, dimensions=32), measured(70, 0.5, seed=1, dimensions=32)
    results = generation_metrics(few, referred(many), shrink=True)
    assert [result.name for result in results] == LITE0
    assert results[0].value == pytest.approx(frechet_distance(few.pooled, many.pooled, shrink=True))
    for result in results[:2]:
        assert "shrunk covariance (Ledoit and Wolf) of the generated images (intensity 0." in result.note
        assert "real images (" not in result.note
    results = generation_metrics(many, referred(few), shrink=True)
    assert results[1].value == pytest.approx(frechet_distance(many.spatial, few.spatial, shrink=True))
    assert "of the real images (intensity 0." in results[0].note
    plain = generation_metrics(many, referred(many), shrink=True)
    assert not any("shrunk" in result.note for result in plain)


def test_a_reference_that_keeps_a_part_of_too_few_images_is_not_shrunk():
    few, many = measured(20, dimensions=32), measured(70, 0.5, seed=1, dimensions=32)
    whole = referred(few)
    part = Reference(whole.extractor, whole.pooled, whole.spatial, few.select(torch.arange(15)))
    results = generation_metrics(many, part, shrink=True)
    assert [result.name for result in results] == LITE0[2:]
    assert "it needs the features of all 20 real images (evaluation.real_images)" in results[0].note


def test_statistics_alone_give_frechet_distances_and_the_inception_score():
    generated, real = measured(60), measured(70, 0.5, seed=1)
    whole = fit_gaussian(real.pooled)
    unknown = Statistics(whole.mean, whole.covariance)
    reference = Reference(real.extractor, unknown, None, None, "the statistics in adm.npz")
    fid, score = generation_metrics(generated, reference)
    assert (fid.name, score.name) == (LITE0[0], LITE0[2])
    assert fid.value == pytest.approx(frechet_distance(generated.pooled, real.pooled))
    assert fid.counts == {"generated": 60}
    assert fid.note.startswith(
        "against the statistics in adm.npz; left out: sFD-efficientnet_lite0: the reference"
    )
    assert "KID-efficientnet_lite0, precision-efficientnet_lite0, recall-efficientnet_lite0: the" in fid.note


def test_hardly_any_generated_images_are_refused():
    with pytest.raises(UserError, match="at least 2 generated images, got 1"):
        generation_metrics(measured(1), referred(measured(70)))


def test_many_images_are_split_as_the_note_says():
    logits = torch.zeros(5200, 2)
    generated = Features("efficientnet_lite0", features(5200), features(5200, seed=1), logits)
    reference = Reference("efficientnet_lite0")
    (score,) = generation_metrics(generated, reference)
    assert score.value == pytest.approx(1)
    assert score.note.startswith("mean of 2 splits of 5000 images, the last of 200; left out")
    assert score.spread == {"standard deviation over splits": pytest.approx(0)}


def test_a_small_set_gets_the_kernel_distance_alone_or_a_shrunk_one_where_that_is_asked_for():
    wide = [features(20, seed=s, dimensions=32) for s in (0, 1)]
    extractor = Extractor()
    (kid,) = fidelity_metrics(*wide, extractor)
    assert kid.name == "KID-efficientnet_lite0"
    assert "left out: FD-efficientnet_lite0: it needs at least 33 images of each kind" in kid.note
    kid, fd = fidelity_metrics(*wide, extractor, shrink=True)
    assert fd.value == pytest.approx(frechet_distance(*wide, shrink=True))
    assert "shrunk covariance" in fd.note
