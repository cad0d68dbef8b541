"""Trainings that start from an autoencoder that exists: all of a kind's, or the decoder's alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL

from ldmae import AutoencoderVMAE
from ldmae.autoencoders.baselines import continued_baseline
from ldmae.cli.options import resolve
from ldmae.config import load_config
from ldmae.core.autoencoding import encode_moments
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint_tensors
from ldmae.core.provenance import Records
from ldmae.loading import load_autoencoder
from ldmae.run import decoder_config, describe_change, describe_decoder, run_stages

from ..core.tiny import CONSISTENCY, tiny, tiny_vmae

IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
FEW = (
    "image_size=24",
    "device=cpu",
    "mixed_precision=no",
    "data.val=0.15",
    "autoencoder.decoder.training.steps=4",
    "autoencoder.decoder.training.batch_size=8",
    "autoencoder.decoder.training.num_workers=0",
    "autoencoder.decoder.training.optimizer.schedule=constant",
    "autoencoder.decoder.training.optimizer.warmup_steps=0",
    "autoencoder.decoder.training.checkpoint.every_steps=2",
    "autoencoder.decoder.objective.adversarial_weight=0.5",
    "autoencoder.decoder.discriminator_layers=1",
    "autoencoder.decoder.discriminator_channels=8",
)


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def tune(source: str, folder: Path, pictures: Path, *changes: str, restart: str | None = None) -> None:
    settings = [f"data={pictures}", *FEW, *changes]
    run_stages(decoder_config(source, settings, folder), folder, "autoencoder", restart=restart)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_autoencoder(str(folder)).state_dict())


# ---- the decoder alone


@pytest.mark.parametrize("name", ["AutoencoderVMAE", "AutoencoderKL", "VQModel"])
def test_a_decoder_is_trained_and_saved_as_the_same_class_with_the_same_latents(name, pictures, tmp_path):
    model = tiny_vmae() if name == "AutoencoderVMAE" else tiny(name)
    source, folder = saved(model, tmp_path / "source"), tmp_path / "run"
    tune(source, folder, pictures, f"against={pictures}", "evaluation.images=8")
    kind = AutoencoderVMAE if name == "AutoencoderVMAE" else getattr(diffusers, name)
    tuned = kind.from_pretrained(folder / "autoencoder")
    before, after = encode_moments(model, IMAGES)[0], encode_moments(tuned, IMAGES)[0]
    assert torch.equal(before, after)
    assert not torch.equal(model.decode(before).sample, tuned.decode(before).sample)
    configs = [
        json.loads((Path(where) / "config.json").read_text()) for where in (source, folder / "autoencoder")
    ]
    assert len({json.dumps({k: v for k, v in each.items() if k != "_name_or_path"}) for each in configs}) == 1
    record: Any = Records(folder).stages.get("autoencoder.decoder")
    assert record.inputs["autoencoder.init"] == fingerprint_tensors(model.state_dict())
    table = describe_change(folder)
    assert "Held-out images (6 images)" in table
    assert "Images of data.against (8 images)" in table
    assert [line.split()[1] for line in table.splitlines() if line.startswith("| PSNR")] == ["PSNR", "PSNR"]
    assert (folder / "before-after.png").is_file()


def test_a_run_resumes_without_its_source_and_ends_as_one_left_alone(pictures, tmp_path):
    source = saved(tiny("AutoencoderKL"), tmp_path / "source")
    tune(source, tmp_path / "alone", pictures)
    typed = f"{source}/"  # as a shell completes it
    tune(typed, tmp_path / "run", pictures, "autoencoder.decoder.training.steps=2")
    shutil.rmtree(source)
    tune(typed, tmp_path / "run", pictures)
    with pytest.raises(UserError, match=r"--restart autoencoder\.decoder to .* or `ldmae finetune decoder`"):
        tune(typed, tmp_path / "run", pictures, "autoencoder.decoder.training.batch_size=4")
    alone, resumed = weights(tmp_path / "alone" / "autoencoder"), weights(tmp_path / "run" / "autoencoder")
    assert alone.keys() == resumed.keys()
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)


def test_a_source_that_changed_is_reported_and_taken_where_training_is_restarted(pictures, tmp_path, capsys):
    source, folder = tmp_path / "source", tmp_path / "run"
    saved(tiny("AutoencoderKL"), source)
    tune(str(source), folder, pictures, "autoencoder.decoder.training.steps=2")
    before = weights(folder / "autoencoder")
    said = " ".join(capsys.readouterr().err.split())
    assert "has changed" not in said
    other = tiny("AutoencoderKL")
    with torch.no_grad():
        other.encoder.conv_in.bias.add_(1)
    saved(other, source)
    tune(str(source), folder, pictures, "autoencoder.decoder.training.steps=2")
    said = " ".join(capsys.readouterr().err.split())
    assert f"autoencoder.init={source} has changed since this run copied it" in said
    assert all(torch.equal(value, before[name]) for name, value in weights(folder / "autoencoder").items())
    settings = [f"data={pictures}", *FEW, "autoencoder.decoder.training.steps=2"]
    config = decoder_config(str(source), settings, folder)
    run_stages(config, folder, "autoencoder", restart="autoencoder.init")
    assert "has changed" not in " ".join(capsys.readouterr().err.split())
    assert torch.equal(weights(folder / "autoencoder")["encoder.conv_in.bias"], other.encoder.conv_in.bias)


def test_latents_and_diffusion_model_stay_where_the_decoder_is_another(pictures, preset, tmp_path, capsys):
    source, folder = saved(tiny("AutoencoderKL"), tmp_path / "source"), tmp_path / "run"
    tune(source, tmp_path / "tuned", pictures)

    def run(autoencoder: str) -> dict[str, bytes]:
        config = load_config(str(preset), [f"autoencoder.source={autoencoder}"])
        run_stages(config, folder, "latents", "diffusion", "pipeline")
        files = [*folder.glob("latents/*.safetensors"), *folder.glob("diffusion/*.safetensors")]
        return {str(path): path.read_bytes() + str(path.stat().st_mtime_ns).encode() for path in files}

    before = run(source)
    assert before
    with pytest.raises(UserError, match=r"run is the folder of another run; name one .* with --out"):
        tune(source, folder, pictures)
    lacking = r"has no latents yet .*or decode another run's latents with autoencoder\.source=.*tuned"
    with pytest.raises(UserError, match=lacking):
        run_stages(load_config(str(tmp_path / "tuned" / "config.yaml")), tmp_path / "tuned", "diffusion")
    assert run(str(tmp_path / "tuned" / "autoencoder")) == before
    shutil.move(tmp_path / "tuned", tmp_path / "moved")
    assert run(str(tmp_path / "tuned" / "autoencoder")) == before
    assert "can't be had; the run goes on with the copy in its pipeline" in " ".join(
        capsys.readouterr().err.split()
    )
    with pytest.raises(UserError, match=r"there is no .*mistyped"):
        run(str(tmp_path / "mistyped" / "autoencoder"))
    shutil.move(tmp_path / "moved", tmp_path / "tuned")
    joined, tuned = weights(folder / "pipeline" / "vae"), weights(tmp_path / "tuned" / "autoencoder")
    assert all(torch.equal(joined[name], tuned[name]) for name in tuned)
    other = tiny("AutoencoderKL")
    with torch.no_grad():
        other.encoder.conv_in.bias.add_(1)
    saved(other, tmp_path / "tuned" / "autoencoder")
    with pytest.raises(UserError, match=r"inputs: the weights in autoencoder\.source=\S*tuned\S* are others"):
        run(str(tmp_path / "tuned" / "autoencoder"))


def test_the_dry_run_counts_the_decoder_and_times_it(pictures, tmp_path):
    source, folder = saved(tiny("AutoencoderKL"), tmp_path / "source"), tmp_path / "run"
    text = describe_decoder(decoder_config(source, [f"data={pictures}", *FEW], folder), folder)
    model = tiny("AutoencoderKL")
    parts = (model.decoder, model.post_quant_conv)
    trained = sum(weight.numel() for part in parts for weight in part.parameters())
    fixed = sum(weight.numel() for weight in model.parameters()) - trained
    assert (
        f"AutoencoderKL: {trained / 1e6:.2f} M parameters of its decoder are trained, {fixed / 1e6:.2f} M"
        in text
    )
    assert "GiB of memory" in text
    assert "on this machine (cpu)" in text
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("AutoencoderKL", ["image_size=25"], r"multiples of 2, got 25x25"),
        ("AutoencoderKL", ["data.val=nowhere"], r"nowhere"),
        ("AutoencoderKL", ["autoencoder.model.patch_size=4x"], r"patch_size must be"),
        (
            "AutoencoderDC",
            ["autoencoder.decoder.gradient_checkpointing=true"],
            r"AutoencoderDC has no gradient checkpointing; set autoencoder.decoder.gradient_check",
        ),
        ("ConsistencyDecoderVAE", [], r"^ConsistencyDecoderVAE has no encoder and decoder of these names"),
        ("own_to_tune:Own", [], r"is of the class Own, of which a run can keep no copy; name an Auto"),
        ("nothing", [], r"there is no .*nothing; expected a run folder"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    name, changes, message, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("own_to_tune.py").write_text("from diffusers import AutoencoderKL\nclass Own(AutoencoderKL): pass\n")
    source, folder = Path(name), tmp_path / "run"
    if name == "ConsistencyDecoderVAE":
        saved(diffusers.ConsistencyDecoderVAE(**CONSISTENCY), source)
    elif hasattr(diffusers, name):
        saved(tiny(name), source)
    with pytest.raises(UserError, match=message):
        tune(str(source), folder, pictures, *changes)
    assert {path.name for path in folder.glob("*")} <= {".lock", "data"}


def test_a_decoder_without_an_autoencoder_and_data_that_is_missing_are_named(pictures, tmp_path):
    config = load_config({"autoencoder": {"kind": "decoder"}}, [f"data={pictures}", *FEW])
    with pytest.raises(
        UserError, match=r"decoder of an autoencoder that exists; name it with autoencoder.init="
    ):
        run_stages(config, tmp_path / "run", "autoencoder")
    with pytest.raises(UserError, match=r"data is not set; give data=PATH"):
        decoder_config("pretrained:emoji", [], tmp_path / "run")


# ---- all trainings


SHORT = [
    "autoencoder.pretraining.training.steps=2",
    "autoencoder.tuning.training.steps=2",
    "autoencoder.tuning.objective.perceptual_weight=0",
]


def test_trainings_start_from_the_weights_of_the_source_and_have_its_shape(preset, tmp_path, capsys):
    model = tiny_vmae()
    source, folder = saved(model, tmp_path / "source"), tmp_path / "run"
    config, _ = resolve(str(preset), [f"autoencoder.init={source}", *SHORT], folder)
    assert config.autoencoder.model.encoder_hidden_size == model.config["encoder_hidden_size"]
    run_stages(config, folder, "autoencoder")
    copy = weights(folder / "checkpoints" / "autoencoder.init" / "model")
    plain: Any = AutoencoderVMAE.from_pretrained(source)
    assert all(torch.equal(copy[name], weight) for name, weight in plain.state_dict().items())
    record: Any = Records(folder).stages.get("autoencoder.pretraining")
    assert record.inputs["autoencoder.init"] == fingerprint_tensors(plain.state_dict())
    made = load_autoencoder(str(folder))
    assert (made.config["sample_size"], made.config["patch_size"]) == (24, 4)
    shutil.rmtree(source)
    run_stages(config, folder, "autoencoder")  # all is fresh
    capsys.readouterr()
    other = config.replace(autoencoder=config.autoencoder.replace(init=None, source=str(folder)))
    for status in ("done", "running"):
        stages = json.loads((folder / "stages.json").read_text())
        stages["stages"][-1]["status"] = status
        (folder / "stages.json").write_text(json.dumps(stages))
        run_stages(other, tmp_path / status, "latents")
        told = f"{folder} has not finished autoencoder.tuning; what it had before is taken"
        assert (told in " ".join(capsys.readouterr().err.split())) == (status == "running")


def test_a_setting_that_contradicts_the_source_is_refused_by_name(preset, tmp_path):
    source = saved(tiny_vmae(), tmp_path / "source")
    words = [f"autoencoder.init={source}", "autoencoder.model.latent_channels=7"]
    with pytest.raises(
        UserError, match=r"autoencoder.model.latent_channels=7 contradicts autoencoder.init=.* is 4"
    ):
        resolve(str(preset), words, tmp_path / "run")
    resolve(str(preset), [words[0], "autoencoder.model.latent_channels=4"], tmp_path / "run")
    with pytest.raises(UserError, match=r"patch_size=8 contradicts autoencoder.init=.* is 4"):
        decoder_config(source, ["data=digits", *FEW, "autoencoder.model.patch_size=8"], tmp_path / "run")


def test_a_source_of_another_kind_is_refused_before_anything_is_written(preset, tmp_path):
    sources = {"vmae": tiny("AutoencoderKL"), "sd-vae": tiny_vmae()}
    for kind, model in sources.items():
        source = saved(model, tmp_path / kind)
        config = load_config(str(preset), [f"autoencoder.kind={kind}", f"autoencoder.init={source}"])
        with pytest.raises(UserError, match=rf"starts from an Autoencoder\w+, got {type(model).__name__}"):
            run_stages(config, tmp_path / "run", "autoencoder")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_never_starts_from_its_own_folder_which_it_would_replace(pictures, tmp_path):
    source, folder = saved(tiny("AutoencoderKL"), tmp_path / "source"), tmp_path / "run"
    tune(source, folder, pictures)
    before = weights(folder / "autoencoder")
    for own in (folder, folder / "autoencoder"):
        with pytest.raises(UserError, match=r"init=\S+ is in the folder of the run itself, which would rep"):
            tune(str(own), folder, pictures, restart="autoencoder.decoder")
    with pytest.raises(UserError, match=r"diffusion.init=\S+ is in the folder of the run itself"):
        run_stages(load_config("smoke", [f"diffusion.init={folder}"]), folder, "diffusion")
    after = weights(folder / "autoencoder")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_baseline_starts_from_any_autoencoder_kl(preset, pictures, tmp_path):
    model = tiny("AutoencoderKL")
    source, folder = saved(model, tmp_path / "source"), tmp_path / "run"
    baseline = ["training.steps=2", "training.batch_size=4", "objective.perceptual_weight=0"]
    baseline += ["objective.adversarial_weight=0"]
    words = [f"autoencoder.baseline.{word}" for word in baseline]
    config, _ = resolve(
        str(preset), ["autoencoder.kind=sd-vae", f"autoencoder.init={source}", *words], folder
    )
    assert (config.autoencoder.latent_channels, config.autoencoder.patch_size) == (4, 2)
    run_stages(config, folder, "autoencoder")
    made: Any = AutoencoderKL.from_pretrained(folder / "autoencoder")
    assert [*made.config["block_out_channels"]] == [*model.config["block_out_channels"]]
    assert json.loads((folder / "stages.json").read_text())["stages"][0]["name"] == "autoencoder.init"


@pytest.mark.parametrize("size", [16, 24])
def test_a_continued_baseline_is_the_source_at_any_size(size):
    model = tiny("AutoencoderKL")
    before = {"latents_mean": [1.0] * 4, "latents_std": [2.0] * 4, "scaling_factor": 0.3, "shift_factor": 0.1}
    model.register_to_config(**before)
    copy, mean = (
        continued_baseline(model, False, size, deterministic=False),
        continued_baseline(model, False, size, True),
    )
    with torch.no_grad():
        torch.testing.assert_close(copy(IMAGES).sample, model(IMAGES).sample, rtol=0, atol=0)
        assert torch.equal(mean.encode(IMAGES).latent_dist.mean, model.encode(IMAGES).latent_dist.mean)
        assert mean.encode(IMAGES).latent_dist.std.max() < 1e-6
    assert json.dumps(copy.config["sample_size"]) == str(size)
    assert [copy.config[name] for name in before] == [None, None, 1.0, None]  # of latents that will change
