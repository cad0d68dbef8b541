"""A run that was killed and started again is, bit for bit, the run that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path

import pytest

from ..processes import Server, Started
from .folders import assert_same_run

SETTINGS = ("mixed_precision=bf16",)
TRAININGS = ("autoencoder.pretraining", "autoencoder.tuning", "diffusion")
KILLS = 12


class Interrupted:
    """A run that is killed again and again.

    Args:
        ldmae: starts programs.
        preset: the settings.
        folder: the run folder.
    """

    def __init__(self, ldmae: Server, preset: Path, folder: Path) -> None:
        self._ldmae, self._preset, self.folder = ldmae, preset, folder
        self.stage, self.step = "", 0
        """Where the last kill hit it: the stage, and the step of its last training state on disk."""

    def start(self, *settings: str, die_at_write: int | None = None) -> Started:
        """Starts it, or takes it up again."""
        kill = None if die_at_write is None else (die_at_write, self.folder)
        arguments = ("run", self._preset, *SETTINGS, *settings, "--out", self.folder)
        return self._ldmae.start(*arguments, die_at_write=kill)

    def end(self, started: Started) -> bool:
        """Waits for a start that was killed, or came to its end before; returns whether it was killed.

        What a start lost is what came after the last training state: it is checked that it was taken up.
        """
        code = started.wait()
        assert code in (0, -9), started.output
        if self.stage in TRAININGS and self.step:
            taken_up = re.findall(rf"{self.stage} resumes from step (\d+)", started.output)
            assert taken_up == [str(self.step)] or (code != 0 and not taken_up), started.output
        path = self.folder / "stages.json"
        records = json.loads(path.read_text())["stages"] if path.exists() else []
        running = [record["name"] for record in records if record["status"] == "running"]
        self.stage = running[0] if running else "between stages"
        states = sorted((self.folder / "checkpoints" / self.stage).glob("step-*.pt"))
        self.step = int(states[-1].stem.removeprefix("step-")) if states else 0
        return code != 0

    def finish(self) -> None:
        """Takes it up a last time, undisturbed."""
        assert not self.end(self.start())


@pytest.fixture(scope="module")
def alone(ldmae: Server, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a run that nobody disturbed, and its seconds (of the second of two that are the same)."""
    folder = tmp_path_factory.mktemp("alone")
    Interrupted(ldmae, preset, folder / "first").finish()
    began = time.monotonic()
    Interrupted(ldmae, preset, folder / "second").finish()
    seconds = time.monotonic() - began
    assert_same_run(folder / "first", folder / "second")
    return folder / "second", seconds


def test_run_killed_at_random_moments_ends_bitwise_as_one_left_alone(ldmae, preset, alone, tmp_path):
    reference, seconds = alone
    seed = int(os.environ.get("LDMAE_TEST_SEED", time.time()))
    print(f"replay with LDMAE_TEST_SEED={seed}")
    moments, kills = random.Random(seed), 0
    while kills < KILLS:
        run, killed = Interrupted(ldmae, preset, tmp_path / str(kills)), True
        while killed and kills < KILLS:
            workers = moments.randrange(3)  # changes no weight
            settings = [f"{training}.training.num_workers={workers}" for training in TRAININGS]
            if moments.random() < 0.5:
                wait, loaders = moments.uniform(0.1, 0.7) * seconds, moments.random() < 0.5
                started, moment = run.start(*settings), f"after {wait:.3f} s"
                time.sleep(wait)
                started.kill(loaders)
            else:
                write = moments.randrange(1, 90)
                started, moment = run.start(*settings, die_at_write=write), f"before write {write}"
            killed = run.end(started)
            kills += killed
            print(f"kill {kills} {moment}, in {run.stage}, last state of step {run.step}, {workers} workers")
        run.finish()
        assert_same_run(run.folder, reference)


def test_run_killed_as_each_artefact_appears_ends_bitwise_as_one_left_alone(ldmae, preset, alone, tmp_path):
    run = Interrupted(ldmae, preset, tmp_path / "run")
    for artefact in (
        "data/images-*.npz",
        "checkpoints/autoencoder.pretraining/step-00000004.pt",
        "checkpoints/autoencoder.pretraining/step-00000012.pt",
        "checkpoints/autoencoder.pretraining/model",
        "checkpoints/autoencoder.tuning/step-00000003.pt",
        "autoencoder",
        "latents/latents_rank00_shard001.safetensors",
        "latents/latents_stats.pt",
        "checkpoints/diffusion/step-00000005.pt",
        "checkpoints/diffusion/step-00000015.pt",
        "diffusion/config.json",
        "pipeline",
        "samples",
        "results/reconstruction.json",
        "results.json",
        "report.html",
    ):
        started = run.start()
        while not any(run.folder.glob(artefact)) and started.poll() is None:
            time.sleep(0.0005)
        started.kill()
        killed = run.end(started)
        assert any(run.folder.glob(artefact)), started.output
        print(f"killed at {artefact}: {killed}, in {run.stage}, last state of step {run.step}")
        if "step-00000005" in artefact:
            with (run.folder / "metrics.jsonl").open("a") as file:
                file.write('{"stage": "diffusion", "st')  # the line that a kill cut short
    run.finish()
    assert_same_run(run.folder, alone[0])


def test_metrics_of_a_run_name_each_step_once(alone):
    lines = [json.loads(text) for text in (alone[0] / "metrics.jsonl").read_text().splitlines()]
    for stage, steps, every in (
        ("autoencoder.pretraining", 12, 3),
        ("autoencoder.tuning", 8, 1),
        ("diffusion", 16, 2),
    ):
        own = [line["step"] for line in lines if line["stage"] == stage and "loss" in line]
        assert own == list(range(every, steps + 1, every))
