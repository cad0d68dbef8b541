"""One training loop for every objective."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from ldmae.contracts import BatchKeys, ObjectiveOutput
from ldmae.core.errors import UserError
from ldmae.training.checkpoint import list_checkpoints, load_checkpoint
from ldmae.training.data import KeyedBatches

from ..processes import finish
from .tiny import Points, Regression, accelerator, trainer

EVERYTHING = {
    "ema_decay": 0.8,
    "micro_batch_size": 4,
    "optimizer": {"schedule": "cosine", "warmup_steps": 2, "gradient_clip": 1.0},
    "log_every": 3,
    "validate_every": 4,
    "validation": Points(5),
}


class Stop(BaseException):
    """Ends a training as a kill does: nothing is tidied up."""


def stop_after(step):
    def stop(trainer):
        if trainer.step == step:
            raise Stop

    return stop


def interrupted_then_resumed(folder, step, **settings):
    with pytest.raises(Stop):
        trainer(folder, on_step=[stop_after(step)], **settings).run()
    return trainer(folder, **settings).run()


def lines(folder):
    """Returns the lines of metrics.jsonl without what a clock measured."""
    clocked = {"seconds", "images_per_second", "data_share"}
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in clocked} for line in found]


def assert_same(ours, expected):
    """Asserts bitwise equal nested states."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(ours, expected)
    elif isinstance(expected, dict):
        assert ours.keys() == expected.keys()
        for key in expected:
            assert_same(ours[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(ours) == len(expected)
        for mine, other in zip(ours, expected, strict=True):
            assert_same(mine, other)
    else:
        assert ours == expected


def assert_close(ours, expected):
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def last_state(folder):
    return load_checkpoint(list_checkpoints(folder / "states")[-1][1])


# ---- it trains


def test_training_lowers_the_loss_and_logs_each_term(tmp_path):
    trainer(tmp_path, steps=60, log_every=20).run()
    first, _, last = lines(tmp_path)
    assert last["loss"] < first["loss"] / 3
    assert first["step"] == 20
    assert set(first["terms"]) == {"error", "size"}
    assert first["loss"] == pytest.approx(first["terms"]["error"] + 0.01 * first["terms"]["size"], rel=1e-5)
    assert first["learning_rate"] == 0.05
    assert first["gradient_norm"] > 0


class Slow(Points):
    """Items that take longer to load than to learn from."""

    def __getitem__(self, key):
        time.sleep(0.005)
        return super().__getitem__(key)


def test_a_training_that_waits_for_data_says_so_once_and_what_to_set(tmp_path, capsys):
    trainer(tmp_path, dataset=Slow(), steps=8, log_every=2).run()
    said = capsys.readouterr().err
    assert said.count("waits for data") == 1
    assert "tiny.training.num_workers=2 (now 0)" in said


def plain_loop(steps, batch_size, decay):
    """The same training, written out."""
    objective = Regression()
    weights = [p for p in objective.parameters() if p.ndim > 1]
    biases = [p for p in objective.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), foreach=False)
    average = None
    for step, batch in enumerate(KeyedBatches(10, batch_size, [range(batch_size)], 0, steps, 0)):
        items = [Points()[key] for key in batch]
        rows = {name: torch.stack([item[name] for item in items]) for name in ("x", "y")}
        optimizer.zero_grad()
        objective(rows, BatchKeys(0, step, range(batch_size), batch_size)).loss.backward()
        optimizer.step()
        now = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
        average = average or now  # begins at the weights of the first step
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
    return objective.model, average


def test_the_loop_is_that_of_plain_torch(tmp_path):
    model, average = plain_loop(steps=10, batch_size=6, decay=0.8)
    assert_close(trainer(tmp_path / "a").run(), model)
    averaged = trainer(tmp_path / "b", ema_decay=0.8).run()
    for name, tensor in average.items():
        torch.testing.assert_close(averaged.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro", [1, 4, 5])
def test_micro_batches_are_the_whole_batch_to_rounding(tmp_path, micro):
    whole = trainer(tmp_path / "whole").run()
    assert_close(trainer(tmp_path / "pieces", micro_batch_size=micro).run(), whole)
    for ours, expected in zip(lines(tmp_path / "pieces"), lines(tmp_path / "whole"), strict=True):
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)


def test_workers_change_nothing(tmp_path):
    alone = trainer(tmp_path / "a", **EVERYTHING).run()
    assert_same(trainer(tmp_path / "b", num_workers=2, **EVERYTHING).run().state_dict(), alone.state_dict())


def test_another_seed_trains_otherwise(tmp_path):
    weights = [trainer(tmp_path / str(seed), seed=seed).run()[0].weight for seed in (0, 1)]
    assert not torch.equal(*weights)


def test_the_model_that_comes_back_is_in_evaluation_mode(tmp_path):
    assert not trainer(tmp_path, ema_decay=0.5).run().training


def test_gradients_are_clipped_after_their_norm_is_logged(tmp_path):
    norms = []

    def measure(trainer):
        gradients = [p.grad for p in trainer.objective.parameters()]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    trainer(tmp_path, optimizer={"gradient_clip": 0.1}, on_step=[measure], log_every=1).run()
    assert max(norms) == pytest.approx(0.1, rel=1e-3)
    assert lines(tmp_path)[0]["gradient_norm"] > 0.2


def test_a_frozen_parameter_stays_and_so_does_its_average(tmp_path):
    objective = Regression()
    objective.model[0].requires_grad_(False)
    before = objective.model[0].weight.clone()
    frozen = trainer(tmp_path, objective, ema_decay=0.5).run()
    assert torch.equal(frozen[0].weight, before)
    assert not torch.equal(frozen[2].weight, Regression().model[2].weight)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(tmp_path):
    objective = Regression()
    model = trainer(tmp_path, objective, accelerator=accelerator("bf16"), steps=60, log_every=20).run()
    assert objective.seen_dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert lines(tmp_path)[-1]["loss"] < lines(tmp_path)[0]["loss"] / 2


# ---- it resumes


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (4, 0), (6, 0), (9, 0), (6, 2)])
def test_an_interrupted_training_ends_as_an_uninterrupted_one_bitwise(tmp_path, step, workers):
    alone = trainer(tmp_path / "alone", **EVERYTHING).run()
    resumed = interrupted_then_resumed(tmp_path / "resumed", step, num_workers=workers, **EVERYTHING)
    assert_same(resumed.state_dict(), alone.state_dict())
    assert_same(last_state(tmp_path / "resumed"), last_state(tmp_path / "alone"))
    assert lines(tmp_path / "resumed") == lines(tmp_path / "alone")


