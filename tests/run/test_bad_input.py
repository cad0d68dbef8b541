"""What a user gets wrong, met by a whole run: one message with the next move, exit code 2, nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ..processes import Server, Started
from .folders import assert_same_run, read_run

TRAINING = "autoencoder.pretraining.training"


def refusal(started: Started) -> str:
    """Checks that a program ended with exit code 2 and one message, and returns it."""
    code, output = started.wait(), started.output
    assert code == 2, output
    assert "Traceback" not in output
    assert output.count("error:") == 1, output
    return " ".join(output[output.index("error:") :].split())


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def other(ldmae: Server, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of another run's autoencoder and latents."""
    folder = tmp_path_factory.mktemp("other") / "run"
    ldmae.run("train", "autoencoder", preset, "seed=1", "--out", folder)
    ldmae.run("encode", folder)
    return folder


# ---- images


def test_unreadable_images_are_named_and_refused_above_the_limit(ldmae, preset, pictures, tmp_path):
    folder = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    broken = folder / "discs" / "07.png"
    broken.write_bytes(broken.read_bytes()[:300])
    arguments = ("train", "autoencoder", preset, f"data={folder}", "--out", tmp_path / "run")
    message = refusal(ldmae.start(*arguments))
    assert str(broken) in message
    assert "data.max_unreadable=0.017" in message
    ldmae.run(*arguments, "data.max_unreadable=0.017")  # the next move that it named


def test_images_that_broke_between_two_starts_are_named(ldmae, preset, pictures, tmp_path):
    folder, run = Path(shutil.copytree(pictures, tmp_path / "pictures")), tmp_path / "run"
    arguments = ("train", "autoencoder", preset, f"data={folder}")
    assert ldmae.start(*arguments, "--out", run, die_at_write=(25, run)).wait() == -9
    for path in folder.rglob("*.png"):  # as large as before: a change is not told by the size
        path.write_bytes(bytes(path.stat().st_size))
    message = refusal(ldmae.start(*arguments, "--out", run))
    assert "are unreadable, more than data.max_unreadable" in message
    assert ".png" in message


