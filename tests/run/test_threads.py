"""Threads that a run computes with, and what it says when its steps become slow."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from ldmae.config import load_config
from ldmae.core.threads import TimedThreads
from ldmae.run.run import Run
from ldmae.run.schedule import open_run
from ldmae.run.threads import _STEPS, SlowSteps, _settle_threads, settle_alone
from ldmae.run.trainings import training_settings

from ..core.test_threads import keep_threads  # noqa: F401 - a fixture
from ..processes import kill_once
from ..training.tiny import trainer
from .folders import assert_same_run

FIRST = "autoencoder.pretraining"


def begin(preset: Path, folder: Path, *settings: str, found: int | None = None) -> Run:
    """Opens a run and settles the threads of its first training."""
    run = open_run(load_config(str(preset), list(settings)), folder)
    settle(run, FIRST, found)
    return run


def settle(run: Run, stage: str, found: int | None = None) -> None:
    """Settles the threads of a stage, which are timed only where `found` says what is found."""

    def time_them() -> TimedThreads:
        assert found is not None, "timed"
        return TimedThreads(found, {1: 0.2, 2: 0.1})

    with run.records.running(
        stage, training_settings(run.config, "no").get(stage, {}), {"images": run.images}
    ):
        _settle_threads(run, stage, time_them, 8)


def test_threads_are_timed_once_a_run_and_kept_when_it_is_resumed(preset, tmp_path, capsys):
    run = begin(preset, tmp_path, found=2)
    assert torch.get_num_threads() == 2
    assert "computing with 2 threads (80 images/s, 40 with 1)" in capsys.readouterr().err
    (record,) = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert (record["threads"], record["device"]) == (2, "CPU, 2 threads")
    torch.set_num_threads(1)
    resumed = begin(preset, tmp_path)
    assert torch.get_num_threads() == 2
    settle(resumed, "latents")
    assert resumed.records.device == run.records.device


def test_a_number_of_threads_is_taken_at_its_word_and_a_change_is_told(preset, tmp_path, capsys):
    begin(preset, tmp_path, "threads=2")
    assert torch.get_num_threads() == 2
    assert "threads" not in capsys.readouterr().err
    begin(preset, tmp_path, "threads=1")
    assert torch.get_num_threads() == 1
    assert "threads=1 in place of 2: results will differ in their last bits" in capsys.readouterr().err


def test_a_run_told_to_use_more_threads_than_it_may_says_so(preset, tmp_path, capsys):
    begin(preset, tmp_path, "threads=64")
    torch.set_num_threads(1)
    begin(preset, tmp_path)
    assert torch.get_num_threads() == 64
    assert f"{FIRST} computes with 64 threads, as when it started" in capsys.readouterr().err


def test_threads_are_timed_again_once_the_trainings_are_forgotten(preset, tmp_path):
    run = begin(preset, tmp_path, found=2)
    restarted = open_run(run.config, tmp_path, restart=FIRST)
    assert restarted.records.threads() == 0
    begin(preset, tmp_path, found=1)
    assert torch.get_num_threads() == 1


def test_encoding_before_any_training_leaves_the_choice_to_the_training(preset, tmp_path):
    run = open_run(load_config(str(preset)), tmp_path)
    settle(run, "latents", found=2)
    settle(run, "diffusion", found=1)
    assert (torch.get_num_threads(), run.records.threads()) == (1, 1)
    settle(run, "latents")
    assert torch.get_num_threads() == 2


def test_other_programs_compute_with_the_threads_of_the_run_they_are_given(preset, tmp_path):
    begin(preset, tmp_path, found=2)
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    settle_alone(lambda: pytest.fail("timed"), 1, cpu, source=str(tmp_path))
    assert torch.get_num_threads() == 2
    settle_alone(lambda: pytest.fail("timed"), 1, cpu, "1", source=str(tmp_path))
    assert torch.get_num_threads() == 1
    settle_alone(lambda: pytest.fail("timed"), 1, torch.device("meta"))


@pytest.mark.parametrize("threads", ["0", "-1", "all", "1.5"])
def test_threads_must_be_a_number_or_auto(threads):
    with pytest.raises(ValueError, match=r"threads must .* a number, or `auto`"):
        load_config("smoke", [f"threads={threads}"])


def test_a_run_of_two_threads_resumes_with_two_and_ends_bitwise_as_one_left_alone(ldmae, preset, tmp_path):
    words, alone, run = ("train", "autoencoder", preset), tmp_path / "alone", tmp_path / "run"
    ldmae.run(*words, "threads=2", "--out", alone)
    state = run / "checkpoints" / FIRST / "step-00000004.pt"
    kill_once(state, ldmae.start(*words, "threads=2", "--out", run))
    ldmae.run(*words, "--out", run)  # which alone would compute with one
    settings = [folder / "config.yaml" for folder in (alone, run)]
    assert [path.read_text().count("threads: auto") for path in settings] == [0, 1]
    settings[1].write_text(settings[0].read_text())
    assert_same_run(run, alone)


def test_a_training_says_once_when_its_steps_become_several_times_slower(tmp_path, capsys):
    seconds = itertools.accumulate(itertools.chain([1] * (_STEPS + 5), itertools.repeat(5)))
    torch.set_num_threads(2)
    trainer(tmp_path, steps=4 * _STEPS, on_step=[SlowSteps(lambda: next(seconds))]).run()
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("a step now takes 5 s, it took 1 s at the start. Another program") == 1
    assert "resume with threads=1, which suffers less than 2 threads" in told
