"""Images of a pipeline that nobody trained here: what its scheduler is, is what samples."""

import json
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from PIL import Image

from ldmae.config import load_config
from ldmae.config.diffusion import SamplingConfig
from ldmae.core.errors import UserError
from ldmae.loading import load_pipeline
from ldmae.run.sample_cache import generated_images
from ldmae.run.sampling import _save_samples, sample_from

from ..tiny import tiny_pipeline, tiny_transformer

SOLVERS = {"euler": FlowMatchEulerDiscreteScheduler, "heun": FlowMatchHeunDiscreteScheduler}


def saved(folder, scheduler):
    tiny_pipeline(transformer=tiny_transformer(std=0.3), scheduler=scheduler).save_pretrained(folder)
    return str(folder)


def sampled(source, folder, **changes):
    """Returns the pixels of an image of class 0, and how it was made."""
    changes = {"per_class": 1, "num_inference_steps": 3, **changes}
    sample_from(source, ["0"], changes, folder, "cpu")
    (path,) = (folder / "images").iterdir()
    return np.asarray(Image.open(path)), json.loads((folder / "samples.json").read_text())


def test_a_pipeline_saved_with_either_solver_samples_with_the_one_asked_for(tmp_path):
    sources = {name: saved(tmp_path / name, kind(shift=3.0)) for name, kind in SOLVERS.items()}
    pixels = {}
    for own, source in sources.items():
        _, made = sampled(source, tmp_path / f"{own}-own")
        assert made["solver"] == own
        for solver in SOLVERS:
            pixels[own, solver], made = sampled(source, tmp_path / f"{own}-{solver}", solver=solver)
            assert made["solver"] == solver
    for solver in SOLVERS:
        assert np.array_equal(pixels["euler", solver], pixels["heun", solver])
    assert not np.array_equal(pixels["euler", "euler"], pixels["euler", "heun"])


def test_guidance_that_one_class_cannot_have_is_refused_or_not_recorded(tmp_path):
    alone = tiny_pipeline(transformer=tiny_transformer(std=0.3, num_classes=1))
    alone.save_pretrained(tmp_path / "one")
    with pytest.raises(UserError, match="has one class, none to be guided away from"):
        sampled(f"{tmp_path}/one", tmp_path / "guided", guidance_scale=9.0)
    guided = SamplingConfig(guidance_scale=3.0, per_class=1, num_inference_steps=2)  # as a preset has it
    _save_samples(load_pipeline(f"{tmp_path}/one"), [0], guided, tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "samples.json").read_text())["guidance_scale"] == 1.0


def test_the_names_of_very_many_images_sort_as_their_labels_lie(tmp_path, monkeypatch):
    labels = [0] * 9000 + [1] * 1001
    dots = [np.zeros((len(labels), 1, 1, 3), np.uint8)]
    monkeypatch.setattr("ldmae.run.sampling.generated_batches", lambda *_: dots)
    _save_samples(tiny_pipeline(transformer=tiny_transformer()), labels, SamplingConfig(), tmp_path / "many")
    names = [path.stem.split("_", 1)[1] for path in sorted((tmp_path / "many" / "images").iterdir())]
    assert names == sorted(names)


def test_a_pipeline_s_own_dynamic_shift_is_kept(tmp_path):
    source = saved(tmp_path / "pipeline", FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    pixels, made = sampled(source, tmp_path / "own")
    assert made["timestep_shift"] is None
    unshifted, _ = sampled(source, tmp_path / "unshifted", timestep_shift=1.0)
    assert not np.array_equal(pixels, unshifted)


@pytest.mark.parametrize("told", [[], ["solver", "timestep_shift"]])
def test_images_to_be_measured_are_made_as_the_pipeline_says_unless_told(tmp_path, told):
    source = saved(tmp_path / "pipeline", FlowMatchHeunDiscreteScheduler(shift=2.0))
    config = load_config({}, ["sampling.timestep_shift=1", "evaluation.samples=4"])
    made = generated_images(source, told, config, Accelerator(cpu=True), tmp_path / "kept")
    assert (made.sampling.solver, made.sampling.timestep_shift) == (("euler", 1.0) if told else ("heun", 0.5))


def test_samples_replace_samples_and_never_files_that_lie_beside_them(tmp_path):
    source = saved(tmp_path / "pipeline", FlowMatchEulerDiscreteScheduler())
    for _ in range(2):
        sampled(source, tmp_path / "samples")
    (tmp_path / "samples" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds other files"):
        sampled(source, tmp_path / "samples")
    assert (tmp_path / "samples" / "notes.txt").exists()


def test_a_class_given_twice_is_one_class(tmp_path):
    source = saved(tmp_path / "pipeline", FlowMatchEulerDiscreteScheduler())
    sample_from(source, ["1", "0", "1"], {"per_class": 1, "num_inference_steps": 1}, tmp_path / "made", "cpu")
    assert json.loads((tmp_path / "made" / "samples.json").read_text())["labels"] == [1, 0]


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_generated(tmp_path, monkeypatch):
    source = saved(tmp_path / "pipeline", FlowMatchEulerDiscreteScheduler())
    (tmp_path / "file").touch()
    monkeypatch.setattr("ldmae.run.sampling.generated_batches", lambda *_: pytest.fail("it generated"))
    with pytest.raises(UserError, match="file is a file: name another folder"):
        sampled(source, tmp_path / "file" / "samples")


def test_samples_may_go_into_the_current_directory(tmp_path, monkeypatch):
    source = saved(tmp_path / "pipeline", FlowMatchEulerDiscreteScheduler())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    sampled(source, Path())
    assert Path("grid.png").is_file()
