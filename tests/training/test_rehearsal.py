"""Steps that are timed before a training."""

from pathlib import Path

import pytest
import torch

from ldmae.training.engine import Trainer
from ldmae.training.rehearsal import rehearsal

from .tiny import adversarial_trainer, trainer


def rehearse(trainer: Trainer) -> None:
    """Does more steps than are left, so that the data begin again."""
    with rehearsal(trainer) as step:
        for _ in range(trainer.config.steps + 2):
            torch.rand(1)
            step()
    assert all(parameter.grad is None for parameter in trainer.objective.parameters())


@pytest.mark.parametrize("make", [trainer, adversarial_trainer])
@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2, "num_workers": 1}])
def test_rehearsed_steps_change_nothing_of_a_training(tmp_path: Path, make, changes) -> None:
    runs = []
    for name, on_start in (("plain", []), ("rehearsed", [rehearse])):
        made = make(tmp_path / name, on_start=on_start, **changes)
        torch.manual_seed(5)
        runs.append((made.run().state_dict(), torch.get_rng_state()))
    (weights, random), (again, random_again) = runs
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert torch.equal(random, random_again)
    states = [
        sorted(folder.glob("states/*.pt"))[-1] for folder in (tmp_path / "plain", tmp_path / "rehearsed")
    ]
    first, second = (torch.load(path, weights_only=True)["optimizer"]["state"] for path in states)
    assert all(torch.equal(first[n][k], second[n][k]) for n in first for k in first[n])


def test_a_training_that_has_all_its_steps_does_not_start(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    trainer(tmp_path, on_start=[lambda _: pytest.fail("started")]).run()
