import math

import pytest
import torch
from scipy.stats import wasserstein_distance

from ldmae.evaluation.distances import kernel_distance, mind
from ldmae.evaluation.generation import _drawn, _mind_count, floor_metrics, mind_metric
from ldmae.perception.names import FEATURES


def features(count, seed, dimensions=6, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=random) + shift


def slow_mind(a, b, directions, seed):
    """The formula, by loops and the assignment problem in place of sorting."""
    from scipy.optimize import linear_sum_assignment

    from ldmae.core.random import generator

    u = torch.randn(a.shape[1], directions, generator=generator(seed, "MIND"), dtype=torch.float64)
    total = 0.0
    for m in range(directions):
        unit = u[:, m] / math.sqrt(float((u[:, m] ** 2).sum()))
        x = [float(row.double() @ unit) for row in a]
        y = [float(row.double() @ unit) for row in b]
        cost = [[(p - q) ** 2 for q in y] for p in x]
        rows, columns = linear_sum_assignment(cost)
        total += sum(cost[i][j] for i, j in zip(rows, columns, strict=True))
    return 3 * a.shape[1] / (len(a) * directions) * total


def test_mind_is_its_formula_by_optimal_assignment():
    a, b = features(20, 0), features(20, 1, shift=0.5)
    value, error = mind(a, b, directions=15, seed=3)
    assert value == pytest.approx(slow_mind(a, b, 15, 3), rel=1e-9)
    assert 0 < error < value


def test_mind_of_shifted_points_is_three_times_the_squared_shift():
    # along u each point moves by <shift, u>, whose mean square is |shift|² / D
    a = features(50, 0, dimensions=3)
    value, error = mind(a, a + torch.tensor([2.0, 0, 0]), directions=4000)
    assert value == pytest.approx(3 * 4, abs=5 * error)
    assert mind(a, a[torch.randperm(50)])[0] == pytest.approx(0, abs=1e-12)
    one = wasserstein_distance(a[:, 0], a[:, 0] + 2)
    assert one == pytest.approx(2)


def test_mind_needs_sets_of_equal_size():
    with pytest.raises(AssertionError, match="equal size, got 4 and 5"):
        mind(features(4, 0), features(5, 1))


def test_minds_floor_is_of_as_many_images_as_mind():
    real, generated = features(100, 0), features(80, 1, shift=1.0)
    labels = FEATURES["efficientnet_lite2"]
    found = mind_metric(generated, real, labels.mind, seed=0)
    floor = {result.name.removeprefix("floor "): result for result in floor_metrics(real, 80, labels)}
    assert _mind_count(80, 100) == 50
    assert found.counts == {"generated": 50, "real": 50}
    assert floor[labels.mind].counts == {"one half": 50, "other half": 50}
    assert floor[labels.mind].value < found.value / 3
    assert floor[labels.kid].value < kernel_distance(generated, real)[0] / 3
    assert floor[labels.precision].value > 0.8
    assert floor_metrics(real[:19], 80, labels) == []


def test_halves_do_not_hang_on_the_order_of_the_images():
    real = features(30, 0)
    other = real[torch.randperm(30, generator=torch.manual_seed(1))]
    assert torch.equal(_drawn(real, 12, 5), _drawn(other, 12, 5))
    assert not torch.equal(_drawn(real, 12, 5), _drawn(real, 12, 6))
    assert mind_metric(real, real, "MIND", 5).value > 0  # not the same ranks of both
