"""`ldmae publish`: what it writes loads, says what it is, and goes to the Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file

from ldmae.cli.main import app
from ldmae.config import load_config, save_config, to_yaml
from ldmae.contracts import Metric
from ldmae.core.autoencoding import decode, encode_moments
from ldmae.core.errors import UserError
from ldmae.core.provenance import Record, Records
from ldmae.diffusion.own_autoencoder import OwnAutoencoder
from ldmae.evaluation.api import Measured
from ldmae.evaluation.results import write_results
from ldmae.latents.statistics import save_statistics
from ldmae.run.decoder_change import AFTER
from ldmae.run.publish import Publication, _started, _without_paths, publish

from ..serving import serving
from ..tiny import tiny_pipeline, tiny_transformer, tiny_vmae
from .fake_hub import TOKEN, FakeHub

SOURCE = Path(__file__).resolve().parents[2] / "src"
CLASSES = ["hen", "cat", "dog"]
STAGES = ["autoencoder.pretraining", "autoencoder.tuning", "diffusion", "pipeline"]


def pipeline_of(vae):
    transformer = tiny_transformer(sample_size=6, num_classes=3)
    return tiny_pipeline(vae, transformer, id2label=dict(enumerate(CLASSES)))


def write_stages(folder, **status):
    stages = [
        {"name": name, "status": status.get(name, "done"), "steps": 40, "seconds": 90.0, "device": "CPU"}
        | {"version": "0.1.0"}
        for name in {**dict.fromkeys(STAGES), **status}
        if status.get(name) != "absent"
    ]
    (folder / "stages.json").write_text(json.dumps({"schema": 2, "stages": stages}))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run folder, as far as publishing reads one, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    pipeline = pipeline_of(tiny_vmae(sample_size=24))
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.vae.save_pretrained(folder / "autoencoder")
    sampling = ["sampling.num_inference_steps=2", "sampling.guidance_scale=2.5", "seed=7"]
    data = f"data={tmp_path / 'secret' / 'birds'}"
    save_config(load_config("smoke", [data, "image_size=24", *sampling]), folder / "config.yaml")
    classes = [{"name": name, "train": 20, "held_out": 2} for name in CLASSES]
    described = {"name": "birds", "licence": "", "train": 60, "held_out": 6, "classes": classes}
    (folder / "data.json").write_text(json.dumps(described))
    write_stages(folder)
    images = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    pairs = {"originals": images, "reconstructions": images}
    psnr = Metric(name="PSNR", value=21.5, unit="dB", better="higher", counts={"images": 6})
    write_results(folder, "reconstruction", "Reconstruction", Measured([psnr], pairs))
    kid = Metric(name="KID-efficientnet_lite0", value=0.0337, better="lower", counts={"generated": 100})
    write_results(folder, "samples", "Samples", Measured([kid]))
    near = Metric(
        name="authenticity", value=0.11, counts={"generated": 200}, reference={"held-out images": 0.76}
    )
    nearest = {"generated": images, "nearest": images}
    same = Metric(name="copies", value=0.545, counts={"generated": 200})
    write_results(folder, "copies", "Copies", Measured([same, near], nearest))
    (folder / "samples").mkdir()
    Image.fromarray(images[0]).save(folder / "samples" / "grid.png")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = FakeHub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(made.handler) as made.url:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        yield made


def words(*arguments):
    typer.main.get_command(app).main(["publish", *map(str, arguments)], standalone_mode=False)


def code_of(card):
    return re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]


def test_what_is_published_is_whole_and_its_card_s_code_runs(run, tmp_path):
    words("run", "birds", "--licence", "cc-by-4.0", "--data", "Birds of a garden, CC-BY 4.0")
    folder = tmp_path / "birds"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"model_index.json", "README.md", "settings.yaml", "results.json", "samples.png"} <= names
    assert {"reconstructions.png", "nearest.png", "vae/diffusion_pytorch_model.safetensors"} <= names
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "diffusers")
    metrics = {result.metric_type: result for result in card.data.eval_results}
    assert metrics["KID-efficientnet_lite0"].metric_value == 0.0337
    assert metrics["PSNR"].dataset_name == "Birds of a garden, CC-BY 4.0"
    assert metrics["authenticity"].metric_args["generated"] == 200
    for text in (
        "training 7, sampling 0",
        "Birds of a garden, CC-BY 4.0. 60 training images in 3 classes; 6 held out.",
    ):
        assert text in card.text
    assert "89.0% of 200 generated images are closer to a training image" in card.text
    assert "held-out images: 24.0%. By the stricter metric `copies`, 54.5% are near-copies." in card.text
    assert "hen, cat, dog" in card.text
    for name in names - {name for name in names if name.endswith((".safetensors", ".png"))}:
        assert "secret" not in (folder / name).read_text(encoding="utf-8"), name
        assert "_name_or_path" not in (folder / name).read_text(encoding="utf-8"), name
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = code_of(card) + "\nprint(image.size)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "(24, 24)", done.stderr


def test_an_autoencoder_is_published_alone_from_a_run_whose_diffusion_is_not_trained(run, tmp_path):
    write_stages(run, diffusion="running", pipeline="absent")
    with pytest.raises(UserError, match=r"not finished \(diffusion, pipeline\).*--autoencoder"):
        publish(run, tmp_path / "out", Publication(licence="mit"))
    write_stages(run, **{"autoencoder.tuning": "running"}, diffusion="running", pipeline="absent")
    with pytest.raises(UserError, match=r"finish it with `ldmae run`$"):
        publish(run, tmp_path / "out", Publication(licence="mit"))
    write_stages(run, diffusion="running", pipeline="absent")
    publish(run, tmp_path / "out", Publication(licence="mit", autoencoder=True, half=True))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"PSNR"}
    assert "copies" not in card.text
    assert not (tmp_path / "out" / "samples.png").exists()
    weights = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert 'AutoModel.from_pretrained("out", trust_remote_code=True)' in code_of(card)
    (run / "latents").mkdir()
    save_statistics(run / "latents", torch.ones(4), torch.full((4,), 2.0))
    write_stages(run, latents="done")
    publish(run, tmp_path / "known", Publication(licence="mit", autoencoder=True))
    config = json.loads((tmp_path / "known" / "config.json").read_text())
    assert (config["latents_mean"], config["latents_std"]) == ([1.0] * 4, [2.0] * 4)


def test_a_card_says_which_parts_were_trained_on_the_data(run, tmp_path):
    told = {
        "autoencoder.source=OWNER/NAME": "Its diffusion model was trained on birds.",
        "autoencoder.kind=decoder autoencoder.init=OWNER/NAME": "Its diffusion model and its decoder were",
        "seed=3": "classes. Trained on birds.",
    }
    write_stages(run, **{"autoencoder.decoder": "done"})
    for i, (words, sentence) in enumerate(told.items()):
        config = load_config("smoke", [*words.split(), f"data={tmp_path / 'birds'}", "image_size=24"])
        save_config(config, run / "config.yaml")
        publish(run, tmp_path / str(i), Publication(licence="mit"))
        card = (tmp_path / str(i) / "README.md").read_text()
        assert sentence in card
        assert ("The autoencoder is that of `NAME`." in card) == (i == 0)
        assert ("The autoencoder's training started from that of `NAME`." in card) == (i == 1)


def test_an_abandoned_training_of_another_autoencoder_keeps_no_run_from_being_published(run, tmp_path):
    write_stages(run, **{"autoencoder.pretraining": "running", "autoencoder.tuning": "absent"})
    config = load_config(str(run / "config.yaml"), ["autoencoder.source=OWNER/NAME"])
    save_config(config, run / "config.yaml")
    publish(run, tmp_path / "out", Publication(licence="mit"))
    assert (tmp_path / "out" / "model_index.json").is_file()
    with pytest.raises(UserError, match=r"run trains no autoencoder: it takes that of OWNER/NAME"):
        publish(run, tmp_path / "alone", Publication(licence="mit", autoencoder=True))
    write_stages(run, **dict.fromkeys(STAGES, "absent"))
    with pytest.raises(UserError, match=r"run is not finished \(nothing is trained yet\); finish it with"):
        publish(run, tmp_path / "alone", Publication(licence="mit"))


def test_a_run_that_was_not_measured_says_so_on_its_card(run, tmp_path):
    for name in ("results", "samples"):
        shutil.rmtree(run / name)
    (run / "results.json").unlink()
    (tmp_path / "limits.txt").write_text("\ufeff- Wings may be missing.\n\n")  # as Windows saves it
    publish(run, tmp_path / "out", Publication(licence="mit", limits=tmp_path / "limits.txt"))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "None were measured." in text
    assert "copies of training images was not measured" in text
    assert "- Wings may be missing." in text
    assert ".png" not in text


def test_a_card_names_the_solver_of_samples_that_the_published_pipeline_lacks(run, tmp_path):
    config = load_config(str(run / "config.yaml"), ["sampling.solver=my_solver:Midpoint"])
    save_config(config, run / "config.yaml")
    publish(run, tmp_path / "out", Publication(licence="mit"))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "- Its samples and their metrics are by the solver my_solver:Midpoint, which it does not" in text


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        ("", [], "--licence is missing; name that of the weights"),
        ("", ["--licence", " "], "--licence is empty"),
        ("", ["--licence", "mit", "--private"], "--private goes with --push"),
        ("", ["--licence", "mit", "--limits", "no.txt"], "no.txt is no file"),
        (
            "",
            ["--licence", "mit", "--push", "birds"],
            "--push=birds is no repository of the Hub; expected OWNER",
        ),
        ("", ["--licence", "mit", "--push", "me/birds"], "needs a login on the Hub; type `hf auth login`"),
        ("config", ["--licence", "mit"], "run is not a run folder"),
        ("stages", ["--licence", "mit"], "run is not finished"),
        ("folder", ["--licence", "mit"], "out exists and is not empty"),
        ("older", ["--licence", "mit"], "the samples and evaluation of run are of an older pipeline"),
        ("measured", ["--licence", "mit", "--autoencoder"], "metrics of run are of an older autoencoder"),
        ("limits", ["--licence", "mit", "--limits", "run/limits"], "limits is not text in UTF-8"),
        ("vae", ["--licence", "mit", "--allow-code"], "has a Own of .*publish your code as a package"),
    ],
)
def test_what_can_t_be_published_is_said_before_anything_is_written(
    run, tmp_path, monkeypatch, damage, arguments, message
):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    if damage in ("config", "stages"):
        (run / {"config": "config.yaml", "stages": "stages.json"}[damage]).unlink()
    (run / "limits").write_bytes(b"caf\xe9")
    if damage == "older":
        records = Records(run)
        records.stages["pipeline"].outputs = {"pipeline": "new"}
        for name in ("samples", "evaluation"):
            records.stages[name] = Record(inputs={"pipeline": "old"}, status="done")
        records.write()
    if damage == "measured":
        older = Record(inputs={"autoencoder": "old"}, status="done")
        write_results(
            run, "reconstruction", "Reconstruction", Measured([Metric(name="PSNR", value=21.5)]), older
        )
    if damage == "folder":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").touch()
    if damage == "vae":
        own = type("Own", (torch.nn.Module,), {"encode": None, "decode": lambda self, latents: latents})()
        pipeline = pipeline_of(OwnAutoencoder(own))
        monkeypatch.setattr("ldmae.run.publish.load_pipeline", lambda *_: pipeline)
    with pytest.raises(UserError, match=message):
        words("run", "out", *arguments)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"run", "out"} if damage == "folder" else left == {"run"}


@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderTiny, VQModel])
def test_the_code_on_an_autoencoder_s_card_runs_whatever_its_class(kind, run, tmp_path):
    shutil.rmtree(run / "autoencoder")
    kind().save_pretrained(run / "autoencoder")
    shutil.rmtree(run / "results")
    (run / "results.json").unlink()
    write_results(
        run / AFTER, "reconstruction", "Reconstruction", Measured([Metric(name="PSNR", value=21.5)])
    )
    publish(run, tmp_path / "out", Publication(licence="mit", autoencoder=True))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "21.5" in card.text  # of a decoder alone
    made: dict[str, Any] = {}
    exec(code_of(card), made)
    assert made["restored"].shape == (1, 3, 24, 24)


def test_no_path_of_the_machine_is_published():
    changes = ["data.against=/srv/ann/a", "evaluation.masks=/srv/ann/b", "data=../srv/ann/photos"]
    changes += ["autoencoder.source=official:/srv/ann/vmae.pth", "diffusion.init=official:/srv/ann/dit.pt"]
    config = load_config("smoke", changes)
    assert "/srv/ann" not in to_yaml(_without_paths(config, "photos"))
    assert _started(config.replace(autoencoder=config.autoencoder.replace(source="runs/q")), False)[1] is None


LOADED = """
import sys
from diffusers import AutoModel, DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("me/birds", trust_remote_code=True)
print(type(pipe).__name__)
print(type(AutoModel.from_pretrained("me/birds", subfolder="vae", trust_remote_code=True)).__name__)
import ldmae
print(type(ldmae.LDMAEPipeline.from_pretrained("me/birds").vae).__name__)
"""


def test_what_is_pushed_loads_from_the_hub(run, tmp_path, hub):
    words("run", "out", "--licence", "mit", "--push", "me/birds", "--private")
    folder = tmp_path / "out"
    written = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert hub.files["me/birds"] == {name: path.read_bytes() for name, path in written.items()}
    assert hub.private == {"me/birds": True}
    assert 'from_pretrained("me/birds"' in (folder / "README.md").read_text(encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url}
    done = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["LDMAEPipeline", "AutoencoderVMAE", "AutoencoderVMAE"], done.stderr


def test_a_refused_login_or_upload_is_told_in_a_sentence(run, tmp_path, hub, monkeypatch):
    how = Publication(licence="mit", push="another/birds")
    with pytest.raises(UserError, match=r"uploading to another/birds failed: .*The folder .*out is whole"):
        publish(run, tmp_path / "out", how)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="the Hub refuses the login"):
        publish(run, tmp_path / "other", how)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["vmae", "vmae of another size", "kl", "dc"])
def test_exported_encoder_and_decoder_give_what_the_model_gives(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from ldmae.autoencoders.onnx import export_onnx

    torch.manual_seed(0)
    kl = AutoencoderKL(latent_channels=4, norm_num_groups=4, block_out_channels=(8, 8))
    both = {"block_out_channels": (8, 16), "layers_per_block": (1, 1), "qkv_multiscales": ((), (5,))}
    both["block_types"] = ("ResBlock", "EfficientViTBlock")  # which divides by a sum that may be 0
    sides: Any = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in both.items()}
    dc = AutoencoderDC(latent_channels=4, attention_head_dim=8, **sides)
    models = {"vmae": tiny_vmae(sample_size=24), "vmae of another size": tiny_vmae(sample_size=32)}
    model = {**models, "kl": kl, "dc": dc}[kind].requires_grad_(False)
    shapes = export_onnx(model, tmp_path / "onnx", 24)
    images = torch.rand(3, 3, 24, 24) * 2 - 1
    latents = encode_moments(model, images)[0]
    assert shapes["latents"] == list(latents.shape[1:])
    restored = decode(model, latents).clamp(-1, 1)
    for name, given, expected in (("encoder", images, latents), ("decoder", latents, restored)):
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx")
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        assert np.abs(found - expected.numpy()).max() < 5e-6, name
