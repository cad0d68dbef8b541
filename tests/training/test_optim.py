"""AdamW, its parameter groups, and its rate over the steps."""

import math

import pytest
import torch
from torch import nn

from ldmae.config.training import OptimizerConfig, TrainingConfig
from ldmae.training.optim import _parameter_groups, build_optimizer, learning_rate_at, report_long_warmup

from ..tiny import tiny_vmae


def rates(steps, **settings):
    config = OptimizerConfig(learning_rate=2.0, **settings)
    return [learning_rate_at(step, steps, config) for step in range(steps)]


def test_a_constant_rate_is_reached_by_linear_warm_up():
    assert rates(6, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates(3) == [2.0, 2.0, 2.0]


def test_a_training_within_its_warm_up_says_so(capsys):
    optimizer = OptimizerConfig(warmup_steps=100)
    report_long_warmup("diffusion", TrainingConfig(steps=101, optimizer=optimizer))
    assert capsys.readouterr().err == ""
    report_long_warmup("diffusion", TrainingConfig(steps=80, optimizer=optimizer))
    said = " ".join(capsys.readouterr().err.split())
    assert "80 steps end within the warm-up" in said
    assert "to 80% of learning_rate; set diffusion.training.optimizer.warmup_steps to 8," in said


def test_cosine_falls_from_the_peak_to_zero_by_half_a_cycle():
    falling = rates(101, schedule="cosine")
    assert falling[0] == 2.0
    assert falling[50] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 50 / 101)))
    assert 0 < falling[-1] < 1e-3
    assert falling == sorted(falling, reverse=True)


def test_cosine_starts_after_the_warm_up():
    after = rates(14, schedule="cosine", warmup_steps=4)
    assert after[3] == after[4] == 2.0
    assert after[4:] == pytest.approx(rates(10, schedule="cosine"))


def test_cosine_is_that_of_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for ours in rates(20, schedule="cosine"):
        assert ours == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step(), scheduler.step()


def test_a_cosine_that_ends_later_goes_on_as_the_longer_training_began():
    longer = rates(100, schedule="cosine", warmup_steps=4)
    stopped = rates(30, schedule="cosine", warmup_steps=4, schedule_steps=100)
    assert stopped == longer[:30]


def test_a_run_shorter_than_its_warm_up_has_a_rate_throughout():
    assert rates(2, schedule="cosine", warmup_steps=4) == [0.5, 1.0]
    assert all(rate > 0 for rate in rates(4, schedule="cosine", warmup_steps=4))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
        self.classes = nn.Embedding(4, 3)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_only_matrices_decay():
    model = Parts()
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = _parameter_groups(model, 0.1)
    assert {named[id(p)] for p in decayed["params"]} == {"linear.weight"}
    assert {named[id(p)] for p in plain["params"]} == {
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "classes.weight",
        "mask_token",
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_in_no_group():
    model = tiny_vmae()
    model.freeze_encoder()
    grouped = [p for group in _parameter_groups(model, 0.1) for p in group["params"]]
    assert len(grouped) == sum(p.requires_grad for p in model.parameters()) > 0
    assert all(p.requires_grad for p in grouped)


class Adversarial(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.adversary = nn.Linear(3, 2), nn.Linear(2, 1)


def test_an_adversary_is_a_group_of_its_own_with_its_rate_and_betas_without_decay():
    module = Adversarial()
    config = OptimizerConfig(
        learning_rate=0.1, weight_decay=0.2, discriminator_learning_rate=0.4, discriminator_betas=[0.1, 0.2]
    )
    *ours, theirs = build_optimizer(module, config).param_groups
    assert [id(p) for p in theirs["params"]] == [id(p) for p in module.adversary.parameters()]
    assert {id(p) for group in ours for p in group["params"]} == {id(p) for p in module.model.parameters()}
    assert (theirs["lr"], theirs["betas"], theirs["weight_decay"]) == (0.4, (0.1, 0.2), 0.0)
    assert theirs["relative_rate"] == pytest.approx(4.0)
    assert [group["weight_decay"] for group in ours] == [0.2, 0.0]
    same = build_optimizer(module, OptimizerConfig(learning_rate=0.1)).param_groups[-1]
    assert (same["lr"], same["relative_rate"]) == (0.1, 1.0)


def test_an_empty_group_is_left_out():
    assert [group["weight_decay"] for group in _parameter_groups(nn.LayerNorm(3), 0.1)] == [0.0]


def test_the_optimizer_steps_as_plain_adamw():
    torch.manual_seed(0)
    ours, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    reference.load_state_dict(ours.state_dict())
    config = OptimizerConfig(learning_rate=0.1, betas=[0.8, 0.9], weight_decay=0.1)
    optimizer = build_optimizer(ours, config)
    groups = [
        {"params": [reference.weight], "weight_decay": 0.1},
        {"params": [reference.bias], "weight_decay": 0},
    ]
    plain = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), foreach=False)
    for _ in range(3):
        x = torch.randn(4, 3)
        for model, step in ((ours, optimizer), (reference, plain)):
            step.zero_grad()
            model(x).square().sum().backward()
            step.step()
    torch.testing.assert_close(ours.weight, reference.weight)
    torch.testing.assert_close(ours.bias, reference.bias)
