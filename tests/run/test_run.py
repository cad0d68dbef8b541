"""A run folder at work: what is set up before any stage, and what another start makes anew."""

import html
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from diffusers import FlowMatchHeunDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from ldmae import AutoencoderVMAE, LightningDiTTransformer2DModel
from ldmae.config import load_config
from ldmae.core.errors import UserError
from ldmae.core.provenance import Records
from ldmae.loading import load_pipeline
from ldmae.run import evaluate_run, run_all, run_stages, sample_from
from ldmae.run import sample_cache as generated
from ldmae.run.opening import open_accelerator
from ldmae.run.run import run_autoencoder
from ldmae.run.schedule import open_run

from ..pictures import write_shard
from .test_measurements import OWN

pytestmark = pytest.mark.usefixtures("blank")


def test_deterministic_run_lets_cublas_compute(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    open_accelerator(load_config("smoke", ["device=cpu"]), tmp_path)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    open_accelerator(load_config("smoke", ["device=cpu", "deterministic=true"]), tmp_path)
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
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


def test_settings_that_the_run_does_not_read_are_told(preset, tmp_path, capsys):
    settings = ["autoencoder.options.width=8", "data.against=digits"]
    open_run(load_config(str(preset), settings), tmp_path)
    told = " ".join(capsys.readouterr().err.split())
    assert "autoencoder.options are not used" in told
    assert "data.against is not used" in told


def test_run_without_its_autoencoder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("flowers")  # flowers/autoencoder reads like OWNER/NAME
    run: Any = SimpleNamespace(config=load_config("smoke"), folder=folder, records=Records(folder))
    with pytest.raises(UserError, match=r"the run flowers has no autoencoder yet; .*ldmae train autoencoder"):
        run_autoencoder(run)


def test_a_source_with_another_decoder_gives_another_pipeline_of_the_same_latents(
    ldmae: Any, preset: Path, tmp_path: Path
) -> None:
    folder, source = tmp_path / "run", tmp_path / "source"
    ldmae.run("train", "autoencoder", preset, "--out", tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "autoencoder", source)
    words = ("run", preset, f"autoencoder.source={source}", "--out", folder)
    ldmae.run(*words)
    transformer: Any = LightningDiTTransformer2DModel.from_pretrained(folder / "diffusion")
    counted = json.loads((folder / "parameters.json").read_text())
    assert counted == {"diffusion": dict.fromkeys(("total", "trainable"), transformer.num_parameters())}
    trained = (folder / "diffusion" / "diffusion_pytorch_model.safetensors").read_bytes()
    vae: Any = AutoencoderVMAE.from_pretrained(source)
    vae.decoder_pred.conv_smoother.bias.data.add_(0.25)
    vae.save_pretrained(source)
    ldmae.run(*words)
    joined: Any = AutoencoderVMAE.from_pretrained(folder / "pipeline" / "vae")
    assert torch.equal(joined.decoder_pred.conv_smoother.bias, vae.decoder_pred.conv_smoother.bias)
    assert (folder / "diffusion" / "diffusion_pytorch_model.safetensors").read_bytes() == trained


def test_a_class_of_ones_own_goes_through_every_stage(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_of_a_run.py").write_text(OWN)
    run_all(load_config(str(preset), ["autoencoder.source=own_of_a_run:Means"]), Path("run"))
    results = json.loads(Path("run/results.json").read_text())["results"]
    assert {"reconstruction", "generation"} <= {entry["measurement"] for entry in results}
    made = sample_from("run", ["bars"], {"num_inference_steps": 2}, Path("made"), "cpu", allow_code=True)
    pixels = np.asarray(Image.open(next((made.parent / "images").iterdir())).convert("RGB"))
    assert pixels.shape == (24, 24, 3)
    assert (pixels[::4, ::4] == pixels[3::4, 3::4]).all()  # as its decoder makes them
    with pytest.raises(UserError, match="names a custom module"):
        load_pipeline("run/pipeline")


# ---- an autoencoder alone


def test_what_is_older_than_a_retrained_model_is_not_shown_as_its_own(finished, preset, tmp_path):
    def measured():
        results = json.loads((folder / "results.json").read_text())["results"]
        return {entry["measurement"] for entry in results}

    folder = shutil.copytree(finished, tmp_path / "run")
    longer = load_config(str(preset), ["diffusion.training.steps=17"])
    run_stages(longer, folder, "diffusion")
    with pytest.raises(UserError, match="is older than its diffusion"):
        sample_from(str(folder), [], {}, tmp_path / "samples")
    assert "generation" in measured()
    evaluate_run(longer, folder, ["reconstruction"])
    assert measured() == {"reconstruction"}
    run_all(longer, folder)
    assert measured() == {"reconstruction", "generation"}


def test_a_pipelines_statistics_hold_whatever_factor_its_autoencoder_had(finished, preset, tmp_path):
    model = AutoencoderVMAE.from_pretrained(finished / "autoencoder")
    model.register_to_config(scaling_factor=0.5)
    model.save_pretrained(tmp_path / "scaled")
    config = load_config(str(preset), [f"autoencoder.source={tmp_path / 'scaled'}", "sampling.solver=heun"])
    run_stages(config, tmp_path / "run", "latents", "diffusion", "pipeline")
    pipeline = load_pipeline(f"{tmp_path}/run")
    latents = torch.randn(2, 4, 6, 6)
    mean, std = (
        torch.tensor(pipeline.vae.config[f"latents_{of}"]).view(1, 4, 1, 1) for of in ("mean", "std")
    )
    torch.testing.assert_close(pipeline._denormalise((latents - mean) / std), latents)
    assert isinstance(pipeline.scheduler, FlowMatchHeunDiscreteScheduler)


@pytest.fixture(scope="module")
def autoencoder_alone(preset, tmp_path_factory):
    """A run folder after `train autoencoder` and `encode`, and its settings."""
    folder, config = tmp_path_factory.mktemp("alone") / "run", load_config(str(preset))
    run_stages(config, folder, "autoencoder", "latents")
    return config, folder


def test_a_run_without_a_diffusion_model_has_its_autoencoder_measured(autoencoder_alone, capsys):
    config, folder = autoencoder_alone
    evaluate_run(load_config(str(folder / "config.yaml"), ["evaluation.images=4"]), folder)
    assert "has no diffusion model yet: only its autoencoder is measured" in capsys.readouterr().err
    results = json.loads((folder / "results.json").read_text())["results"]
    assert {"reconstruction", "smoothness"} <= {entry["measurement"] for entry in results}
    with pytest.raises(UserError, match=r"has no diffusion model yet .*`ldmae train diffusion`"):
        evaluate_run(config, folder, ["generation"])


def test_shards_that_were_deleted_are_encoded_again(autoencoder_alone):
    config, folder = autoencoder_alone
    paths = sorted((folder / "latents").glob("*.safetensors"))
    before = [load_file(path) for path in paths]
    assert len(paths) > 1
    for lost in (paths[:1], paths):
        for path in lost:
            path.unlink()
        run_stages(config, folder, "latents")
        torch.testing.assert_close([load_file(path) for path in paths], before)


def test_a_damaged_shard_is_named_by_encode(autoencoder_alone, tmp_path):
    config, folder = autoencoder_alone
    run = shutil.copytree(folder, tmp_path / "run")
    shard = min((run / "latents").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(
        UserError, match=rf"{shard.name} is not a complete safetensors file .*delete it and encode again"
    ):
        run_stages(config, run, "latents")


# ---- classes that nothing teaches


def test_class_without_a_training_image_is_named_and_neither_sampled_nor_measured(preset, tmp_path):
    write_shard(tmp_path / "x.tar", 30, size=24, first=1)
    run, settings = tmp_path / "run", [f"data={tmp_path / 'x.tar'}", "data.val=0.2", "sampling.per_class=1"]
    run_all(load_config(str(preset), settings), run)
    assert json.loads((run / "samples" / "samples.json").read_text())["labels"] == [1, 2]
    fact = 'class "0" has no training image'
    assert fact in json.loads((run / "data.json").read_text())["facts"]
    assert fact in html.unescape((run / "report.html").read_text())
    config, accelerator = load_config(str(run / "config.yaml")), open_accelerator(load_config("smoke"), run)
    measured = generated.generated_images(str(run), (), config, accelerator, tmp_path / "kept")
    assert set(measured.labels.tolist()) == {1, 2}
    sample_from(str(run), [], {}, tmp_path / "samples", "cpu")
    assert json.loads((tmp_path / "samples" / "samples.json").read_text())["labels"] == [1, 2]
