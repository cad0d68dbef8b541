"""Randomness keyed by progress."""

import numpy as np
import pytest
import torch

from ldmae.contracts import BatchKeys
from ldmae.core.random import generator, key_seed, normal, uniform, uniforms


def keys(rows, seed=0, step=3, batch_size=8) -> BatchKeys:
    return BatchKeys(seed, step, rows, batch_size)


def test_a_key_always_gives_the_same_seed_and_another_key_another():
    assert key_seed(0, "order", 5) == key_seed(0, "order", 5)
    seeds = {key_seed(seed, stream, step) for seed in range(20) for stream in "abc" for step in range(200)}
    assert len(seeds) == 20 * 3 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_parts_of_a_key_do_not_run_together():
    assert len({key_seed(1, 23), key_seed(12, 3), key_seed("1", 23), key_seed(1, 2, 3)}) == 4


def test_numpy_integers_key_like_pythons():
    assert key_seed(np.int64(7), "noise", np.int32(2)) == key_seed(7, "noise", 2)


def test_seeds_do_not_change_between_versions():
    assert key_seed(0, "order", 0) == 2094333682667709378  # a change breaks the resume of every older run


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_row_draws_the_same_wherever_it_stands(draw):
    whole = draw((2, 3), keys(range(8)), "noise")
    assert torch.equal(draw((2, 3), keys(range(4, 8)), "noise"), whole[4:])
    assert torch.equal(draw((2, 3), keys([6, 1]), "noise"), whole[[6, 1]])


@pytest.mark.parametrize("draw", [normal, uniform])
def test_rows_steps_seeds_and_streams_draw_independently(draw):
    drawn = [
        draw((16,), keys([0, 1]), "noise").flatten(),
        draw((16,), keys([0, 1], step=4), "noise").flatten(),
        draw((16,), keys([0, 1], seed=1), "noise").flatten(),
        draw((16,), keys([0, 1]), "mask").flatten(),
    ]
    values = torch.cat(drawn).tolist()
    assert len(set(values)) == len(values)


def test_draws_over_many_keys_have_the_distribution_they_are_named_after():
    many = keys(range(20_000))
    z, u = normal((1,), many, "noise"), uniform((1,), many, "time")
    assert abs(z.mean().item()) < 0.03
    assert abs(z.std().item() - 1) < 0.03
    assert abs(u.mean().item() - 0.5) < 0.01
    assert 0 <= u.min().item() <= u.max().item() < 1


def test_draws_leave_the_global_generators_alone():
    before = torch.get_rng_state()
    normal((4,), keys(range(4)), "noise")
    generator(0, "x")
    assert torch.equal(torch.get_rng_state(), before)


def test_on_the_meta_device_nothing_is_drawn():
    assert normal((4,), keys(range(2)), "noise", "meta").shape == (2, 4)


def test_a_few_numbers_drawn_by_key_are_uniform_and_the_same_each_time():
    drawn = np.array([uniforms(5, 0, "crop", index) for index in range(4000)])
    assert drawn[7].tolist() == uniforms(5, 0, "crop", np.int64(7))
    assert 0 <= drawn.min() < 0.01 < 0.99 < drawn.max() < 1
    assert np.allclose(drawn.mean(axis=0), 0.5, atol=0.02)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.06
