import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from ldmae.app.compare import measure
from ldmae.app.generate import GenerationRequest, check_request, generate, request_from
from ldmae.app.samples import sample_images
from ldmae.app.workbench import _INTERVAL, open_workbench, runs_nearby, short_name
from ldmae.config import load_config
from ldmae.config.data import DataConfig
from ldmae.core.errors import UserError
from ldmae.core.random import generator
from ldmae.images.builtin import open_builtin
from ldmae.images.index import open_images

from .conftest import CLASSES, SIZE, photo, tiny_pipeline, tiny_vae


def test_a_run_brings_its_own_settings_images_and_statistics(bench, folders):
    assert bench.name == "small"
    assert bench.run_folder == folders.run
    assert bench.class_names == CLASSES
    assert bench.size == SIZE
    assert bench.defaults.guidance_interval == [0.2, 0.9]
    assert bench.defaults.num_inference_steps == 7
    assert len(bench.samples) == 5
    assert "held-out" in bench.samples_from
    assert bench.explorer.deviation.flatten().tolist() == pytest.approx([0.8] * 4)
    assert bench.guidable


def test_the_pipeline_in_a_run_folder_is_the_run(folders):
    assert open_workbench(str(folders.run / "pipeline")).run_folder == folders.run


def test_a_pipeline_begins_with_usual_settings_and_its_own_time_shift(folders):
    bench = open_workbench(str(folders.pipeline))
    assert bench.run_folder is None
    assert bench.defaults.guidance_scale == 3.0
    assert bench.defaults.timestep_shift == pytest.approx(0.5)  # the scheduler's shift is 2
    assert "photographs" in bench.samples_from
    assert len(bench.samples) >= 8


def test_a_scheduler_s_dynamic_shift_and_solver_are_kept_until_told_otherwise(tmp_path):
    made = tiny_pipeline()
    made.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=2.0, max_shift=3.0)
    made.save_pretrained(tmp_path / "dynamic")
    bench = open_workbench(str(tmp_path / "dynamic"))
    assert bench.defaults.timestep_shift is None
    request = GenerationRequest(label=1, count=1, sampling=bench.defaults.replace(num_inference_steps=3))
    check_request(request, len(CLASSES), bench.most_pictures)
    [picture] = generate(bench.pipeline, request, CLASSES)
    own = bench.pipeline(
        [1],
        guidance_scale=3.0,
        guidance_interval=_INTERVAL,
        num_inference_steps=3,
        generator=[generator(0, "sample", 0)],
    ).images[0]
    assert np.array_equal(picture.image, own)
    assert request_from(picture.settings, CLASSES, 1).sampling == request.sampling


def test_a_model_of_one_class_begins_without_guidance(tmp_path):
    tiny_pipeline(["only"]).save_pretrained(tmp_path / "one")
    bench = open_workbench(str(tmp_path / "one"))
    assert not bench.guidable
    assert bench.defaults.guidance_scale == 1.0
    assert "1 class" in bench.facts


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere", {}, "there is no nowhere"),
        ("PIPELINE", {"device": "tpu"}, "no device 'tpu'"),
        ("PIPELINE", {"perceptual": "lpips"}, "no perceptual distance 'lpips'"),
        ("PIPELINE", {"offered": ("nowhere",)}, "there is no nowhere"),
        ("OTHER", {}, "no model_index.json"),
    ],
)
def test_what_is_wrong_is_told_before_the_page_opens(folders, source, options, message):
    named = {"PIPELINE": str(folders.pipeline), "OTHER": str(folders.other)}
    with pytest.raises(UserError, match=message):
        open_workbench(named.get(source, source), **options)


def test_offered_autoencoders_go_by_short_names(folders, tmp_path):
    (tmp_path / "other").symlink_to(folders.other)
    offered = (str(folders.other), str(tmp_path / "other" / ".." / "other"), str(folders.other))
    bench = open_workbench(str(folders.pipeline), offered=offered)
    assert bench.choices[0] == "pipeline"
    assert bench.choices[1:] == ["other", "other (2)"]
    assert bench.load(bench.name) is bench.pipeline.vae
    assert bench.load("other").config["latent_channels"] == 8
    with pytest.raises(UserError):
        bench.load("no-such-name")


