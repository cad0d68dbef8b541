"""Opens what a user names: a run folder, a diffusers folder or Hub name, an official checkpoint."""

import json
import os
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from huggingface_hub import constants

from ldmae import AutoencoderVMAE, LDMAEPipeline, LightningDiTTransformer2DModel
from ldmae.conversion.vmae import to_official_vmae
from ldmae.core.errors import UserError
from ldmae.loading import is_run_folder, load_autoencoder, load_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny_vmae() -> AutoencoderVMAE:
    torch.manual_seed(0)
    part = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 12}
    arguments = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in part.items()}
    return AutoencoderVMAE(sample_size=16, patch_size=4, latent_channels=4, **arguments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every form of source, by name."""
    root = tmp_path_factory.mktemp("sources")
    tiny_vmae().save_pretrained(root / "vmae")
    transformer = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_classes=3
    )
    LDMAEPipeline(tiny_vmae(), transformer, FlowMatchEulerDiscreteScheduler()).save_pretrained(
        root / "pipeline"
    )
    shutil.copytree(root / "vmae", root / "run" / "autoencoder")
    shutil.copytree(root / "pipeline", root / "run" / "pipeline")
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(root / "kl")
    for name in ("run", "begun"):
        (root / name).mkdir(exist_ok=True)
        (root / name / "config.yaml").write_text("seed: 0\n")
    torch.save({"model": to_official_vmae(tiny_vmae())}, root / "official.pth")
    (root / "empty").mkdir()
    return root


# ---- autoencoders


@pytest.mark.parametrize("source", ["vmae", "run", "pipeline", "kl"])
def test_a_folder_of_any_form_gives_its_autoencoder_ready_for_use(saved, source):
    model = load_autoencoder(str(saved / source))
    assert type(model) is (AutoencoderKL if source == "kl" else AutoencoderVMAE)
    assert not model.training
    if source != "kl":
        for name, weight in tiny_vmae().state_dict().items():
            assert torch.equal(model.state_dict()[name], weight)


def test_an_official_checkpoint_gives_the_same_weights(saved):
    model = load_autoencoder(f"official:{saved / 'official.pth'}")
    assert not model.training
    assert torch.equal(model.to_latent.weight, tiny_vmae().to_latent.weight)


def test_a_relative_name_of_two_parts_that_is_a_folder_here_is_no_hub_name(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert isinstance(load_autoencoder(f"{saved.name}/vmae"), AutoencoderVMAE)


def test_weights_are_in_fp32_whatever_the_file_holds(tmp_path):
    tiny_vmae().half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_autoencoder(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "empty",
            r"empty holds no diffusers autoencoder \(no .*config\.json\); expected a run folder, .*official",
        ),
        ("official.pth", r"holds no diffusers autoencoder .*official:FILE"),
        ("begun", r"the run .*begun has no autoencoder yet; train it with `ldmae train autoencoder`"),
        ("missing", r"there is no .*missing; expected a run folder"),
    ],
)
def test_a_source_without_an_autoencoder_says_what_was_expected(saved, source, message):
    with pytest.raises(UserError, match=message):
        load_autoencoder(str(saved / source))


@pytest.mark.parametrize("source", ["name", "./a/b", "/a/b", "a/b/c", "pretrained:x", "", "a//b"])
def test_what_can_be_no_hub_name_is_not_asked_for_there(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is no|holds no"):
        load_autoencoder(source)


def test_a_missing_or_unreadable_official_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*nothing.pth"):
        load_autoencoder(f"official:{tmp_path / 'nothing.pth'}")
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.pth is not a PyTorch checkpoint"):
        load_autoencoder(f"official:{tmp_path / 'x.pth'}")


def damaged(saved, folder, config=None, size=None):
    shutil.copytree(saved / "vmae", folder)
    if config is not None:
        (folder / "config.json").write_text(config)
    if size is not None:
        os.truncate(folder / WEIGHTS, size)
    return str(folder)


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ("{", None, r"config\.json is not JSON"),
        ("[]", None, "holds a model without a class"),
        ("{}", None, "holds a model without a class"),
        (
            '{"_class_name": "UNet2DModel"}',
            None,
            "holds UNet2DModel, which is no autoencoder that diffusers knows",
        ),
        ('{"_class_name": "Nothing"}', None, "holds Nothing, which is no autoencoder"),
        (None, 100, "cannot load the AutoencoderVMAE .*Make or fetch it again"),
    ],
)
def test_a_damaged_or_foreign_folder_is_named(saved, tmp_path, config, size, message):
    with pytest.raises(UserError, match=message):
        load_autoencoder(damaged(saved, tmp_path / "x", config, size))


def test_weights_of_another_shape_or_none_at_all_are_named(saved, tmp_path):
    config = json.loads((saved / "vmae" / "config.json").read_text())
    other = damaged(saved, tmp_path / "other", json.dumps({**config, "latent_channels": 8}))
    with pytest.raises(
        UserError, match=r"cannot load the AutoencoderVMAE .*shape.*does not belong to its config"
    ):
        load_autoencoder(other)
    (tmp_path / "other" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="cannot load the AutoencoderVMAE"):
        load_autoencoder(other)


def test_a_hub_name_that_cannot_be_had_is_named(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing is no folder here and no autoencoder on the Hub"):
        load_autoencoder("nobody/nothing")
    with pytest.raises(UserError, match="cannot load the pipeline nobody/nothing"):
        load_pipeline("nobody/nothing")


# ---- pipelines


@pytest.mark.parametrize("source", ["run", "pipeline"])
def test_a_run_folder_and_a_saved_folder_give_the_pipeline(saved, source):
    pipeline = load_pipeline(str(saved / source))
    assert isinstance(pipeline, LDMAEPipeline)
    assert isinstance(pipeline.vae, AutoencoderVMAE)
    assert is_run_folder(str(saved / source)) == (source == "run")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", r"empty holds no pipeline \(no model_index\.json\)"),
        ("vmae", r"vmae holds no pipeline"),
        ("begun", r"there is no pipeline .*begun/pipeline; make it with `ldmae run`"),
        ("missing", "there is no pipeline .*missing"),
    ],
)
def test_a_source_without_a_pipeline_says_what_was_expected(saved, source, message):
    with pytest.raises(UserError, match=f"{message}.*a run folder, or the folder or Hub name"):
        load_pipeline(str(saved / source))


def test_a_pipeline_of_another_kind_is_named(tmp_path):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(4,), norm_num_groups=2, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot load the pipeline .*Expected a run folder"):
        load_pipeline(str(tmp_path))
    with pytest.raises(UserError, match="holds no diffusers autoencoder"):
        load_autoencoder(str(tmp_path))
