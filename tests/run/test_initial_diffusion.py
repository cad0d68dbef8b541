"""`diffusion.init` and LoRA: what training starts from, what becomes of classes, what a run keeps of it."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ldmae import LDMAEPipeline, LightningDiTTransformer2DModel
from ldmae.cli.options import resolve
from ldmae.config import load_config
from ldmae.config.diffusion import LoraConfig
from ldmae.core.errors import UserError
from ldmae.diffusion.lora import add_adapter, merged
from ldmae.loading import load_autoencoder
from ldmae.run import initial_diffusion
from ldmae.run.initial_diffusion import (
    CLASSES,
    _initial_model,
    _with_initial_diffusion,
    check_initial_diffusion,
    keep_initial_diffusion,
    without_adapter,
)
from ldmae.run.plan import describe_plan, plan_trainings
from ldmae.run.run import autoencoder_fingerprints

from ..processes import finish, kill_once
from ..tiny import tiny_pipeline, tiny_transformer, tiny_vmae
from .folders import assert_same_run
from .test_processes import FSDP, WEIGHT, weights

TABLE = "y_embedder.embedding_table.weight"
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


def drawn_transformer(**changes):
    model = tiny_transformer(**{"sample_size": 6, "patch_size": 2, "num_classes": 3, **changes})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # its last layers start at zero, which would hide differences
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def save_source(folder: Path, names=("discs", "bars", "waves"), **changes) -> Path:
    parts = tiny_vmae(sample_size=24), drawn_transformer(**changes)
    tiny_pipeline(*parts, id2label=dict(enumerate(names))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a pipeline with other class numbers than the pictures have."""
    return save_source(tmp_path_factory.mktemp("source") / "pipeline")


def opened(source, folder, classes=("bars", "discs", "waves"), **lora):
    settings = [f"diffusion.init={source}", *(f"diffusion.lora.{key}={value}" for key, value in lora.items())]
    config = load_config("smoke", [*settings, "image_size=24"])
    made: dict[str, Any] = {"train": SimpleNamespace(classes=[*classes]), "restart": None, "main": True}
    return SimpleNamespace(config=config, folder=folder, source=source, takes_autoencoder=False, **made)


def state_of(source):
    return load_file(Path(source) / "transformer" / "diffusion_pytorch_model.safetensors")


def test_training_starts_from_the_source_s_weights_with_its_classes_matched_by_name(source, tmp_path, capsys):
    model = _initial_model(opened(source, tmp_path), 4, 6)
    before = state_of(source)
    table = before.pop(TABLE)
    after = model.state_dict()
    assert torch.equal(after.pop(TABLE), table[[1, 0, 2, 3]])  # the null class, row 3, is kept
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "classes 3 matched by name (bars, discs, waves)" in capsys.readouterr().err


def test_new_classes_start_at_the_mean_of_the_old_ones(source, tmp_path, capsys):
    model = _initial_model(opened(source, tmp_path, ("waves", "cats", "dogs", "bars")), 4, 6)
    table, made = state_of(source)[TABLE], model.state_dict()[TABLE]
    torch.testing.assert_close(made[1], table[:3].mean(0))
    assert torch.equal(made[[0, 3, 4]], table[[2, 1, 3]])
    assert torch.equal(made[1], made[2])
    assert "2 new, from the mean of the old ones (cats, dogs)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "classes", "told"),
    [
        (None, ["bars", "discs", "waves"], "3 matched by number, for the source does not name its classes"),
        ({0: "cats"}, ["all"], "1 matched as the only one of both (all)"),
    ],
)
def test_classes_without_names_and_an_only_class_are_taken_in_order(tmp_path, capsys, names, classes, told):
    model = drawn_transformer(num_classes=len(classes))
    tiny_pipeline(tiny_vmae(sample_size=24), model, id2label=names).save_pretrained(tmp_path / "s")
    made = _initial_model(opened(tmp_path / "s", tmp_path, classes), 4, 6)
    assert torch.equal(made.state_dict()[TABLE], model.state_dict()[TABLE])
    assert told in capsys.readouterr().err


