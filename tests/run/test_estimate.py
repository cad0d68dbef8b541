"""How long a run will take: said after 20 steps, for every kind of autoencoder."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from ldmae.config import load_config
from ldmae.run import loading_rate, timing, trials
from ldmae.run.estimate import RunEstimate
from ldmae.run.run import Run
from ldmae.run.schedule import execute_stages, open_run
from ldmae.training.averaging import AveragedWeights

from ..pictures import write_shard
from ..tiny import tiny_vmae

BASELINE = (
    "autoencoder.kind=sd-vae",
    "autoencoder.baseline.model.width=0.0625",
    "autoencoder.baseline.model.factor=4",
    "autoencoder.baseline.model.latent_channels=4",
    "autoencoder.baseline.discriminator_layers=1",
    "autoencoder.baseline.discriminator_channels=8",
    "autoencoder.baseline.objective.adversarial_start_step=10",
    "autoencoder.baseline.objective.perceptual_weight=0",
    "autoencoder.baseline.training.steps=21",
    "autoencoder.baseline.training.batch_size=4",
    "autoencoder.baseline.training.num_workers=0",
)


def begin(preset: Path, folder: Path, *settings: str, watched: bool = True) -> Run:
    AcceleratorState._reset_state(True)
    run = open_run(load_config(str(preset), list(settings)), folder)
    if watched:
        RunEstimate.watch(run)
    return run


def test_estimate_of_a_baseline_counts_all_that_follows_and_changes_no_weight(preset, tmp_path, capsys):
    watched = begin(preset, tmp_path / "watched", *BASELINE)
    execute_stages(watched, "autoencoder")
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"about .+ for the whole run \(autoencoder .+, encoding .+, diffusion .+, sampling ", told
    )
    alone = begin(preset, tmp_path / "alone", *BASELINE, watched=False)
    execute_stages(alone, "autoencoder")
    assert watched.records.output("autoencoder") == alone.records.output("autoencoder")
    assert watched.records.output("autoencoder")


def test_estimate_of_a_run_on_anothers_autoencoder_is_told(preset, tmp_path, capsys):
    tiny_vmae(sample_size=24).save_pretrained(tmp_path / "other")
    settings = (f"autoencoder.source={tmp_path / 'other'}", "diffusion.training.steps=20")
    run = begin(preset, tmp_path / "run", *settings)
    execute_stages(run, "latents", "diffusion")
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(r"about .+ for the whole run \(diffusion .+, sampling .+, evaluation .+\)", told)


def test_estimate_of_a_fine_tuning_counts_the_comparison_of_both_decoders(preset, tmp_path, capsys):
    tiny_vmae(sample_size=24).save_pretrained(tmp_path / "source")
    settings = (
        "autoencoder.kind=decoder",
        f"autoencoder.init={tmp_path / 'source'}",
        "autoencoder.decoder.training.steps=20",
        "autoencoder.decoder.training.num_workers=0",
    )
    run = begin(preset, tmp_path / "run", *settings)
    execute_stages(run, "autoencoder")
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(r"for the whole run \(decoder training .+, before and after .+, encoding ", told)


def test_what_a_call_costs_by_itself_is_not_multiplied_by_the_images(monkeypatch):
    monkeypatch.setattr(trials, "_PATIENCE", 0.02)
    whole = 32 * trials.seconds_of_an_image(lambda count: time.sleep(0.014 + 0.0004 * count), 32)
    assert 0.02 < whole < 0.06  # 0.027; by two images alone it would be 0.24


def test_a_step_is_timed_with_its_averaged_weights_and_the_images_that_no_other_process_loads(
    preset, tmp_path, monkeypatch
):
    monkeypatch.setattr(AveragedWeights, "update", lambda *_: time.sleep(0.2))
    monkeypatch.setattr(timing.Timing, "_reading", 1.0)
    found = []
    run = begin(preset, tmp_path / "run", *BASELINE, "diffusion.training.ema_decay=0.9", watched=False)
    stages = ("autoencoder.baseline", "diffusion")
    run.on_start.append(
        lambda trainer: found.extend(timing.Timing(run, trainer).step_seconds(stage) for stage in stages)
    )
    execute_stages(run, "autoencoder")
    autoencoder, diffusion = found
    assert autoencoder >= 4  # images of a batch, a second each
    assert 0.2 <= diffusion < 4


@pytest.mark.parametrize(
    ("preset", "rate", "told"),
    [
        ("emoji", 5000.0, "loading does not limit it"),
        ("emoji", 1000.0, "set autoencoder.pretraining.training.num_workers=2"),
        ("quick", 1500.0, "num_workers=1, as set, is enough"),
    ],
)
def test_the_dry_run_asks_for_workers_only_where_loading_is_slow(preset, rate, told, monkeypatch):
    monkeypatch.setattr(loading_rate, "_images_per_second", lambda *of: (rate, 100))
    monkeypatch.setattr(loading_rate, "_operations_per_second", lambda config: 1e12)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    reading = loading_rate.Reading("autoencoder.pretraining", 6400, 5.8e12)  # 1,103 images a second
    (line,) = loading_rate.describe_loading(load_config(preset, ["data=emoji"]), [reading])
    assert told in line
    (day, _) = loading_rate.describe_loading(load_config("emoji"), [reading._replace(images=10**6)])
    assert "12 images/s to finish in a day" in day


def test_a_dry_run_says_which_images_it_is_about_and_leaves_out_what_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading_rate, "_SECONDS", 0.2)
    reading = loading_rate.Reading("autoencoder.pretraining", 6400, 5.8e12)
    named, timed = loading_rate.describe_loading(load_config("quick", ["data=photos"]), [reading])
    assert "the built-in set, not the folder photos here, which is data.source=./photos" in named
    assert "one process loads" in timed
    Image.new("RGB", (64, 64)).save("photos/a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (timed,) = loading_rate.describe_loading(load_config("quick", ["data=./photos"]), [reading])
    assert "one process loads" in timed
    rows = [{"bytes": (tmp_path / "photos" / "a.png").read_bytes(), "path": None}, None]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), "part.parquet")
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", 3 * number, size=20)  # the first has no picture
    for here in ("part.parquet", f"{tmp_path}/{{0..1}}.tar"):
        (timed,) = loading_rate.describe_loading(load_config("quick", [f"data={here}"]), [reading])
        assert "one process loads" in timed
    (tmp_path / "photos" / "a.png").unlink()
    for absent in ("celebahq", "/none/imagenet/train", "OWNER/NAME"):
        away = load_config("quick", [f"data={absent}", "data.val=/none/val"])
        (told,) = loading_rate.describe_loading(away, [reading])
        assert told == f"Loading was not timed: the images of {absent} are not on this machine."
    (failed,) = loading_rate.describe_loading(load_config("quick", ["data=./photos"]), [reading])
    assert "Loading was not timed: timing needs at least 1 readable image, got 0" in failed


@pytest.mark.parametrize(
    "settings",
    [
        ["data={0}/nothing"],
        ["data={0}/bad.tar"],
        ["data=digits", "data.val={0}/no"],
        [
            "data=digits",
            "data.against={0}/no",
            "autoencoder.kind=decoder",
            "autoencoder.init=pretrained:emoji",
        ],
    ],
)
def test_a_dry_run_of_images_that_cannot_be_read_says_so_in_a_line(settings, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"damaged" * 1000)
    reading = loading_rate.Reading("autoencoder.pretraining", 6400, 5.8e12)
    config = load_config("quick", [setting.format(tmp_path) for setting in settings])
    (line,) = loading_rate.describe_loading(config, [reading])
    assert line.startswith("The run would stop: ")
    assert "\n" not in line
