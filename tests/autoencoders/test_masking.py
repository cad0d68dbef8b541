import pytest
import torch

from ldmae.autoencoders.masking import num_visible, random_visible_indices, visible_mask
from ldmae.config.autoencoder import MaskingConfig
from ldmae.contracts import BatchKeys
from ldmae.core.errors import UserError


def keys(rows=range(4), step=0, seed=0) -> BatchKeys:
    return BatchKeys(seed=seed, step=step, rows=list(rows), batch_size=8)


@pytest.mark.parametrize(
    ("tokens", "ratio", "expected"),
    [(16, 0.75, 4), (16, 0.6, 6), (256, 0.6, 102), (16, 0.0, 16), (4, 0.99, 1)],
)
def test_the_stated_share_stays_visible_and_at_least_one_token(tokens, ratio, expected):
    assert num_visible(tokens, ratio) == expected
    assert random_visible_indices(keys(), tokens, ratio).shape == (4, expected)


def test_visible_places_are_sorted_and_distinct():
    visible = random_visible_indices(keys(), 64, 0.6)
    assert visible.dtype == torch.int64
    assert (visible.diff(dim=1) > 0).all()
    assert visible.min() >= 0
    assert visible.max() < 64


def test_a_rows_mask_depends_on_its_own_key_alone():
    whole = random_visible_indices(keys(range(8)), 64, 0.6)
    piece = random_visible_indices(keys([5, 2]), 64, 0.6)
    assert torch.equal(piece, whole[[5, 2]])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, random_visible_indices(keys(range(8), step=1), 64, 0.6))
    assert not torch.equal(whole, random_visible_indices(keys(range(8), seed=1), 64, 0.6))


def test_every_place_is_hidden_about_as_often():
    visible = random_visible_indices(keys(range(4000)), 10, 0.6)
    share = visible_mask(visible, 10).float().mean(0)
    torch.testing.assert_close(share, torch.full((10,), 0.4), rtol=0, atol=0.04)


def test_the_mask_is_true_where_patches_are_visible():
    visible = torch.tensor([[0, 3], [1, 2]])
    assert visible_mask(visible, 5).tolist() == [
        [True, False, False, True, False],
        [False, True, True, False, False],
    ]


@pytest.mark.parametrize(
    ("ratio", "told"), [(-0.1, "at least 0"), (1.0, "below 1"), (float("nan"), "a finite number")]
)
def test_ratio_outside_its_range_is_refused(ratio, told):
    with pytest.raises(UserError, match=f"ratio must be {told}, got"):
        MaskingConfig(ratio=ratio)