def test_another_grid_interpolates_positions_alone(source, tmp_path):
    model = _initial_model(opened(source, tmp_path), 4, 8)
    before, after = state_of(source), model.state_dict()
    whole = LightningDiTTransformer2DModel.from_pretrained(source, subfolder="transformer")
    assert torch.equal(after["pos_embed"], whole._positions(4, 4))
    others = [name for name in before if name not in ("pos_embed", TABLE)]
    assert all(torch.equal(after[name], before[name]) for name in others)
    assert model.config["sample_size"] == 8


def test_the_shape_is_the_source_s_and_a_setting_that_contradicts_it_is_refused(source, tmp_path):
    words = [f"diffusion.init={source}", f"autoencoder.source={source / 'vae'}"]
    config, _ = resolve("smoke", [*words, "diffusion.model.num_layers=1"], tmp_path / "run")
    assert (config.diffusion.model.num_layers, config.diffusion.model.attention_head_dim) == (1, 8)
    with pytest.raises(UserError, match=r"diffusion.model.num_layers=3 contradicts diffusion.init=.* is 1;"):
        resolve("smoke", [*words, "diffusion.model.num_layers=3"], tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["diffusion.init=missing"], "there is no missing; expected a run folder"),
        (["diffusion.init=official:no.pt"], "no.pt"),
        (
            ["diffusion.init={source}", "autoencoder.model.latent_channels=3"],
            "of 4 channels, the autoencoder has 3",
        ),
        (
            ["diffusion.init={source}", "image_size=28", "diffusion.model.patch_size=1"],
            r"do not divide the latent grid of 7 x 7; set image_size",
        ),
        (["diffusion.lora.rank=4"], "adapts weights that exist; set diffusion.init"),
        (["sampling.timestep_shift=1e-9"], "timestep_shift must be 0 or at least 1e-06, got 1e-09"),
        (["diffusion.init={source}", "diffusion.kind=my_models:Mine"], "is for a LightningDiT"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_before_anything_is_written(
    source, tmp_path, settings, message
):
    model = "autoencoder.model.latent_channels=4"
    written = ["image_size=24", model, *(text.format(source=source) for text in settings)]
    with pytest.raises(UserError, match=message):
        _with_initial_diffusion(load_config("smoke", written), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_fits_what_training_starts_from_is_named(tmp_path):
    with pytest.raises(UserError, match=r"patch_size=6, that of .*=pretrained:emoji; take image_size=60"):
        resolve("quick", ["data=emoji", "autoencoder.init=pretrained:emoji"], tmp_path)
    config, _ = resolve("finetune", ["data=emoji", "image_size=66"], tmp_path)
    with pytest.raises(UserError, match=r"11 cells a side, .*patch_size=2 does not divide; .* gives 12"):
        describe_plan(config, tmp_path)


def test_what_is_an_adapter_s_alone_is_refused_where_none_is_trained(tmp_path):
    for setting in ("diffusion.lora.alpha=8", "diffusion.lora.targets=[attn.qkv]"):
        name = setting.partition("=")[0]
        with pytest.raises(UserError, match=f"^{name} is for an adapter; set diffusion.lora.rank=16, or om"):
            resolve("smoke", [setting], tmp_path)
        resolve("smoke", [setting, "diffusion.lora.rank=0"], tmp_path)  # an adapter's, turned off
    load_config({"diffusion": {"lora": {"alpha": 8}}})  # a run of an older version


@needs_peft
def test_lora_refuses_classes_that_the_source_does_not_have(source, tmp_path):
    run = opened(source, tmp_path, ("bars", "cats"), rank=4)
    with pytest.raises(
        UserError, match=r"does not have cats; give the classes names that it has \(discs, bars"
    ):
        check_initial_diffusion(run)


@needs_peft
def test_lora_refuses_new_classes_of_a_source_that_is_to_be_copied_again(source, tmp_path, monkeypatch):
    run = opened(source, tmp_path / "run", ("bars", "waves"), rank=4)
    keep_initial_diffusion(run)
    monkeypatch.setattr(initial_diffusion, "is_copied", lambda _, stage, source, restart: stage != restart)
    other = save_source(tmp_path / "other", ("cats", "dogs", "owls"))
    run.config = opened(other, tmp_path, rank=4).config
    check_initial_diffusion(run)  # by the copy
    run.restart = "diffusion.init"
    with pytest.raises(UserError, match="does not have bars, waves; give the classes names that it has"):
        check_initial_diffusion(run)


@needs_peft
def test_lora_trains_images_without_classes_with_the_null_class(source, tmp_path):
    run = opened(source, tmp_path, ("pictures",), rank=4)
    check_initial_diffusion(run)
    table = state_of(source)[TABLE]
    assert torch.equal(_initial_model(run, 4, 6).state_dict()[TABLE], table[3:])


def test_an_autoencoder_that_is_taken_with_other_latents_is_refused_before_the_first_stage(source, tmp_path):
    run = opened(source, tmp_path)
    run.takes_autoencoder = True
    tiny_vmae(sample_size=24, latent_channels=3).save_pretrained(tmp_path / "vae")
    auto = run.config.autoencoder.replace(source=str(tmp_path / "vae"))
    run.config = run.config.replace(autoencoder=auto)
    with pytest.raises(UserError, match="of 4 channels, the autoencoder has 3"):
        check_initial_diffusion(run)


def test_a_model_that_knows_the_latents_of_another_autoencoder_is_told(source, tmp_path, capsys):
    run, told = opened(source, tmp_path), "were trained on the latents of another autoencoder than this run's"
    check_initial_diffusion(run)  # which trains one
    taken = f"as it is, give autoencoder.source={source}"
    assert f"diffusion.init={source}: its weights {told}; to take that one {taken}" in capsys.readouterr().err
    run.takes_autoencoder = True
    run.config = run.config.replace(autoencoder=run.config.autoencoder.replace(source=str(source)))
    run.taken_autoencoder = autoencoder_fingerprints(load_autoencoder(str(source)), 24)
    check_initial_diffusion(run)
    assert told not in capsys.readouterr().err


# ---- LoRA


@needs_peft
def test_an_adapter_begins_as_the_source_and_merges_to_the_same_model():
    torch.manual_seed(0)
    plain = drawn_transformer()
    model = add_adapter(copy.deepcopy(plain), LoraConfig(rank=2, alpha=4))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 4
    inputs = torch.randn(2, 4, 6, 6), torch.rand(2), torch.tensor([0, 2])
    assert torch.equal(model(*inputs).sample, plain(*inputs).sample)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted = model(*inputs).sample
    assert (adapted - plain(*inputs).sample).abs().max() > 1e-3
    whole = merged(model)
    torch.testing.assert_close(whole(*inputs).sample, adapted, atol=1e-5, rtol=1e-5)
    assert whole.state_dict().keys() == plain.state_dict().keys()


@needs_peft
def test_a_target_that_no_layer_is_called_is_refused_by_name():
    for target in ("attn.q", "attn", "adaLN_modulation.0"):  # the last two are no linear layers
        with pytest.raises(
            UserError, match=rf"names '{target}', which no linear layer.*blocks have .*attn\.qkv"
        ):
            add_adapter(drawn_transformer(), LoraConfig(rank=2, targets=[target]))


def test_an_adapter_of_a_training_before_does_not_stay_beside_a_whole_one(tmp_path):
    (tmp_path / "lora").mkdir()
    run: Any = SimpleNamespace(config=load_config("smoke"), main=True, folder=tmp_path)
    model = drawn_transformer()
    assert without_adapter(run, model) is model
    assert not (tmp_path / "lora").exists()


@needs_peft
def test_a_plan_counts_gradients_and_optimizer_of_the_adapter_alone(source, tmp_path):
    settings = ["image_size=24", "autoencoder.model.latent_channels=4", f"diffusion.init={source}"]
    plans = {}
    for rank in (0, 2):
        config = load_config("smoke", [*settings, f"diffusion.lora.rank={rank}"])
        plans[rank] = plan_trainings(_with_initial_diffusion(config, tmp_path))[-1]
    full, lora = plans[0], plans[2]
    assert lora.trainable == 2 * (16 + 48) + 2 * (16 + 16)  # qkv, proj
    assert full.memory - lora.memory > 10 * (full.trainable - lora.trainable)


@pytest.fixture(scope="module")
def words(preset, source, tmp_path_factory):
    """A command that trains an adapter, without a training of the autoencoder, and where it starts from."""
    folder = tmp_path_factory.mktemp("words")
    vae = Path(shutil.copytree(source / "vae", folder / "vae"))
    start = Path(shutil.copytree(source, folder / "start"))
    settings = [f"autoencoder.source={vae}", f"diffusion.init={start}", "diffusion.lora.rank=2"]
    return ("run", preset, *settings), start


@needs_peft
def test_a_run_with_lora_that_is_killed_ends_the_same_without_its_source(ldmae, words, tmp_path):
    command, start = words
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    two = (*command, "diffusion.training.micro_batch_size=4", "--out", tmp_path / "two")
    finish(ldmae.start(*command, "--out", alone), *ldmae.start_two(*two))
    a, b = weights(alone / "diffusion"), weights(tmp_path / "two" / "diffusion")
    assert max((a[name] - b[name]).abs().max() for name in a) < WEIGHT

    state = killed / "checkpoints" / "diffusion" / "step-00000005.pt"
    kill_once(state, ldmae.start(*command, "--out", killed))
    away = start.rename(start.with_name("away"))
    ldmae.run(*command, "--out", killed)
    away.rename(start)
    assert_same_run(alone, killed)

    pipe, joined = LDMAEPipeline.from_pretrained(start), LDMAEPipeline.from_pretrained(alone / "pipeline")
    settings = {"num_inference_steps": 2, "output_type": "latent", "timestep_shift": 1.0}

    def made(pipeline):
        return pipeline("bars", generator=torch.Generator().manual_seed(0), **settings).images

    before = made(pipe)
    pipe.load_lora_weights(alone / "lora", adapter_name="one")
    with_one = made(pipe)
    assert (with_one - before).abs().max() > 1e-4
    torch.testing.assert_close(with_one, made(joined), atol=1e-4, rtol=1e-3)
    pipe.load_lora_weights(tmp_path / "two" / "lora", adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.5, 0.5])
    torch.testing.assert_close(made(pipe), with_one, atol=1e-3, rtol=1e-2)
    pipe.set_adapters("one")
    pipe.fuse_lora(adapter_names=["one"])
    pipe.unload_lora_weights()
    torch.testing.assert_close(made(pipe), with_one, atol=1e-4, rtol=1e-3)
    assert not np.isnan(with_one.numpy()).any()
    assert (alone / "checkpoints" / "diffusion.init" / "model").exists()
    assert (alone / CLASSES).exists()


@needs_peft
def test_decoder_and_adapter_of_two_sharded_processes_are_those_of_one(ldmae, preset, source, tmp_path):
    settings = (
        "autoencoder.kind=decoder",
        f"autoencoder.init={source / 'vae'}",
        "autoencoder.decoder.training.steps=4",
        "autoencoder.decoder.training.batch_size=8",
        "autoencoder.decoder.training.num_workers=0",
        f"diffusion.init={source}",
        "diffusion.lora.rank=2",
    )
    command = ("run", preset, *settings, "--out")
    finish(
        ldmae.start(*command, tmp_path / "alone"),
        *ldmae.start_two(*command, tmp_path / "two", environment=FSDP),
    )
    for model in ("autoencoder", "diffusion"):
        one, two = (weights(tmp_path / run / model) for run in ("alone", "two"))
        assert max((one[name] - two[name]).abs().max() for name in one) < 10 * WEIGHT
