"""Training beside an adversary: what the loop promises holds for both networks."""

import signal
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.utils.data import default_collate

from ldmae.autoencoders.discriminator import hinge_discriminator_loss
from ldmae.contracts import BatchKeys
from ldmae.core.errors import UserError
from ldmae.training.checkpoint import list_checkpoints
from ldmae.training.data import KeyedBatches

from ..processes import finish
from .test_engine import Stop, assert_same, last_state, lines, stop_after
from .tiny import OBJECTIVES, Pictures, accelerator, adversarial, adversarial_trainer

EVERYTHING = {
    "ema_decay": 0.8,
    "micro_batch_size": 3,
    "optimizer": {"schedule": "cosine", "warmup_steps": 2, "gradient_clip": 0.5, "weight_decay": 0.05},
    "validation": Pictures(),
    "validate_every": 3,
    "checkpoint": {"every_steps": 2},
}


def trained(folder, objective=None, **settings):
    """Trains, and returns the objective: its model and its adversary."""
    objective = adversarial() if objective is None else objective
    adversarial_trainer(folder, objective, **settings).run()
    return objective


def assert_same_training(ours, expected):
    """Asserts the losses of another order of summation, to the rounding of fp32."""
    for mine, other in zip(ours, expected, strict=True):
        assert mine["terms"].keys() == other["terms"].keys()
        for name in other["terms"]:
            assert mine["terms"][name] == pytest.approx(other["terms"][name], rel=2e-4, abs=1e-6), name
        for name in ("gradient_norm", "adversary_gradient_norm"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-7), name


def assert_close(ours, expected):
    """Asserts weights to rounding, which AdamW makes larger where gradients are small.

    The bias of attention keys is left out: softmax takes it out again, its gradient is rounding alone.
    """
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.endswith("to_k.bias"):
            continue
        both = [ours[name], tensor]
        if name.endswith("qkv.bias"):
            both = [torch.cat([bias.chunk(3)[i] for i in (0, 2)]) for bias in both]
        torch.testing.assert_close(*both, rtol=1e-3, atol=2e-5, msg=name)


# ---- it trains both


def plain_loop(steps, rates):
    """The same training with two optimizers and two backward passes, written out as in VQGAN."""
    objective = adversarial()
    model, adversary = objective.model, objective.adversary
    ours = torch.optim.AdamW(model.parameters(), lr=rates[0], betas=(0.9, 0.95), weight_decay=0.0)
    theirs = torch.optim.Adam(adversary.parameters(), lr=rates[1], betas=(0.5, 0.9))
    for step, batch in enumerate(KeyedBatches(12, 8, [range(8)], 0, steps, 0)):
        images = default_collate([Pictures()[key] for key in batch])["images"]
        keys = BatchKeys(0, step, range(8), 8)
        decoded, posterior = objective._restore(images, keys)
        restoration = (decoded - images).square().mean()
        loss = restoration + 1e-3 * posterior.kl().mean() / 36  # cells
        if step >= 2:
            adversarial_loss = -adversary(decoded).mean()
            norms = [
                torch.autograd.grad(term, model.decoder.conv_out.weight, retain_graph=True)[0].norm()
                for term in (restoration, adversarial_loss)
            ]
            loss = loss + 0.5 * (norms[0] / (norms[1] + 1e-4)).detach() * adversarial_loss
        model.zero_grad(), loss.backward(), ours.step()
        hinge = hinge_discriminator_loss(adversary(images), adversary(decoded.detach())).mean()
        # before the start the loss is multiplied by 0, as in VQGAN's code
        adversary.zero_grad(), (hinge * (step >= 2)).backward(), theirs.step()
    return objective


def test_one_backward_and_one_optimizer_are_two_of_each(tmp_path):
    settings = {"optimizer": {"weight_decay": 0.0}, "steps": 6}
    ours, expected = trained(tmp_path, **settings), plain_loop(6, (1e-3, 5e-4))
    assert_close(ours.state_dict(), expected.state_dict())


def test_the_adversary_waits_for_its_start_unchanged(tmp_path):
    first = adversarial().adversary.state_dict()
    seen = {}

    def look(trainer):
        weights = trainer.objective.adversary.state_dict()
        seen[trainer.step] = all(torch.equal(weights[name], first[name]) for name in first)

    trained(tmp_path, adversarial(start=3), on_step=[look], optimizer={"weight_decay": 0.5}, log_every=1)
    assert seen == {1: True, 2: True, 3: True, 4: False, 5: False, 6: False}
    found = lines(tmp_path)
    always = {"pixel", "kl", "relative_std"}
    assert set(found[2]["terms"]) == always
    assert set(found[3]["terms"]) == always | {"adversarial", "discriminator", "adaptive_weight"}
    assert [line["adversary_gradient_norm"] > 0 for line in found] == [False] * 3 + [True] * 3