@pytest.mark.parametrize(
    ("source", "name"), [("owner/name", "name"), ("pretrained:emoji", "emoji"), (".", "HERE")]
)
def test_a_source_goes_by_the_last_part_of_its_name(source, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_name(source) == (tmp_path.name if name == "HERE" else name)


def test_runs_beside_a_run_are_suggested(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs_nearby(str(folders.run)) == []
    (tmp_path / "runs").symlink_to(folders.base / "runs")
    assert runs_nearby("owner/name") == ["runs/small"]
    assert runs_nearby("owner/name", "runs/../runs/small") == []
    (tmp_path / "runs" / "other").touch()
    assert runs_nearby(str(tmp_path / "runs" / "other")) == [str(tmp_path / "runs" / "small")]  # once
    (tmp_path / "runs" / "other").unlink()


def test_a_model_of_emoji_or_digits_is_shown_such(tmp_path):
    for name in ("emoji", "digits"):
        source = open_builtin(name)
        samples, text = sample_images(None, source.classes)
        assert [sample.name for sample in samples] == source.classes[:12]
        assert text.startswith(f"{name} images")


def test_a_model_whose_data_is_known_is_shown_what_was_held_out_of_them(tmp_path):
    data = load_config("emoji").data
    held_out = open_images(data, tmp_path, progress=False)[1]
    samples, text = sample_images(None, ["whatever"], data)
    assert "held-out emoji images" in text
    pixels = {held_out.read(k).tobytes() for k in range(len(held_out))}
    assert all(sample.image.tobytes() in pixels for sample in samples)
    assert len(samples) > 5
    assert {sample.name for sample in samples} <= set(held_out.classes)


@pytest.mark.parametrize("originals", [None, np.array(5), np.zeros((9, 8, 8), np.uint8)])
def test_a_damaged_file_of_held_out_images_is_passed_over(tmp_path, originals):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "reconstruction.npz"
    path.write_bytes(b"damaged") if originals is None else np.savez(path, originals=originals)
    samples, text = sample_images(tmp_path, ["a", "b"])
    assert "photographs" in text
    assert len(samples) > 1


def test_facts_name_no_path(bench):
    assert "32 × 32 pixels" in bench.facts
    assert not any("/" in fact for fact in [bench.name, *bench.facts])


@pytest.mark.parametrize("classes", [["hearts"], ["faces"], ["hearts", "food"]])
def test_a_model_of_few_classes_has_two_images_at_least(classes):
    data = DataConfig(source="emoji", classes=classes)
    samples, _ = sample_images(None, classes, data)
    assert len(samples) >= 2
    assert len({sample.image.tobytes() for sample in samples}) == len(samples)


# ---- what visitors may load


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that notes that it ran, where imports look."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload_of_the_page.py").write_text("open('it-ran', 'w')")
    yield tmp_path
    assert not (tmp_path / "it-ran").exists()
    assert "payload_of_the_page" not in sys.modules


def test_a_run_folder_whose_settings_name_code_is_refused_wherever_the_page_meets_it(payload, bench, folders):
    run = payload / "run"
    shutil.copytree(folders.run, run)
    for code in ("os:abort", "payload_of_the_page:Thing"):
        (run / "config.yaml").write_text(f"autoencoder: {{source: '{code}'}}\n")
        with pytest.raises(UserError, match="names code to run"):
            bench.load(str(run))
    assert "names code to run" in measure(str(run), photo(), 32, bench.perceptual, load=bench.load).problem
    with pytest.raises(UserError, match="names code to run"):
        open_workbench(str(run))
    with pytest.raises(UserError, match="names code to run"):
        open_workbench(str(folders.run), offered=(str(run),))


@pytest.mark.parametrize(
    "group", ["autoencoder: {kind", "diffusion: {kind", "sampling: {solver", "data: {source: digits, val"]
)
def test_a_run_folder_whose_settings_name_a_component_is_refused_by_the_page(payload, folders, group):
    run = payload / "run"
    shutil.copytree(folders.run, run)
    (run / "config.yaml").write_text(f"{group}: 'payload_of_the_page:Thing'}}\n")
    with pytest.raises(UserError, match="names code to run"):
        open_workbench(str(run))


def test_what_visitors_sent_is_never_loaded(tmp_path, bench, folders, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    shutil.copytree(folders.other, tmp_path / "uploads" / "hash")
    (tmp_path / "link").symlink_to(tmp_path / "uploads" / "hash")
    for name in (tmp_path / "uploads" / "hash", tmp_path / "link", tmp_path / "uploads"):
        with pytest.raises(UserError, match="keeps visitors' uploads"):
            bench.load(str(name))


def test_a_pipeline_of_classes_from_elsewhere_is_refused(payload, folders):
    saved = payload / "saved"
    shutil.copytree(folders.pipeline, saved)
    open_workbench(str(saved))
    index = json.loads((saved / "model_index.json").read_text())
    index["vae"] = ["payload_of_the_page", "Thing"]
    (saved / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names code to run"):
        open_workbench(str(saved))


def test_weights_are_loaded_as_safetensors_and_never_as_pickles(tmp_path, bench, folders):
    assert bench.load(str(folders.other)).config["latent_channels"] == 8
    tiny_vae().save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(UserError, match="safetensors"):
        bench.load(str(tmp_path))


@pytest.mark.parametrize("name", ["UNet2DModel", "StableDiffusionPipeline", "utils", "os", None, 3])
def test_only_autoencoders_are_loaded(tmp_path, bench, name):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match="no autoencoder that diffusers"):
        bench.load(str(tmp_path))