# ---- settings


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("autoencoder.model.hidden_act=gellu", "hidden_act"),
        ("evaluation.perceptual=lpips-alex", "31"),
        ("evaluation.samples=5", "at least 10 images"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_trained(ldmae, preset, tmp_path, setting, words):
    assert words in refusal(ldmae.start("run", preset, setting, "--out", tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_network_that_only_tuning_needs_is_missed_before_pretraining(ldmae, preset, tmp_path):
    nowhere = {"TORCH_HOME": str(tmp_path / "empty"), "https_proxy": "http://127.0.0.1:9"}
    words = ("autoencoder.tuning.objective.perceptual=lpips-vgg", "--out", tmp_path / "run")
    message = refusal(ldmae.start("run", preset, *words, environment=nowhere))
    assert "vgg16-397923af.pth" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_resuming_with_other_settings_names_them_and_changes_nothing(ldmae, preset, copied):
    before = read_run(copied)
    changes = ("diffusion.training.batch_size=6", "diffusion.model.num_layers=2", "latents.flip=false")
    message = refusal(ldmae.start("run", preset, *changes, "--out", copied))
    assert "training.batch_size: 12 -> 6" in message
    assert "latents: flip: True -> False" in message
    assert "model.num_layers: 1 -> 2" in message
    assert "--restart diffusion" in message
    assert read_run(copied) == before
    ldmae.run("run", preset, *changes, "--restart", "latents", "--out", copied)


@pytest.mark.parametrize("setting", ["evaluation.samples=5", "diffusion.model.class_dropout_prob=1.5"])
def test_refused_restart_begins_nothing_anew_and_changes_nothing(ldmae, preset, copied, setting):
    before = read_run(copied)
    refusal(ldmae.start("run", preset, setting, "--restart", "diffusion", "--out", copied))
    assert read_run(copied) == before


@pytest.mark.parametrize("kept", [False, True])
def test_resuming_on_other_images_is_refused(ldmae, preset, pictures, copied, tmp_path, kept):
    other = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    first, second = sorted((other / "waves").iterdir(), key=lambda path: path.stat().st_size)[:2]
    if kept:  # names and sizes
        second.write_bytes(first.read_bytes().ljust(second.stat().st_size, b"\0"))
    else:
        second.unlink()
    message = refusal(ldmae.start("run", preset, f"data={other}", "--out", copied))
    told = (
        "some of the 54 training and 6 held-out images are others" if kept else "54 training and 6 held-out"
    )
    assert f"autoencoder.pretraining was started with other settings or inputs: images: {told}" in message
    assert str(other) not in (copied / "config.yaml").read_text()


def test_decoder_tuned_anew_leaves_latents_and_diffusion_model(ldmae, preset, copied):
    before = read_run(copied)
    noise = "autoencoder.tuning.objective.latent_noise=0.5"
    ldmae.run("run", preset, noise, "--restart", "autoencoder.tuning", "--out", copied)
    after = read_run(copied)
    kept = ("latents/", "diffusion/", "checkpoints/diffusion/", "checkpoints/autoencoder.pretraining/")
    same = [name for name in before if name.startswith(kept)]
    assert len(same) > 8
    assert [name for name in same if before[name] != after[name]] == []
    new, weights = "pipeline/vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"
    assert after[f"autoencoder/{weights}"] != before[f"autoencoder/{weights}"]
    assert after[new][1] == after[f"autoencoder/{weights}"][1]
    assert after["samples/grid.png"] != before["samples/grid.png"]
    assert after["results/reconstruction.json"] != before["results/reconstruction.json"]


@pytest.mark.parametrize(
    "change",
    [
        "diffusion.training.optimizer.learning_rate=1e-3",
        "autoencoder.pretraining.training.steps=14",
        "latents.flip=false",
    ],
)
def test_restart_of_tuning_goes_on_to_the_diffusion_model_where_that_changed_too(
    ldmae, preset, copied, change
):
    before = (copied / "diffusion" / "diffusion_pytorch_model.safetensors").read_bytes()
    ldmae.run("run", preset, change, "--restart", "autoencoder.tuning", "--out", copied)
    assert (copied / "diffusion" / "diffusion_pytorch_model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "autoencoder.kind=vae autoencoder.baseline.model.factor=4",
            "inputs: encoder: still to be made by autoencoder.baseline",
        ),
        ("autoencoder.pretraining.training.steps=14", "add --restart autoencoder.tuning"),
        ("latents.flip=false", "with other settings or inputs: latents: flip: "),
        ("autoencoder.init={other}", "inputs: autoencoder.init: none -> "),
        ("autoencoder.source={other}", "with other settings or inputs: latents: encoder: "),
    ],
)
def test_what_a_training_was_begun_on_is_not_replaced_under_it(ldmae, preset, copied, other, change, words):
    change = change.format(other=other)
    kept = ("autoencoder/", "latents/", "diffusion/", "checkpoints/", "pipeline/", "config.yaml")
    before = read_run(copied)
    settings = (copied / "config.yaml").read_text()
    message = refusal(ldmae.start("run", preset, *change.split(), "--out", copied))
    assert words in message
    assert "name another folder with --out" in message
    before, after = ({k: v for k, v in of.items() if k.startswith(kept)} for of in (before, read_run(copied)))
    assert before == after
    assert (copied / "config.yaml").read_text() == settings


def test_a_diffusion_model_on_an_autoencoder_that_was_put_there_goes_on(ldmae, preset, copied, tmp_path):
    for name in ("autoencoder", "latents"):
        shutil.copytree(copied / name, tmp_path / "own" / name)
    words = ("train", "diffusion", preset, "latents.fingerprint=skip", "--out", tmp_path / "own")
    (tmp_path / "own" / "latents" / "latents_stats.pt").unlink()
    assert "make it with `ldmae encode`" in refusal(ldmae.start(*words))
    ldmae.run("encode", tmp_path / "own")
    for steps in (6, 8):
        ldmae.run(*words, f"diffusion.training.steps={steps}")
    statistics = torch.load(tmp_path / "own" / "latents" / "latents_stats.pt")
    doubled = {name: 2 * tensor for name, tensor in statistics.items()}
    torch.save(doubled, tmp_path / "own" / "latents" / "latents_stats.pt")
    more = (*words, "diffusion.training.steps=10")
    assert "started with other settings or inputs: latents: " in refusal(ldmae.start(*more))
    torch.save(statistics, tmp_path / "own" / "latents" / "latents_stats.pt")
    ldmae.run(*more)


@pytest.mark.parametrize(
    ("verb", "stage", "words"),
    [
        ("run", "autoencoder.baseline", "no stage 'autoencoder.baseline' in this run"),
        ("train diffusion", "latents", "this command makes diffusion and not latents"),
        ("train autoencoder", "diffusion", "not diffusion; start that again with `ldmae run PRESET"),
    ],
)
def test_a_stage_that_the_command_does_not_make_is_not_forgotten(ldmae, preset, copied, verb, stage, words):
    before = read_run(copied)
    assert words in refusal(ldmae.start(*verb.split(), preset, "--restart", stage, "--out", copied))
    assert read_run(copied) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("image_size=48", "have 6 x 6 cells, the autoencoder makes 12 x 12 of an image of 48 pixels"),
        ("data.classes=[{first}]", "have labels up to 2, the images have 1 classes"),
    ],
)
def test_shards_of_another_size_or_of_other_classes_are_refused(
    ldmae, preset, copied, tmp_path, change, words
):
    for name in ("autoencoder", "latents"):
        shutil.copytree(copied / name, tmp_path / "own" / name)
    first = json.loads((copied / "data.json").read_text())["classes"][0]["name"]
    settings = ("latents.fingerprint=skip", change.format(first=first))
    assert words in refusal(ldmae.start("train", "diffusion", preset, *settings, "--out", tmp_path / "own"))


