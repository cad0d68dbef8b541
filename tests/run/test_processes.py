"""Two processes that share a batch are one process that has it all, to the rounding of fp32."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from ..processes import Server, finish, kill_once
from .folders import assert_same_run

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
    "autoencoder.pretraining.training.num_workers=1",
    "diffusion.training.num_workers=1",
]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What the launcher tells its processes of `distributed_type: FSDP`."""


def test_two_processes_compare_autoencoders(ldmae, preset, tmp_path):
    settings = {
        "base": str(preset),
        "comparison": {"autoencoders": ["ae", "vmae"], "seeds": [0], "ablation": [], "match_flops": False},
        "evaluation": {"images": 9, "latent_images": 30, "pairs": 2, "epsilons": [0], "speed_batch_size": 2},
        "autoencoder": {"baseline": {"model": {"width": 0.0625}, "training": {"steps": 4}}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    words = ("compare", tmp_path / "tiny.yaml", "--out", tmp_path / "runs", "--results", tmp_path / "results")
    finish(*ldmae.start_two(*words))
    assert len(list((tmp_path / "results" / "units").glob("*/seed-0/unit.json"))) == 2
    assert (tmp_path / "results" / "comparison.html").exists()


@pytest.fixture(scope="module")
def two(ldmae: Server, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by two processes that split their shares of a batch further."""
    folder = tmp_path_factory.mktemp("two") / "run"
    finish(*ldmae.start_two("run", preset, *MICRO_BATCHES, "--out", folder))
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


def assert_same(run: Path, other: Path, part: str = "") -> None:
    """Checks that two runs have the same losses, weights and latents, to rounding, or a part's of them."""
    a, b = (
        {key: loss for key, loss in losses(folder).items() if key[0].startswith(part)}
        for folder in (run, other)
    )
    assert a.keys() == b.keys()
    relative = {key: abs(a[key] - b[key]) / abs(a[key]) for key in a}
    too_far = [key for key in a if relative[key] > (NORM if key[2] == "gradient_norm" else LOSS)]
    assert not too_far
    for model, tolerance in ((model, most) for model, most in MODELS.items() if part in model):
        ours, theirs = weights(run / model), weights(other / model)
        assert ours.keys() == theirs.keys()
        apart = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
        print(f"{model}: weights differ by {max(apart.values()):.1e}")
        assert max(apart.values()) < tolerance, max(apart, key=lambda name: apart[name])
    print(f"losses differ by {max(relative.values()):.1e}")
    if part:
        return
    ours, theirs = latents(run), latents(other)
    assert ours["labels"].tolist() == theirs["labels"].tolist()
    for name in ("latents", "latents_flip"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=WEIGHT)


def world_sizes(folder: Path) -> set[int]:
    """Returns how many processes the stages of a run say they had."""
    return {record["processes"] for record in json.loads((folder / "stages.json").read_text())["stages"]}


def test_accelerate_launch_of_two_processes_makes_the_losses_and_weights_of_one(preset, finished, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "-m", "ldmae", "train", "autoencoder", str(preset), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert world_sizes(tmp_path / "run") == {2}
    assert world_sizes(finished) == {1}
    assert_same(finished, tmp_path / "run", "autoencoder")


def test_two_processes_with_micro_batches_make_the_losses_weights_and_latents_of_one(finished, two):
    assert world_sizes(two) == {2}
    shards = {path.name[:14] for path in (two / "latents").glob("*.safetensors")}
    assert shards == {"latents_rank00", "latents_rank01"}
    assert_same(finished, two)


def test_two_killed_processes_go_on_bitwise(ldmae, preset, two, tmp_path):
    folder = tmp_path / "run"
    for artefact in (
        "checkpoints/autoencoder.pretraining/step-00000004.pt",
        "latents/latents_rank01_shard000.safetensors",
        "checkpoints/diffusion/step-00000010.pt",
    ):
        kill_once(folder / artefact, *ldmae.start_two("run", preset, *MICRO_BATCHES, "--out", folder))
    finish(*ldmae.start_two("run", preset, *MICRO_BATCHES, "--out", folder))
    assert_same_run(folder, two)


def test_a_process_that_sees_an_older_state_of_the_disk_follows_the_main_one(ldmae, preset, two, tmp_path):
    run, older = tmp_path / "run", tmp_path / "older"
    started = ldmae.start_two("run", preset, *MICRO_BATCHES, "--out", run)
    kill_once(run / "checkpoints/diffusion/step-00000010.pt", *started)
    shutil.copytree(run, older)
    shutil.rmtree(older / "checkpoints" / "diffusion")
    for name in ("diffusion", "pipeline"):  # what is made from now on it sees in time
        (older / name).symlink_to(run / name)
    book = json.loads((older / "stages.json").read_text())
    book["stages"] = [record for record in book["stages"] if record["name"] != "diffusion"]
    (older / "stages.json").write_text(json.dumps(book))
    finish(*ldmae.start_two("run", preset, *MICRO_BATCHES, own=(("--out", run), ("--out", older))))
    assert_same_run(run, two)


def test_run_goes_on_with_another_number_of_processes(ldmae, preset, finished, tmp_path):
    folder = tmp_path / "run"
    kill_once(
        folder / "latents/latents_rank00_shard000.safetensors", ldmae.start("run", preset, "--out", folder)
    )
    finish(*ldmae.start_two("run", preset, "--out", folder))
    assert_same(finished, folder)


def test_two_processes_train_a_flat_folder_which_is_one_class(ldmae, preset, pictures, tmp_path):
    folder = tmp_path / "run"
    finish(*ldmae.start_two("run", preset, f"data={pictures / 'bars'}", "--out", folder))
    assert json.loads((folder / "samples" / "samples.json").read_text())["class_names"] == ["bars"]


def test_two_processes_generate_and_measure_the_images_of_one(ldmae, finished, tmp_path):
    words = ("evaluate-samples", finished, "sampling.batch_size=4", "evaluation.samples=14")
    ldmae.run(*words, "--out", tmp_path / "a", "--npz", tmp_path / "a.npz")
    finish(*ldmae.start_two(*words, "--out", tmp_path / "b", "--npz", tmp_path / "b.npz"))
    with np.load(tmp_path / "a.npz") as first, np.load(tmp_path / "b.npz") as second:
        assert first["arr_0"].shape[0] == 14
        assert np.array_equal(first["arr_0"], second["arr_0"])
    figures = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in "ab"]
    assert figures[0] == figures[1]
    assert not list(tmp_path.rglob("*.npy"))


def test_two_processes_measure_any_autoencoder_once(ldmae, finished, pictures, tmp_path):
    few = ("evaluation.images=9", "evaluation.latent_images=9", "--only", "reconstruction")
    arguments = ("evaluate", finished / "autoencoder", f"data={pictures}", *few)
    finish(*ldmae.start_two(*arguments, "--out", tmp_path / "two"))
    ldmae.run(*arguments, "--out", tmp_path / "one")
    found = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in ("one", "two")]
    assert found[0] == found[1]
    assert len(found[0]) >= 4


def test_two_processes_with_sharded_parameters_train_as_one(ldmae, preset, finished, tmp_path):
    finish(*ldmae.start_two("run", preset, *MICRO_BATCHES, "--out", tmp_path / "run", environment=FSDP))
    assert_same(finished, tmp_path / "run")


def test_killed_sharded_run_goes_on_sharded_and_then_whole(ldmae, preset, finished, tmp_path):
    folder, sharded = tmp_path / "run", FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}
    for artefact in ("autoencoder.pretraining/step-00000004.pt", "diffusion/step-00000010.pt"):
        started = ldmae.start_two("run", preset, "--out", folder, environment=sharded)
        kill_once(folder / "checkpoints" / artefact, *started)
    alone = ldmae.run("run", preset, "--out", folder)
    assert "diffusion resumes from step 10" in alone.output
    assert_same(finished, folder)


def test_uneven_shares_are_sharded_too(ldmae, preset, tmp_path):
    uneven = [
        "autoencoder.pretraining.training.batch_size=7",
        "autoencoder.pretraining.training.ema_decay=0.8",
        "autoencoder.pretraining.training.validation_images=1",
    ]
    words = ("train", "autoencoder", preset, *uneven, "--out")
    ldmae.run(*words, tmp_path / "one")
    finish(*ldmae.start_two(*words, tmp_path / "two", *MICRO_BATCHES, environment=FSDP))
    assert_same(tmp_path / "one", tmp_path / "two", "autoencoder")


def test_sharding_that_accelerate_passes_over_is_refused(ldmae, preset, tmp_path):
    alone = ldmae.start("run", preset, "--out", tmp_path / "run", environment=FSDP)
    assert alone.wait() == 2
    assert "FSDP was asked for, but accelerate shards over several GPUs only" in alone.output


def test_compiled_blocks_are_not_sharded(ldmae, preset, tmp_path):
    changes = "autoencoder.pretraining.training.compile=true"
    started = ldmae.start_two("run", preset, changes, "--out", tmp_path / "run", environment=FSDP)
    assert [process.wait() for process in started] == [2, 2]
    assert "FSDP does not support compile=true; set autoencoder.pretraining" in started[0].output
