"""Run folders with a damaged file: it is named, or what can be made again is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmae.config import load_config, save_config
from ldmae.contracts import RESULTS_SCHEMA, Metric
from ldmae.core.errors import UserError
from ldmae.core.provenance import Record, read_record
from ldmae.evaluation.api import Measured
from ldmae.evaluation.results import merge_results, results_record, write_results
from ldmae.loading import load_autoencoder, load_pipeline
from ldmae.report.run import overview
from ldmae.run.convert import convert_to_official
from ldmae.run.external_samples import evaluate_samples
from ldmae.run.sample_cache import _is_kept, _keep_only

from ..tiny import tiny_pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What a run leaves, without a training."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    folder.mkdir()
    pipeline = tiny_pipeline(id2label={0: "a", 1: "b"})
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.vae.save_pretrained(folder / "autoencoder")
    save_config(load_config("smoke"), folder / "config.yaml")
    write_results(
        folder, "reconstruction", "Reconstruction", Measured([Metric(name="PSNR", value=30.0)]), Record()
    )
    return folder


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.parametrize(
    "value",
    [[], {"schema": RESULTS_SCHEMA, "results": [{"name": "PSNR"}]}, {"results": "none"}, "[" * 10_000],
)
def test_figures_of_another_shape_are_named_or_measured_again(run, value):
    path = run / "results" / "reconstruction.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    assert results_record(path) is None
    with pytest.raises(
        UserError, match=r"reconstruction\.json (is not JSON|holds JSON of an unexpected form)"
    ):
        merge_results(run)


def test_metrics_of_an_older_version_are_refused_with_the_next_move(run):
    path = run / "results" / "reconstruction.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))
    assert results_record(path) is None
    with pytest.raises(
        UserError, match=r"is of schema 1, this version reads 2; measure again with `ldmae eval"
    ):
        merge_results(run)
    images = run / "samples.npz"
    np.savez(images, np.zeros((2, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="is of schema 1"):  # before any network is opened
        evaluate_samples(str(images), ["evaluation.features=inception"], run, reference=images)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model_index.json", {"transformer": 3}),
        ("model_index.json", {"id2label": [1]}),
        ("transformer/config.json", {"num_layers": 10**15}),
        ("transformer/config.json", {"num_classes": {}}),
        ("transformer/config.json", {"sample_size": 10**9}),
        ("vae/config.json", {"hidden_act": {}}),
        ("vae/config.json", {"encoder_num_hidden_layers": 2}),
        ("scheduler/scheduler_config.json", {"shift": "x"}),
    ],
)
def test_a_model_whose_config_is_damaged_is_refused_by_name(run, file, change):
    path = run / "pipeline" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="run"):
        load_pipeline(str(run)).to("cpu")


def test_a_model_whose_weights_lack_some_or_are_no_numbers_is_refused_by_name(run):
    path = run / "autoencoder" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = "to_latent.weight"
    lacking = {key: weight for key, weight in weights.items() if key != name}
    for damaged in ({**weights, name: weights[name] * torch.nan}, lacking):
        save_file(damaged, path)
        with pytest.raises(UserError, match=r"AutoencoderVMAE in .*autoencoder"):
            load_autoencoder(str(run))
        with pytest.raises(UserError, match=r"AutoencoderVMAE in .*autoencoder"):
            convert_to_official(run / "autoencoder", run / "vmae.pth")
        assert not (run / "vmae.pth").exists()


def test_a_pipeline_that_lies_here_is_never_completed_from_the_hub(run, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", lambda *a, **b: asked.append(a))
    path = run / "pipeline" / "model_index.json"
    path.write_text(path.read_text().replace('"scheduler"', '"scheduler_"'))
    (run / "pipeline" / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match="cannot load the pipeline"):
        load_pipeline(str(run))
    assert not asked


def test_damaged_samples_are_named_with_the_stage_to_restart(run):
    (run / "samples" / "images").mkdir(parents=True)
    (run / "samples" / "samples.json").write_text('{"labels": [0]}')
    (run / "samples" / "images" / "0000.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    with pytest.raises(UserError, match=r"samples/images could not be read; .*--restart samples"):
        overview(run)


def test_generated_images_whose_record_is_damaged_are_made_again(tmp_path):
    folder = tmp_path / "kept"
    for damage in (lambda path: path.mkdir(parents=True), lambda path: path.write_text("[")):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        damage(folder / "made_of.json")
        (folder / "000000000.npy").write_bytes(b"")
        _keep_only(folder, Record({"seed": 1}))
        assert [path.name for path in folder.iterdir()] == ["made_of.json"]
        assert read_record(folder / "made_of.json") == Record({"seed": 1})


def test_a_batch_of_generated_images_that_was_cut_short_is_made_again(tmp_path):
    path = tmp_path / "batch.npy"
    np.save(path, np.zeros((2, 4, 4, 3), np.uint8))
    assert _is_kept(path, 2)
    path.write_bytes(path.read_bytes()[:-10])
    assert not _is_kept(path, 2)