def test_each_network_is_clipped_by_its_own_norm_and_has_its_own_rate(tmp_path):
    norms, rates = [], []

    def measure(trainer):
        for part in (trainer.objective.model, trainer.objective.adversary):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in part.parameters()]).item())
        rates.append([group["lr"] for group in trainer._optimizer.param_groups])

    optimizer = {"gradient_clip": 1e-3, "schedule": "cosine"}
    trained(tmp_path, adversarial(start=0), optimizer=optimizer, on_step=[measure], log_every=1)
    assert norms == pytest.approx([1e-3] * 12, rel=1e-2)
    assert all(line["adversary_gradient_norm"] > 2e-3 for line in lines(tmp_path))
    assert all(group[-1] == pytest.approx(group[0] / 2) for group in rates)
    assert rates[-1][0] < rates[0][0]


def test_only_the_model_is_averaged_and_returned(tmp_path):
    objective = adversarial()
    model = adversarial_trainer(tmp_path, objective, **EVERYTHING).run()
    state = last_state(tmp_path)
    assert model is objective.model
    assert not any("adversary" in name for name in state["average"])
    assert any(name.startswith("adversary.") for name in state["objective"])
    assert any(name.startswith("adversary.") for name in state["optimizer"]["state"])


def test_validation_is_of_the_model_alone(tmp_path):
    trained(tmp_path, adversarial(start=0), validation=Pictures(), validate_every=3)
    found = [line["validation"] for line in lines(tmp_path) if "validation" in line]
    assert [set(line["terms"]) for line in found] == [{"pixel", "kl", "relative_std"}] * 2
    assert found[0]["loss"] == pytest.approx(
        found[0]["terms"]["pixel"] + 1e-3 * found[0]["terms"]["kl"], rel=1e-5
    )


# ---- a batch in pieces is the whole batch


@pytest.mark.parametrize(("name", "sizes"), [("sd-vae", (4, 3, 1)), ("vmae", (3,)), ("decoder", (3,))])
def test_micro_batches_are_the_whole_batch_to_rounding(tmp_path, name, sizes):
    whole = trained(tmp_path / "whole", OBJECTIVES[name]())
    for micro in sizes:
        pieces = trained(tmp_path / str(micro), OBJECTIVES[name](), micro_batch_size=micro)
        assert_close(pieces.state_dict(), whole.state_dict())
        assert_same_training(lines(tmp_path / str(micro)), lines(tmp_path / "whole"))


def test_micro_batches_in_bf16_are_the_whole_batch_to_its_rounding(tmp_path):
    for name, micro in (("whole", None), ("pieces", 3)):
        trained(tmp_path / name, micro_batch_size=micro, accelerator=accelerator("bf16"))
    for ours, expected in zip(lines(tmp_path / "pieces"), lines(tmp_path / "whole"), strict=True):
        assert ours["terms"] == pytest.approx(expected["terms"], rel=0.1)


def test_an_adaptive_weight_of_each_piece_would_train_otherwise(tmp_path):
    class Piecewise(type(adversarial())):
        def look_ahead(self, batch, keys):
            return None

        def forward(self, batch, keys):
            if self._listens(keys):
                own = super().look_ahead(batch, keys)
                batch = {**batch, "whole_batch": own}
            return super().forward(batch, keys)

    objective = adversarial()
    objective.__class__ = Piecewise
    trained(tmp_path / "pieces", objective, micro_batch_size=1)
    trained(tmp_path / "whole")
    with pytest.raises(AssertionError):
        assert_same_training(lines(tmp_path / "pieces"), lines(tmp_path / "whole"))


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from accelerate import Accelerator
from tiny import OBJECTIVES, adversarial_trainer

accelerator = Accelerator()
assert accelerator.num_processes == 2
settings = dict(batch_size=7, micro_batch_size=3, ema_decay=0.8, optimizer={"gradient_clip": 0.5},
                accelerator=accelerator)
for name, build in OBJECTIVES.items():
    folder = Path(sys.argv[1]) / name
    adversarial_trainer(folder, build(), steps=4, **settings).run()
    objective = build()
    adversarial_trainer(folder, objective, **settings).run()  # goes on from a state
    torch.save(objective.state_dict(), folder / f"{accelerator.process_index}.pt")