def test_a_training_interrupted_in_bf16_resumes_bitwise(tmp_path):
    alone = trainer(tmp_path / "alone", accelerator=accelerator("bf16")).run()
    with pytest.raises(Stop):
        trainer(tmp_path / "b", accelerator=accelerator("bf16"), on_step=[stop_after(5)]).run()
    resumed = trainer(tmp_path / "b", accelerator=accelerator("bf16")).run()
    assert_same(resumed.state_dict(), alone.state_dict())


class Unused(Regression):
    """Has a trainable parameter that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.model.register_parameter("mask_token", nn.Parameter(torch.ones(1)))


def test_a_parameter_that_no_gradient_reaches_does_not_stop_the_resume(tmp_path):
    alone = trainer(tmp_path / "alone", Unused()).run()
    with pytest.raises(Stop):
        trainer(tmp_path / "resumed", Unused(), on_step=[stop_after(5)]).run()
    resumed = trainer(tmp_path / "resumed", Unused()).run()
    assert_same(resumed.state_dict(), alone.state_dict())


def test_more_steps_extend_a_finished_training(tmp_path):
    alone = trainer(tmp_path / "alone", ema_decay=0.8).run()
    trainer(tmp_path / "extended", ema_decay=0.8, steps=6).run()
    assert_same(trainer(tmp_path / "extended", ema_decay=0.8).run().state_dict(), alone.state_dict())


def test_a_finished_training_is_not_stepped_again(tmp_path):
    model = trainer(tmp_path, ema_decay=0.8).run()
    steps = []
    again = trainer(tmp_path, ema_decay=0.8, on_step=[steps.append], num_workers=1).run()
    assert_same(again.state_dict(), model.state_dict())
    assert steps == []


def test_keys_that_change_no_weight_may_change_on_resume(tmp_path):
    alone = trainer(tmp_path / "alone").run()
    with pytest.raises(Stop):
        trainer(tmp_path / "b", on_step=[stop_after(5)]).run()
    other = {"checkpoint": {"every_steps": 3, "keep_every": 3}, "log_every": 7, "num_workers": 1}
    assert_same(trainer(tmp_path / "b", **other).run().state_dict(), alone.state_dict())
    assert [step for step, _ in list_checkpoints(tmp_path / "b" / "states")] == [6, 9, 10]


def test_fewer_steps_than_done_are_refused(tmp_path):
    trainer(tmp_path).run()
    with pytest.raises(
        UserError, match=r"tiny has done 10 steps, steps=5 .* at least 10, or .* --restart tiny"
    ):
        trainer(tmp_path, steps=5).run()


def test_a_state_of_another_model_is_refused(tmp_path):
    trainer(tmp_path).run()
    wide = Regression()
    wide.model[2] = nn.Linear(8, 3)
    with pytest.raises(
        UserError, match=r"step-00000010\.pt belongs to another model .*model\.2\.weight.*--restart"
    ):
        trainer(tmp_path, wide).run()
    with pytest.raises(UserError, match="averaged weights"):
        trainer(tmp_path, ema_decay=0.9).run()


# ---- it stops at a loss that is not finite


class Spoilt(Regression):
    """One term becomes NaN at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.spoilt_at = step

    def forward(self, batch, keys):
        output = super().forward(batch, keys)
        if keys.step < self.spoilt_at:
            return output
        spoilt = output.terms["size"] * float("nan")
        return ObjectiveOutput(output.loss + spoilt, {**output.terms, "size": spoilt})