def test_more_steps_on_a_falling_rate_are_told(ldmae, preset, copied):
    words = ("train", "diffusion", preset, "diffusion.training.optimizer.schedule=cosine", "--out", copied)
    first = ldmae.run(*words, "diffusion.training.steps=6", "--restart", "diffusion")
    again = ldmae.run(*words, "diffusion.training.steps=8")
    assert "planned" not in first.output
    assert "diffusion was planned for 6 steps and is now to have 8" in again.output
    assert "at 0.00029 in place of 0. To train" in again.output


# ---- what lies in the run folder


def test_another_autoencoder_in_the_run_folder_is_refused(ldmae, preset, copied, other):
    shutil.rmtree(copied / "autoencoder")
    shutil.copytree(other / "autoencoder", copied / "autoencoder")
    shutil.rmtree(copied / "diffusion")
    for command in (("run",), ("train", "diffusion")):
        message = refusal(ldmae.start(*command, preset, "--out", copied))
        assert "is not the autoencoder that this run trained" in message


def test_latents_of_another_autoencoder_are_refused(ldmae, preset, copied, other):
    shutil.rmtree(copied / "latents")
    shutil.copytree(other / "latents", copied / "latents")
    shutil.rmtree(copied / "diffusion")
    message = refusal(ldmae.start("train", "diffusion", preset, "--out", copied))
    assert "were made by another autoencoder or preprocessing" in message
    assert "--restart latents" in message


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("train diffusion --restart diffusion", "diffusion.model.num_attention_heads=1"),
        ("run --restart autoencoder.pretraining", "seed=1"),
    ],
)
def test_training_state_of_another_run_is_refused(ldmae, preset, copied, tmp_path, words, setting):
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    verb, restart = words.split(" --")
    arguments = (*verb.split(), preset, setting, *f"--{restart}".split(), "--out", other)
    ldmae.run(*arguments)
    states = copied / "checkpoints" / "diffusion"
    shutil.rmtree(states)
    shutil.copytree(other / "checkpoints" / "diffusion", states)
    shutil.rmtree(copied / "diffusion")
    message = refusal(ldmae.start("run", preset, "--out", copied))
    assert "step-00000016.pt belongs to a training" in message
    assert "--restart diffusion" in message


def test_second_program_on_a_run_folder_is_refused_and_disturbs_nothing(ldmae, preset, finished, tmp_path):
    folder = tmp_path / "run"
    first = ldmae.start("run", preset, "--out", folder)
    while not (folder / "checkpoints").exists() and first.poll() is None:
        time.sleep(0.001)
    assert "another program is working on" in refusal(ldmae.start("run", preset, "--out", folder))
    assert first.wait() == 0, first.output
    assert_same_run(folder, finished)


# ---- the training, the disk


