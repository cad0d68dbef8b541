"""Two processes that share a batch are one process that has it all, to the rounding of fp32."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

LOSS = 2e-6
"""Relative difference of a loss or term. Measured: 4e-7, the rounding of sums in another order."""
NORM = 1e-3
"""Relative difference of a gradient's norm. Measured: 4e-7, and 1e-4 where rounding moves a value of the
perceptual network over a ReLU's bend."""
WEIGHT = 2e-5
"""Difference of a weight. Measured: 1.2e-6 after rates of 2e-3. AdamW divides a gradient by its size and so
makes the rounding of small gradients as large as that of others."""
MODELS = {
    "checkpoints/autoencoder.pretraining/model": WEIGHT,
    "autoencoder": 10 * WEIGHT,  # the bends of the perceptual network again; measured: 1.2e-7
    "diffusion": WEIGHT,
}
MICRO_BATCHES = [
    "autoencoder.pretraining.training.micro_batch_size=3",
    "autoencoder.tuning.training.micro_batch_size=3",
    "diffusion.training.micro_batch_size=4",
]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What the launcher tells its processes of `distributed_type: FSDP`."""


def start_two(
    ldmae: Any, *arguments: str | Path, sharded: bool = False, folders: tuple[Path, ...] = ()
) -> list[Any]:
    """Starts two processes of one run, as a launcher does; `folders` are the run as each sees it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    common |= {"ACCELERATE_USE_CPU": "true"} | (FSDP if sharded else {})
    return [
        ldmae.start(
            *arguments,
            *(("--out", folders[rank]) if folders else ()),
            environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def finish_two(started: list[Any]) -> None:
    """Waits until both processes are done."""
    for process in started:
        assert process.wait() == 0, process.output


def test_two_processes_compare_autoencoders(ldmae: Any, preset: Path, tmp_path: Path) -> None:
    settings = {
        "base": str(preset),
        "comparison": {"autoencoders": ["ae", "vmae"], "seeds": [0], "ablation": []},
        "autoencoder": {"baseline": {"model": {"width": 0.0625}, "training": {"steps": 4}}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    words = ("compare", tmp_path / "tiny.yaml", "--out", tmp_path / "runs", "--results", tmp_path / "results")
    finish_two(start_two(ldmae, *words))
    assert len(list((tmp_path / "results" / "units").glob("*/seed-0/unit.json"))) == 2
    assert (tmp_path / "results" / "comparison.html").exists()


@pytest.fixture(scope="module")
def one(ldmae: Any, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    started = ldmae.start("run", preset, "--out", folder)
    assert started.wait() == 0, started.output
    return folder


@pytest.fixture(scope="module")
def two(ldmae: Any, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by two processes that split their shares of a batch further."""
    folder = tmp_path_factory.mktemp("two") / "run"
    finish_two(start_two(ldmae, "run", preset, *MICRO_BATCHES, "--out", folder))
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    """Returns a model's weights, without the bias of attention keys.

    That bias adds the same to all of a query's scores, which softmax takes out again: its gradient is zero
    but for rounding, and AdamW makes steps of full size of that.
    """
    loaded = load_file(folder / "diffusion_pytorch_model.safetensors")
    for name, bias in loaded.items():
        if name.endswith("qkv.bias"):
            bias.chunk(3)[1].zero_()
    return loaded


def latents(folder: Path) -> dict[str, Tensor]:
    """Returns all shards of a run as one, in the order in which they are read."""
    shards = [load_file(path) for path in sorted((folder / "latents").glob("*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def losses(folder: Path) -> dict[tuple[str, int, str], float]:
    """Returns all losses, terms and norms of a run by stage, step and name."""
    found = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for part, figures in (("", line), ("validation ", line.get("validation", {}))):
            named = {**figures.get("terms", {}), **{k: figures.get(k) for k in ("loss", "gradient_norm")}}
            found |= {(line["stage"], line["step"], part + k): v for k, v in named.items() if v is not None}
    return found


def assert_same(run: Path, other: Path) -> None:
    """Checks that two runs have the same losses, weights and latents, to rounding."""
    a, b = losses(run), losses(other)
    assert a.keys() == b.keys()
    relative = {key: abs(a[key] - b[key]) / abs(a[key]) for key in a}
    too_far = [key for key in a if relative[key] > (NORM if key[2] == "gradient_norm" else LOSS)]
    assert not too_far
    for model, tolerance in MODELS.items():
        ours, theirs = weights(run / model), weights(other / model)
        assert ours.keys() == theirs.keys()
        apart = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
        print(f"{model}: weights differ by {max(apart.values()):.1e}")
        assert max(apart.values()) < tolerance, max(apart, key=lambda name: apart[name])
    ours, theirs = latents(run), latents(other)
    assert ours["labels"].tolist() == theirs["labels"].tolist()
    for name in ("latents", "latents_flip"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=WEIGHT)
    print(f"losses differ by {max(relative.values()):.1e}")


def world_sizes(folder: Path) -> set[int]:
    """Returns how many processes the stages of a run say they had."""
    return {record["processes"] for record in json.loads((folder / "stages.json").read_text())["stages"]}


def test_accelerate_launch_of_two_processes_makes_the_losses_and_weights_of_one(
    preset: Path, one: Path, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "-m", "ldmae", "run", str(preset), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert world_sizes(tmp_path / "run") == {2}
    assert world_sizes(one) == {1}
    assert_same(one, tmp_path / "run")


def test_two_processes_with_micro_batches_make_the_losses_and_weights_of_one(one: Path, two: Path) -> None:
    assert world_sizes(two) == {2}
    assert_same(one, two)


def test_two_processes_write_the_latents_of_one_in_order(one: Path, two: Path) -> None:
    names = sorted(path.name for path in (two / "latents").glob("*.safetensors"))
    assert {name[:14] for name in names} == {"latents_rank00", "latents_rank01"}
    assert latents(one)["labels"].tolist() == latents(two)["labels"].tolist()


def test_two_killed_processes_go_on_bitwise(
    ldmae: Any, preset: Path, two: Path, tmp_path: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    folder = tmp_path / "run"
    for artefact in (
        "checkpoints/autoencoder.pretraining/step-00000004.pt",
        "latents/latents_rank01_shard000.safetensors",
        "checkpoints/diffusion/step-00000010.pt",
    ):
        started = start_two(ldmae, "run", preset, *MICRO_BATCHES, "--out", folder)
        while not (folder / artefact).exists() and all(process.poll() is None for process in started):
            time.sleep(0.001)
        for process in started:
            process.kill()
        assert [process.wait() for process in started] == [-9, -9], started[0].output
    finish_two(start_two(ldmae, "run", preset, *MICRO_BATCHES, "--out", folder))
    assert_same_run(folder, two)


def test_a_process_that_sees_an_older_state_of_the_disk_goes_on_with_the_main_one(
    ldmae: Any, preset: Path, two: Path, tmp_path: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    run, older = tmp_path / "run", tmp_path / "older"
    started = start_two(ldmae, "run", preset, *MICRO_BATCHES, "--out", run)
    while not (run / "checkpoints/diffusion/step-00000010.pt").exists():
        assert all(process.poll() is None for process in started), started[0].output
        time.sleep(0.001)
    for process in started:
        process.kill()
    assert [process.wait() for process in started] == [-9, -9], started[0].output
    shutil.copytree(run, older)
    shutil.rmtree(older / "checkpoints" / "diffusion")
    for name in ("diffusion", "pipeline"):  # what is made from now on it sees in time
        (older / name).symlink_to(run / name)
    book = json.loads((older / "stages.json").read_text())
    book["stages"] = [record for record in book["stages"] if record["name"] != "diffusion"]
    (older / "stages.json").write_text(json.dumps(book))
    finish_two(start_two(ldmae, "run", preset, *MICRO_BATCHES, folders=(run, older)))
    assert_same_run(run, two)


def test_run_goes_on_with_another_number_of_processes(
    ldmae: Any, preset: Path, one: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    started = ldmae.start("run", preset, "--out", folder)
    while not (folder / "latents/latents_rank00_shard000.safetensors").exists() and started.poll() is None:
        time.sleep(0.001)
    started.kill()
    assert started.wait() == -9, started.output
    finish_two(start_two(ldmae, "run", preset, "--out", folder))
    assert_same(one, folder)


def test_two_processes_train_a_flat_folder_which_is_one_class(
    ldmae: Any, preset: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    finish_two(start_two(ldmae, "run", preset, f"data={pictures / 'bars'}", "--out", folder))
    assert json.loads((folder / "samples" / "samples.json").read_text())["class_names"] == ["bars"]


def test_two_processes_generate_and_measure_the_images_of_one(ldmae: Any, one: Path, tmp_path: Path) -> None:
    words = ("evaluate-samples", one, "sampling.batch_size=4", "evaluation.samples=14")
    alone = ldmae.start(*words, "--out", tmp_path / "a", "--npz", tmp_path / "a.npz")
    assert alone.wait() == 0, alone.output
    finish_two(start_two(ldmae, *words, "--out", tmp_path / "b", "--npz", tmp_path / "b.npz"))
    with np.load(tmp_path / "a.npz") as first, np.load(tmp_path / "b.npz") as second:
        assert first["arr_0"].shape[0] == 14
        assert np.array_equal(first["arr_0"], second["arr_0"])
    figures = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in "ab"]
    assert figures[0] == figures[1]
    assert not list(tmp_path.rglob("*.npy"))


def test_two_processes_measure_any_autoencoder_once(
    ldmae: Any, one: Path, pictures: Path, tmp_path: Path
) -> None:
    few = ("evaluation.images=9", "evaluation.latent_images=9", "--only", "reconstruction")
    arguments = ("evaluate", one / "autoencoder", f"data={pictures}", *few)
    finish_two(start_two(ldmae, *arguments, "--out", tmp_path / "two"))
    alone = ldmae.start(*arguments, "--out", tmp_path / "one")
    assert alone.wait() == 0, alone.output
    found = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in ("one", "two")]
    assert found[0] == found[1]
    assert len(found[0]) >= 4


def test_two_processes_with_sharded_parameters_make_the_losses_and_weights_of_one(
    ldmae: Any, preset: Path, one: Path, tmp_path: Path
) -> None:
    finish_two(start_two(ldmae, "run", preset, *MICRO_BATCHES, "--out", tmp_path / "run", sharded=True))
    assert_same(one, tmp_path / "run")


def test_killed_sharded_run_goes_on_sharded_and_then_whole(
    ldmae: Any, preset: Path, one: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for artefact in ("autoencoder.pretraining/step-00000004.pt", "diffusion/step-00000010.pt"):
        started = start_two(ldmae, "run", preset, "--out", folder, sharded=True)
        while not (folder / "checkpoints" / artefact).exists():
            assert all(process.poll() is None for process in started), started[0].output
            time.sleep(0.001)
        for process in started:
            process.kill()
        assert [process.wait() for process in started] == [-9, -9], started[0].output
    alone = ldmae.start("run", preset, "--out", folder)
    assert alone.wait() == 0, alone.output
    assert "diffusion resumes from step 10" in alone.output
    assert_same(one, folder)


def test_uneven_shares_and_activation_checkpoints_are_sharded_too(
    ldmae: Any, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FSDP, "FSDP_ACTIVATION_CHECKPOINTING", "true")
    uneven = [
        "autoencoder.pretraining.training.batch_size=7",
        "autoencoder.pretraining.training.ema_decay=0.8",
        "autoencoder.pretraining.training.validation_images=1",
    ]
    alone = ldmae.start("run", preset, *uneven, "--out", tmp_path / "one")
    assert alone.wait() == 0, alone.output
    finish_two(
        start_two(ldmae, "run", preset, *uneven, *MICRO_BATCHES, "--out", tmp_path / "two", sharded=True)
    )
    assert_same(tmp_path / "one", tmp_path / "two")


def test_sharding_that_accelerate_passes_over_is_refused(ldmae: Any, preset: Path, tmp_path: Path) -> None:
    alone = ldmae.start("run", preset, "--out", tmp_path / "run", environment=FSDP)
    assert alone.wait() == 2
    assert "FSDP was asked for, but accelerate shards over several GPUs only" in alone.output


def test_compiled_blocks_are_not_sharded(ldmae: Any, preset: Path, tmp_path: Path) -> None:
    changes = "autoencoder.pretraining.training.compile=true"
    started = start_two(ldmae, "run", preset, changes, "--out", tmp_path / "run", sharded=True)
    assert [process.wait() for process in started] == [2, 2]
    assert "FSDP does not support compile=true; set autoencoder.pretraining" in started[0].output