@pytest.mark.parametrize("spoilt_at", [5, 7, 9])
def test_a_loss_that_is_not_finite_stops_names_the_term_and_keeps_the_last_good_state(tmp_path, spoilt_at):
    with pytest.raises(UserError, match=r"'size' became nan.*last checkpoint is untouched.*learning rate"):
        trainer(tmp_path, Spoilt(spoilt_at), log_every=4).run()
    assert list_checkpoints(tmp_path / "states")[-1][0] in (4, 8)
    assert all(tensor.isfinite().all() for tensor in last_state(tmp_path)["objective"].values())
    resumed = trainer(tmp_path).run()
    assert_same(resumed.state_dict(), trainer(tmp_path / "alone").run().state_dict())


# ---- it validates


def test_validation_writes_the_mean_over_held_out_images_whatever_the_micro_batch(tmp_path):
    held_out = Points(7)
    values = {}
    for micro in (None, 2):
        folder, objective = tmp_path / str(micro), Regression()
        trainer(
            folder,
            objective,
            validation=held_out,
            validate_every=5,
            validation_images=5,
            micro_batch_size=micro,
        ).run()
        found = [line for line in lines(folder) if "validation" in line]
        assert [line["step"] for line in found] == [5, 10]
        assert objective.modes == {True, False}
        values[micro] = found[-1]["validation"]
        items = [held_out[(0, row)] for row in range(5)]
        rows = {name: torch.stack([item[name] for item in items]) for name in ("x", "y")}
        with torch.no_grad():
            expected = objective(rows, BatchKeys(0, 0, range(5), 5))
        assert values[micro]["loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
        assert values[micro]["terms"]["size"] == pytest.approx(expected.terms["size"].item(), rel=1e-5)


def test_without_held_out_images_nothing_is_validated(tmp_path):
    for name, validation in (("none", None), ("empty", Points(0))):
        trainer(tmp_path / name, validation=validation, validate_every=5).run()
        assert not any("validation" in line for line in lines(tmp_path / name))


# ---- two processes are one

TWO = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from accelerate import Accelerator
from ldmae.core.errors import UserError
from tiny import Points, trainer

folder, accelerator = Path(sys.argv[1]), Accelerator()
assert accelerator.num_processes == 2
settings = dict(batch_size=7, micro_batch_size=3, ema_decay=0.8, validate_every=4, validation=Points(1),
                optimizer={"gradient_clip": 0.5}, accelerator=accelerator)
trainer(folder, steps=5, **settings).run()
model = trainer(folder, **settings).run()  # goes on from a state
torch.save(model.state_dict(), folder / f"{accelerator.process_index}.pt")
try:
    trainer(folder / "b", batch_size=1, accelerator=accelerator).run()
except UserError as error:
    (folder / f"{accelerator.process_index}.txt").write_text(str(error))
accelerator.end_training()
"""


def test_two_processes_train_as_one_with_the_same_whole_batch(ldmae, tmp_path):
    finish(*ldmae.start_two(tmp_path, Path(__file__).parent, code=TWO))
    settings = {"batch_size": 7, "ema_decay": 0.8, "validate_every": 4, "validation": Points(1)}
    settings["optimizer"] = {"gradient_clip": 0.5}
    trainer(tmp_path / "one", steps=5, **settings).run()
    one = trainer(tmp_path / "one", **settings).run().state_dict()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_same(second, first)
    for name, tensor in one.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
    ours, expected = lines(tmp_path), lines(tmp_path / "one")
    assert [line["step"] for line in ours] == [line["step"] for line in expected]
    for mine, other in zip(ours, expected, strict=True):
        loss = [line["loss"] if "loss" in line else line["validation"]["loss"] for line in (mine, other)]
        assert loss[0] == pytest.approx(loss[1], rel=1e-4)
        assert mine.get("gradient_norm", 0) == pytest.approx(other.get("gradient_norm", 0), rel=1e-4)
    for rank in range(2):
        message = (tmp_path / f"{rank}.txt").read_text()
        assert "batch_size=1 is less than 2 processes" in message