accelerator.end_training()
"""


def test_two_processes_train_as_one_with_the_same_whole_batch(ldmae, tmp_path):
    finish(*ldmae.start_two(tmp_path, Path(__file__).parent, code=TWO))
    settings = {"batch_size": 7, "ema_decay": 0.8, "optimizer": {"gradient_clip": 0.5}}
    for name, build in OBJECTIVES.items():
        folder = tmp_path / name
        trained(folder / "one", build(), steps=4, **settings)
        one = trained(folder / "one", build(), **settings)
        first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
        assert_same(second, first)
        assert_close(first, one.state_dict())
        assert_same_training(lines(folder), lines(folder / "one"))


# ---- it resumes


@pytest.mark.parametrize(
    ("name", "micro", "steps"),
    [
        ("sd-vae", 3, (1, 3, 5)),
        ("sd-vae", None, (5,)),
        ("vmae", 3, (3,)),
        ("vmae", None, (5,)),
        ("decoder", 3, (5,)),
    ],
)
def test_an_interrupted_training_ends_as_an_uninterrupted_one_bitwise(tmp_path, name, micro, steps):
    settings, build = EVERYTHING | {"micro_batch_size": micro}, OBJECTIVES[name]
    alone = adversarial_trainer(tmp_path / "alone", build(), **settings).run()
    for step in steps:
        folder = tmp_path / str(step)
        with pytest.raises(Stop):
            adversarial_trainer(folder, build(), on_step=[stop_after(step)], **settings).run()
        resumed = adversarial_trainer(folder, build(), **settings).run()
        assert_same(resumed.state_dict(), alone.state_dict())
        assert_same(last_state(folder), last_state(tmp_path / "alone"))
        assert lines(folder) == lines(tmp_path / "alone")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from tiny import adversarial_trainer

torch.set_num_threads(int(sys.argv[3]))

def kill(trainer):
    if trainer.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

settings = {"checkpoint": {"every_steps": 2}, "micro_batch_size": 3}
adversarial_trainer(Path(sys.argv[1]), on_step=[kill], **settings).run()
"""


def test_a_killed_training_ends_as_an_uninterrupted_one_bitwise(ldmae, tmp_path):
    killed = ldmae.start(tmp_path / "killed", Path(__file__).parent, torch.get_num_threads(), code=KILLED)
    assert killed.wait() == -signal.SIGKILL
    assert [step for step, _ in list_checkpoints(tmp_path / "killed" / "states")] == [2, 4]
    settings = {"checkpoint": {"every_steps": 2}, "micro_batch_size": 3}
    adversarial_trainer(tmp_path / "killed", **settings).run()
    adversarial_trainer(tmp_path / "alone", **settings).run()
    assert_same(last_state(tmp_path / "killed"), last_state(tmp_path / "alone"))
    assert lines(tmp_path / "killed") == lines(tmp_path / "alone")


def test_a_state_without_the_adversary_is_refused(tmp_path):
    alone = adversarial(adversarial_weight=0.5)
    alone.adversary = None
    adversarial_trainer(tmp_path, alone, steps=2).run()
    with pytest.raises(UserError, match=r"another model or other settings \(see adversary\.layers"):
        adversarial_trainer(tmp_path).run()


# ---- what it cannot do is refused


@pytest.mark.parametrize(
    ("engine", "version", "why"),
    [
        (DistributedType.FSDP, 2, "FSDP does not support a discriminator; launch with --multi_gpu"),
        (DistributedType.FSDP, 1, "FSDP does not support fsdp_version 1; set fsdp_version: 2"),
        (DistributedType.DEEPSPEED, 2, "DEEPSPEED is not supported; launch with --multi_gpu"),
    ],
)
def test_what_cannot_be_sharded_is_refused(tmp_path, engine, version, why):
    trainer = adversarial_trainer(tmp_path)
    trainer.accelerator.state.distributed_type = engine
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
    with pytest.raises(UserError, match=why):
        trainer.run()


def test_a_model_without_blocks_to_compile_is_refused(tmp_path):
    with pytest.raises(UserError, match="AutoencoderKL names no blocks to compile; set compile=false"):
        adversarial_trainer(tmp_path, compile=True).run()


@pytest.mark.parametrize(
    ("start", "why"), [(2, "at step 3 the gradients .* nan of the adversary's"), (100, "became nan")]
)
def test_a_weight_of_the_adversary_that_is_not_finite_is_never_saved(tmp_path, start, why):
    def spoil(trainer):
        if trainer.step == 3:
            with torch.no_grad():
                trainer.objective.adversary.layers[0].bias[0] = float("nan")

    with pytest.raises(UserError, match=why):
        trained(tmp_path, adversarial(start), on_step=[spoil], checkpoint={"every_steps": 2}, log_every=6)
    assert [step for step, _ in list_checkpoints(tmp_path / "states")] == [2]
