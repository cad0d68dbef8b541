"""Training states on disk."""

import pytest
import torch

from ldmae.core.errors import UserError
from ldmae.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint


def steps(folder):
    return [step for step, _ in list_checkpoints(folder)]


def test_the_last_two_states_and_every_kth_are_kept(tmp_path):
    for step in range(5, 55, 5):
        save_checkpoint(tmp_path, step, {}, keep_every=20)
    assert steps(tmp_path) == [20, 40, 45, 50]


def test_what_was_kept_stays_when_less_is_kept_from_now_on(tmp_path):
    for step in range(5, 35, 5):
        save_checkpoint(tmp_path, step, {}, keep_every=10)
    save_checkpoint(tmp_path, 35, {}, keep_every=None)
    assert steps(tmp_path) == [10, 20, 30, 35]
    save_checkpoint(tmp_path, 40, {}, keep_every=None)
    assert steps(tmp_path) == [10, 20, 35, 40]


def test_a_state_comes_back_on_the_cpu_as_it_was(tmp_path):
    state = {"objective": {"a": torch.randn(3)}, "optimizer": {"state": {}, "betas": (0.9, 0.95)}}
    save_checkpoint(tmp_path, 7, state, None)
    loaded = load_checkpoint(list_checkpoints(tmp_path)[-1][1])
    assert loaded["step"] == 7
    assert torch.equal(loaded["objective"]["a"], state["objective"]["a"])
    assert loaded["optimizer"] == state["optimizer"]


def test_states_are_listed_by_number_and_other_files_ignored(tmp_path):
    assert steps(tmp_path / "missing") == []
    for name in (
        "step-00000009.pt",
        "step-123456789.pt",
        "step-00000010.pt",
        ".writing-x.pt",
        "model",
        "step-1.pt",
    ):
        (tmp_path / name).write_text("")
    assert steps(tmp_path) == [9, 10, 123456789]


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_state_is_named_with_the_next_move(tmp_path, damage):
    save_checkpoint(tmp_path, 1, {"a": torch.zeros(1000)}, None)
    path = list_checkpoints(tmp_path)[0][1]
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    with pytest.raises(UserError, match=r"step-00000001\.pt is damaged .*delete it to resume from"):
        load_checkpoint(path)


def test_a_state_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    torch.save({"step": 1, "evil": Evil()}, tmp_path / "step-00000001.pt")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path / "step-00000001.pt")