@pytest.mark.parametrize(
    ("stage", "term"), [("autoencoder.pretraining", "visible"), ("diffusion", "velocity")]
)
def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(ldmae, preset, copied, stage, term):
    settings = (
        f"{stage}.training.optimizer.learning_rate=1e30",
        f"{stage}.training.checkpoint.every_steps=1",
    )
    words = ("train", stage.split(".")[0], preset, "--out", copied)
    message = refusal(ldmae.start(*words, *settings, "--restart", stage))
    assert f"{stage}: the term '{term}' became" in message
    assert f"--restart {stage}" in message
    states = list((copied / "checkpoints" / stage).glob("step-*.pt"))
    assert [path.name for path in states] == ["step-00000001.pt"]
    weights = torch.load(states[-1], weights_only=True)["objective"]
    assert all(weight.isfinite().all() for weight in weights.values())
    assert refusal(ldmae.start(*words, *settings)) == message  # it resumes, and meets it again
    ldmae.run(*words, "--restart", stage)


def test_lack_of_shared_memory_is_told_with_the_next_move(ldmae, preset, tmp_path):
    settings = (f"{TRAINING}.batch_size=256", f"{TRAINING}.num_workers=1")  # a batch of 600 KB
    message = refusal(ldmae.start("run", preset, *settings, "--out", tmp_path / "run", largest_file=100_000))
    assert "num_workers=0" in message


@pytest.mark.parametrize(
    ("gone", "restart", "largest_file", "failed"),
    [
        ("autoencoder", (), 39_000, "autoencoder"),
        (
            "latents",
            ("--restart", "latents", "latents.batch_size=2"),
            20_000,
            "latents/latents_rank00_shard000.safetensors",
        ),
        ("diffusion", (), 42_000, "diffusion"),
        ("pipeline", (), 42_000, "pipeline"),
        ("samples", (), 15_000, ""),
        ("results", ("--restart", "evaluation"), 15_000, "results/reconstruction.npz"),
        ("report.html", (), 200_000, "report.html"),
    ],
)
def test_failed_write_names_the_file_and_loses_nothing(
    ldmae, preset, finished, copied, gone, restart, largest_file, failed
):
    if (copied / gone).is_dir():
        shutil.rmtree(copied / gone)
    arguments = ("run", preset, "--out", copied)
    drawn = gone == "report.html"  # which is large then
    message = refusal(ldmae.start(*arguments, *restart, largest_file=largest_file, drawn=drawn))
    assert f"no space left to write {copied / failed}" in message
    assert not any(copied.rglob(".writing-*"))
    ldmae.run(*arguments)
    assert_same_run(copied, finished)


def test_failed_writes_of_a_new_run_name_the_file_and_lose_nothing(ldmae, preset, finished, tmp_path):
    folder = tmp_path / "run"
    arguments = ("run", preset, "--out", folder)
    for largest_file, failed in (
        (1_500, "data/images-"),
        (100_000, "checkpoints/autoencoder.pretraining/step-"),
    ):
        message = refusal(ldmae.start(*arguments, largest_file=largest_file))
        assert f"no space left to write {folder / failed}" in message
        assert not any(folder.rglob(".writing-*"))
    ldmae.run(*arguments)
    assert_same_run(folder, finished)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 500 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a process that ends may still hold it


def test_full_disk_stops_the_run_and_it_goes_on_once_there_is_room(ldmae, preset, finished, small_disk):
    folder, refusals = small_disk / "run", 0
    for size in range(800, 20_000, 900):
        started = ldmae.start("run", preset, "--out", folder, drawn=True)
        if started.wait() == 0:
            break
        assert "no space left" in refusal(started)
        refusals += 1
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
    assert refusals >= 3
    assert_same_run(folder, finished)


def test_missing_shard_of_latents_is_noticed_and_encoded_again(ldmae, preset, copied):
    shutil.rmtree(copied / "diffusion")
    shards = sorted((copied / "latents").glob("*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    message = refusal(ldmae.start("train", "diffusion", preset, "--out", copied))
    assert "a shard is missing" in message
    ldmae.run("encode", copied)
    assert shards[-1].exists()
    ldmae.run("train", "diffusion", preset, "--out", copied)


def test_damaged_training_state_is_named_and_the_one_before_serves(ldmae, preset, copied):
    weights = read_run(copied / "diffusion")
    last = copied / "checkpoints" / "diffusion" / "step-00000016.pt"
    last.write_bytes(last.read_bytes()[:1000])
    shutil.rmtree(copied / "diffusion")
    message = refusal(ldmae.start("run", preset, "--out", copied))
    assert str(last) in message
    last.unlink()  # the next move that it named
    ldmae.run("run", preset, "--out", copied)
    assert read_run(copied / "diffusion") == weights
