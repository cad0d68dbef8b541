"""The page loads weights as safetensors into known classes, and never code."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from ldmae.app.compare import measure
from ldmae.app.sources import load_named
from ldmae.app.workbench import open_workbench
from ldmae.core.errors import UserError

from .conftest import photo, tiny_vae

PAYLOAD = "autoencoder: {source: 'payload_of_the_page:Thing'}\n"


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
    (run / "config.yaml").write_text(PAYLOAD)
    with pytest.raises(UserError, match="names code to run"):
        load_named(str(run))
    assert "names code to run" in measure(str(run), photo(), 32, bench.perceptual, load=bench.load).problem
    with pytest.raises(UserError, match="names code to run"):
        open_workbench(str(run))
    with pytest.raises(UserError, match="names code to run"):
        open_workbench(str(folders.run), offered=(str(run),))


def test_a_folder_that_ends_the_server_is_refused(payload, bench):
    (payload / "run").mkdir()
    (payload / "run" / "config.yaml").write_text("autoencoder: {source: 'os:abort'}\n")
    with pytest.raises(UserError, match="names code to run"):
        bench.load(str(payload / "run"))


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


def test_pickled_weights_are_refused(tmp_path, bench):
    tiny_vae().save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(UserError, match="safetensors"):
        bench.load(str(tmp_path))


@pytest.mark.parametrize("name", ["UNet2DModel", "StableDiffusionPipeline", "utils", "os", None, 3])
def test_only_autoencoders_are_loaded(tmp_path, bench, name):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match="no autoencoder that diffusers"):
        bench.load(str(tmp_path))


def test_a_folder_of_safetensors_is_loaded(bench, folders):
    assert bench.load(str(folders.other)).config["latent_channels"] == 8
