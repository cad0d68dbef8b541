"""A run folder at work: what is set up before any stage, and what another start makes anew."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from ldmae import AutoencoderVMAE, LightningDiTTransformer2DModel
from ldmae.config import load_config
from ldmae.core.errors import UserError
from ldmae.recipes.run import open_accelerator, run_autoencoder
from ldmae.stages import StageBook


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    torch.use_deterministic_algorithms(False)


def test_deterministic_run_lets_cublas_compute(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    open_accelerator(load_config("smoke", ["device=cpu"]), tmp_path)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    open_accelerator(load_config("smoke", ["device=cpu", "deterministic=true"]), tmp_path)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"  # else torch refuses to multiply on CUDA


def test_second_accelerator_of_a_process_shards_as_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    state = PartialState(cpu=True)._shared_state
    monkeypatch.setitem(state, "distributed_type", DistributedType.MULTI_GPU)
    for _ in range(2):
        accelerator = open_accelerator(load_config("smoke", ["device=cpu"]), tmp_path)
        assert accelerator.is_fsdp2
        assert state["distributed_type"] == DistributedType.FSDP


def test_run_without_its_autoencoder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("flowers")  # flowers/autoencoder reads like OWNER/NAME
    run: Any = SimpleNamespace(config=load_config("smoke"), folder=folder, book=StageBook(folder))
    with pytest.raises(UserError, match=r"the run flowers has no autoencoder yet; .*ldmae train autoencoder"):
        run_autoencoder(run)


def test_a_source_with_another_decoder_gives_another_pipeline_of_the_same_latents(
    ldmae: Any, preset: Path, tmp_path: Path
) -> None:
    folder, source = tmp_path / "run", tmp_path / "source"
    assert ldmae.start("train", "autoencoder", preset, "--out", tmp_path / "other").wait() == 0
    shutil.copytree(tmp_path / "other" / "autoencoder", source)
    words = ("run", preset, f"autoencoder.source={source}", "--out", folder)
    first = ldmae.start(*words)
    assert first.wait() == 0, first.output
    transformer: Any = LightningDiTTransformer2DModel.from_pretrained(folder / "diffusion")
    counted = json.loads((folder / "parameters.json").read_text())
    assert counted == {"diffusion": dict.fromkeys(("total", "trainable"), transformer.num_parameters())}
    trained = (folder / "diffusion" / "diffusion_pytorch_model.safetensors").read_bytes()
    vae: Any = AutoencoderVMAE.from_pretrained(source)
    vae.decoder_pred.conv_smoother.bias.data.add_(0.25)
    vae.save_pretrained(source)
    again = ldmae.start(*words)
    assert again.wait() == 0, again.output
    joined: Any = AutoencoderVMAE.from_pretrained(folder / "pipeline" / "vae")
    assert torch.equal(joined.decoder_pred.conv_smoother.bias, vae.decoder_pred.conv_smoother.bias)
    assert (folder / "diffusion" / "diffusion_pytorch_model.safetensors").read_bytes() == trained
