"""Muon: orthogonalised momentum for the matrices of blocks, AdamW for everything else."""

import pytest
import torch
from torch import nn

from ldmae.config.training import OptimizerConfig
from ldmae.core.errors import UserError
from ldmae.training.muon import Muon, orthogonalised
from ldmae.training.optim import block_matrices, build_optimizer

from .test_engine import Stop, assert_same, last_state, stop_after
from .tiny import Regression, trainer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.tanh(self.linear(x))


class Blocks(nn.Sequential):
    _repeated_blocks = ("Block",)


class BlockRegression(Regression):
    def __init__(self):
        super().__init__()
        self.model = Blocks(nn.Linear(4, 8), Block(), nn.Linear(8, 2))


MUON = {"name": "muon", "muon_learning_rate": 0.05}


@pytest.mark.parametrize("shape", [(64, 64), (48, 16), (16, 64), (64, 200)])
def test_a_band_keeps_its_singular_directions_and_gets_lengths_near_one(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    (step,) = orthogonalised([matrix], band=max(shape))
    u, lengths, vt = torch.linalg.svd(matrix, full_matrices=False)
    along = torch.diagonal(u.mT @ step @ vt.mT)
    assert along[lengths > lengths.max() / 50].min() > 0.6
    assert along.max() < 1.3
    torch.testing.assert_close(u @ torch.diag(along) @ vt, step, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_iterating_gram_matrices_is_iterating_the_matrix(scale):
    made = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(64, 32, generator=made), full_matrices=False)
    matrix = scale * u @ torch.diag(torch.logspace(0, -4, 32)) @ vt
    expected = matrix.double() / (matrix.double().norm() + 1e-7)
    for _ in range(4):
        gram = expected.mT @ expected
        expected = expected @ (3.4445 * torch.eye(32) - 4.775 * gram + 2.0315 * gram @ gram)
    (step,) = orthogonalised([matrix])
    torch.testing.assert_close(step, expected.float(), rtol=0, atol=2e-5)


def test_bands_of_all_matrices_are_orthogonalised_as_each_alone():
    made = torch.Generator().manual_seed(0)
    shapes = [(150, 32), (32, 150), (32, 32), (20, 70)]  # the last band of most is not full
    matrices = [torch.randn(*shape, generator=made) for shape in shapes]
    for matrix, step in zip(matrices, orthogonalised(matrices, band=64), strict=True):
        assert step.shape == matrix.shape
        tall, ours = (matrix, step) if len(matrix) >= matrix.shape[1] else (matrix.mT, step.mT)
        for rows, expected in zip(tall.split(64), ours.split(64), strict=True):
            (alone,) = orthogonalised([rows], band=len(rows)) if len(rows) >= rows.shape[1] else (None,)
            if alone is not None:
                torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
            lengths = torch.linalg.svdvals(expected)
            assert lengths.min() > 0.3
            assert lengths.max() < 1.3


def test_a_step_does_not_depend_on_the_size_of_the_gradient():
    matrix = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    small, large = orthogonalised([1e-3 * matrix, matrix])
    torch.testing.assert_close(small, large, rtol=0, atol=1e-3)


def test_only_the_linear_layers_of_blocks_take_muons_step():
    objective = BlockRegression()
    (matrix,) = block_matrices(objective.model)
    assert matrix is objective.model[1].linear.weight
    optimizer = build_optimizer(objective, OptimizerConfig(**MUON))
    groups = {bool(group.get("muon")): group for group in optimizer.param_groups}
    assert groups[True]["params"] == [matrix] or groups[True]["params"][0] is matrix
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(objective.parameters()))


def test_the_first_step_is_the_orthogonalised_gradient_and_adamws_for_the_rest():
    ours, plain = BlockRegression(), BlockRegression()
    settings = {"learning_rate": 0.01, "weight_decay": 0.1}
    optimizer = build_optimizer(ours, OptimizerConfig(**MUON, **settings))
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group.get("relative_rate", 1.0)
    reference = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    before = ours.model[1].linear.weight.detach().clone()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    for objective in (ours, plain):
        objective.model(x).square().mean().backward()
    gradient = ours.model[1].linear.weight.grad.clone()
    optimizer.step(), reference.step()
    expected = before * (1 - 0.05 * 0.1) - 0.05 * orthogonalised([gradient])[0]
    torch.testing.assert_close(ours.model[1].linear.weight, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.model[1].linear.bias, plain.model[1].linear.bias)
    assert torch.equal(ours.model[1].linear.weight.grad, gradient)  # what is logged afterwards still sees it


def test_a_step_whose_gradients_overflowed_is_skipped():
    objective = BlockRegression()
    optimizer = build_optimizer(objective, OptimizerConfig(**MUON))
    before = [parameter.detach().clone() for parameter in objective.parameters()]
    objective.model(torch.ones(1, 4)).sum().backward()
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())  # as GradScaler sets them
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))


def test_an_interrupted_training_by_muon_ends_as_an_uninterrupted_one_bitwise(tmp_path):
    settings = {"optimizer": MUON | {"gradient_clip": 1.0}, "ema_decay": 0.8}
    whole = trainer(tmp_path / "whole", BlockRegression(), **settings).run()
    with pytest.raises(Stop):
        trainer(tmp_path / "stopped", BlockRegression(), on_step=[stop_after(6)], **settings).run()
    resumed = trainer(tmp_path / "stopped", BlockRegression(), **settings).run()
    assert_same(resumed.state_dict(), whole.state_dict())
    assert_same(last_state(tmp_path / "stopped"), last_state(tmp_path / "whole"))
    assert isinstance(build_optimizer(BlockRegression(), OptimizerConfig(**MUON)), Muon)


def test_a_model_without_blocks_is_refused_with_the_next_move():
    with pytest.raises(UserError, match=r"Sequential names none; set optimizer\.name=adamw"):
        build_optimizer(Regression(), OptimizerConfig(**MUON))
