import math

import pytest
import torch

from ldmae.core.errors import UserError
from ldmae.core.random import generator
from ldmae.evaluation.ifid import _choose_neighbours, _nearest_latents, _slerp


def latents(count, seed):
    return torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_neighbours_are_those_of_the_largest_cosines():
    ours, training = latents(4, 0), latents(30, 1)
    found = _nearest_latents(ours, training, 5)
    for i, z in enumerate(ours):
        cosines = [
            sum(float(p) * float(q) for p, q in zip(z.flatten(), t.flatten(), strict=True))
            / math.sqrt(float((t**2).sum()))
            for t in training
        ]
        assert found[i].tolist() == sorted(range(30), key=lambda n: -cosines[n])[:5]


def test_an_image_is_not_its_own_neighbour():
    ours = latents(6, 0)
    assert _nearest_latents(ours, ours, 1)[:, 0].tolist() == list(range(6))
    found = _nearest_latents(ours, ours, 3, alike=(torch.arange(6), torch.arange(6)))
    assert all(i not in found[i] for i in range(6))
    assert _nearest_latents(ours, ours, 10, alike=(torch.arange(6), torch.arange(6))).shape == (6, 5)


def test_near_duplicates_of_an_image_are_not_its_neighbours():
    ours, groups = latents(6, 0), torch.arange(6)
    twice = torch.cat([ours, ours + 1e-4])
    found = _nearest_latents(ours, twice, 20, alike=(groups, groups.repeat(2)))
    assert found.shape == (6, 10)
    assert all(i not in found[i] % 6 for i in range(6))
    with pytest.raises(UserError, match="beside an image's near-duplicates"):
        _nearest_latents(ours[:1], twice[::6], 3, alike=(groups[:1], groups[[0, 0]]))


def test_a_neighbour_is_drawn_by_the_softmax_of_the_negative_mean_squared_difference():
    z, training = latents(1, 0), latents(40, 1) * 1.5
    nearest = _nearest_latents(z, training, 4)
    keys = [str(k) for k in range(4000)]
    many = z.expand(4000, -1, -1, -1)
    chosen = _choose_neighbours(many, training, nearest.expand(4000, -1), keys)
    squares = torch.stack([(training[n] - z[0]).square().mean() for n in nearest[0]])
    expected = torch.softmax(-squares, dim=0)
    shares = torch.stack([(chosen == n).double().mean() for n in nearest[0]])
    torch.testing.assert_close(shares, expected.double(), atol=0.03, rtol=0)
    again = _choose_neighbours(many[:1], training, nearest, [keys[7]])
    assert again == chosen[7], "an image's draw hangs on its key alone"
    assert float(torch.rand((), generator=generator(0, "iFID", "7"), dtype=torch.float64)) >= 0


def test_slerp_is_the_arc_between_directions_and_a_line_between_parallel_latents():
    first, second = latents(1, 0), latents(1, 1)
    one, other = first.flatten().double(), second.flatten().double()
    angle = math.acos(float(one @ other / one.norm() / other.norm()))
    expected = (math.sin(0.75 * angle) * one + math.sin(0.25 * angle) * other) / math.sin(angle)
    torch.testing.assert_close(_slerp(first, second, 0.25).flatten().double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(_slerp(first, 3 * first, 0.5), 2 * first)
    unit = first / first.norm()
    turned = second / second.norm()
    assert abs(float(_slerp(unit, turned, 0.5).norm()) - 1) < 1e-5
