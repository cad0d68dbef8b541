"""Every script in examples/ runs at toy size, and does what its tutorial says."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from ldmae import AutoencoderVMAE, LDMAEPipeline
from ldmae.cli.main import app
from ldmae.cli.output import run_app
from ldmae.config import load_config
from ldmae.config.diffusion import DiffusionConfig
from ldmae.config.registry import DIFFUSION, own_settings
from ldmae.conversion import load_official_vmae
from ldmae.core.errors import UserError
from ldmae.core.imports import import_object
from ldmae.diffusion.backbones import build_backbone
from ldmae.diffusion.flow import set_sampling_times
from ldmae.images.transforms import center_crop
from ldmae.loading import load_autoencoder
from ldmae.run import run_stages
from ldmae.run.preflight import check_models
from ldmae.run.trainings import autoencoder_trainings

from ..drawings import leave_blank
from ..pictures import encoded, tarred
from ..scripts import load_script

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py"))
pytestmark = pytest.mark.usefixtures("small_features")
PARTS = {
    "autoencoder.kind": ("extend/my_ae.py", "MyAutoencoder"),
    "data": ("extend/my_source.py", "Pairs"),
    "diffusion.kind": ("extend/my_dit.py", "TinySiT"),
    "sampling.solver": ("extend/my_solver.py", "Midpoint"),
}
EXTENSIONS = sorted((EXAMPLES / "extend").glob("*.py"))


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Works in an empty folder, and leaves the import path as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for path in EXTENSIONS:
        sys.modules.pop(path.stem, None)


def load(script: str) -> ModuleType:
    return load_script(EXAMPLES / script)


def run(script: str, *arguments: str | Path) -> Any:
    """Calls a script's `main` with arguments, as its command line does."""
    return load(script).main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that `train_on_your_images.py` leaves."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        leave_blank(patch)
        patch.chdir(folder)
        train_on_a_folder()
    return folder / "runs" / "mine"


def train_on_a_folder() -> None:
    """Runs `train_on_your_images.py` on fewer images a step."""
    script = load("train_on_your_images.py")
    trainings = ("autoencoder.pretraining", "autoencoder.tuning", "diffusion")
    script.TOY += [f"{training}.training.batch_size=8" for training in trainings]
    script.main(["--out", "runs/mine"])


def test_training_on_a_folder_leaves_samples_figures_and_a_pipeline(trained):
    classes = sorted(path.name for path in (trained.parent / "toy-images").iterdir())
    assert classes == ["faces", "flags"]
    assert Image.open(trained / "one.png").size == (32, 32)
    assert len(list((trained / "samples" / "images").glob("*.png"))) == 4
    assert (trained / "report.html").is_file()
    figures = {
        entry["name"]: entry["value"]
        for entry in json.loads((trained / "results.json").read_text())["results"]
    }
    assert figures["PSNR"] > 10
    assert {"SSIM", "ST-LPIPS-alex", "KID-efficientnet_lite0"} <= set(figures)
    loaded = LDMAEPipeline.from_pretrained(trained / "pipeline")
    assert {int(label): name for label, name in loaded.config.id2label.items()} == {0: "faces", 1: "flags"}
    losses = [
        line["loss"]
        for line in map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
        if line["stage"] == "autoencoder.pretraining" and "loss" in line
    ]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.usefixtures("blank")
def test_typing_the_same_command_again_redoes_nothing(trained, monkeypatch):
    before = (trained / "stages.json").read_text()
    monkeypatch.chdir(trained.parent.parent)
    train_on_a_folder()
    finished = [stage["finished"] for stage in json.loads(before)["stages"] if stage["name"] != "report"]
    after = json.loads((trained / "stages.json").read_text())["stages"]
    assert [stage["finished"] for stage in after if stage["name"] != "report"] == finished


def test_vmae_in_a_diffusers_program_restores_saves_and_swaps(capsys):
    measured = run("vmae_in_diffusers.py")
    assert measured["psnr"] > 18
    assert measured["slicing"] == pytest.approx(0, abs=1e-4)
    assert measured["saved"] == 0
    assert measured["deviation"] == pytest.approx(1, abs=0.01)
    assert 0 < measured["half"] < 0.02
    printed = capsys.readouterr().out
    assert "AutoencoderKL: a 64 × 64 image" in printed
    assert "AutoencoderVMAE: a 64 × 64 image" in printed


def test_vmae_of_a_run_goes_through_the_same_program(trained):
    assert run("vmae_in_diffusers.py", "--vae", trained)["saved"] == 0
    with pytest.raises(UserError, match="holds no"):
        run("vmae_in_diffusers.py", "--vae", trained / "latents")


def test_diffusion_is_trained_on_the_latents_of_another_autoencoder(trained, tmp_path, monkeypatch):
    script, few = load("another_autoencoder.py"), tmp_path / "few.yaml"
    monkeypatch.setattr(script, "small_autoencoder", functools.partial(script.small_autoencoder, steps=2))
    few.write_text("base: smoke\ndiffusion: {training: {steps: 3}}\n")
    images = ["--data", str(trained.parent / "toy-images"), "--val", "0.1"]
    pipeline = script.main([*images, "--preset", str(few), "--out", str(tmp_path / "run")])
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert pipeline.transformer.config.in_channels == 4
    assert len(pipeline.config.latents_std) == 4
    stages = [stage["name"] for stage in json.loads((tmp_path / "run" / "stages.json").read_text())["stages"]]
    assert stages == ["latents", "diffusion", "pipeline", "samples"]
    assert pipeline([1], num_inference_steps=2).images[0].size == (32, 32)


@pytest.mark.usefixtures("blank")
def test_measuring_tells_a_fitted_autoencoder_from_one_that_is_not(tmp_path):
    figures = run("measure_autoencoders.py", "--out", tmp_path / "results")
    unfitted, fitted = figures.values()
    assert fitted["PSNR"] > unfitted["PSNR"] + 10
    assert fitted["ST-LPIPS-alex-AUC"] < unfitted["ST-LPIPS-alex-AUC"]
    assert fitted["parameters"] == unfitted["parameters"] == 192 + 16 * 192
    shown = (EXAMPLES.parent / "docs" / "how-to" / "measured.txt").read_text(encoding="utf-8")
    for name in ("PSNR", "ST-LPIPS-alex", "rho(pattern)"):
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{name} ")]
        for text, value in zip(line.split()[1:], (unfitted[name], fitted[name]), strict=True):
            assert float(text) == pytest.approx(value, rel=0.02), name


@pytest.mark.usefixtures("blank")
def test_a_run_with_networks_of_its_own_is_measured_by_those_of_the_others(trained, tmp_path, capsys):
    own = shutil.copytree(trained, tmp_path / "own")
    config = (own / "config.yaml").read_text()
    assert config.count("  perceptual: st-lpips-alex\n  features:") == 1
    other = "  perceptual: st-lpips-vgg\n  features:"
    (own / "config.yaml").write_text(config.replace("  perceptual: st-lpips-alex\n  features:", other))
    capsys.readouterr()
    options = ("--image-size", "32", "--images", "12", "--out", tmp_path / "results")
    figures = run("measure_autoencoders.py", own, trained / "autoencoder", *options)
    first, second = figures.values()
    assert first["ST-LPIPS-alex"] == pytest.approx(second["ST-LPIPS-alex"], rel=1e-5)
    table = capsys.readouterr().out.splitlines()[-7:]
    assert [line.split()[0] for line in table] == [
        *("PSNR", "ST-LPIPS-alex", "ST-LPIPS-alex-AUC", "rKID-efficientnet_lite0"),
        *("sigma2(pattern)", "rho(pattern)", "parameters"),
    ]
    assert not any("nan" in line for line in table)


def test_costs_are_those_of_the_dry_run(capsys):
    lines = run("plan_costs.py", "smoke", "--devices", "2", "--teraflops", "1")
    names = [line.split(" | ")[1] for line in lines[2:]]
    assert names == ["autoencoder.pretraining", "autoencoder.tuning", "diffusion"]
    assert capsys.readouterr().out.splitlines() == lines
    assert "30 × 32" in lines[2]
    names = [line.split(" | ")[1] for line in run("plan_costs.py", "finetune")[2:]]  # from weights
    assert names == ["autoencoder.decoder", "diffusion"]


def test_official_files_become_a_pipeline_and_go_back(tmp_path):
    pipeline = run("official_checkpoints.py", "--out", tmp_path)
    assert Image.open(tmp_path / "picture.png").size == (64, 64)
    again = load_official_vmae(tmp_path / "vmae-again.pth", 2, 2).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in pipeline.vae.state_dict().items())
    assert pipeline.vae.config.latents_std == [1.0] * 16
    loaded = LDMAEPipeline.from_pretrained(tmp_path / "pipeline")
    assert isinstance(loaded.vae, AutoencoderVMAE)


def test_official_files_given_by_name_are_the_ones_opened(tmp_path):
    paths = load("official_checkpoints.py").make_official_files(tmp_path)
    names = {"vmae.pth": "--vmae", "lightningdit.pt": "--transformer", "latents_stats.pt": "--latents-stats"}
    arguments = [part for name, option in names.items() for part in (option, paths[name])]
    pipeline = run("official_checkpoints.py", *arguments, "--out", tmp_path / "out")
    assert pipeline.num_timesteps == 249


def test_official_files_convert_on_the_command_line_as_the_tutorial_types_it(tmp_path):
    load("official_checkpoints.py").make_official_files(tmp_path)
    heads = ["--encoder-heads", "2", "--decoder-heads", "2"]
    for words in (
        ["convert", "vmae.pth", "vmae", "--latents-stats", "latents_stats.pt", *heads],
        ["convert", "lightningdit.pt", "transformer", "--num-classes", "10"],
        ["convert", "vmae", "again.pth", "--to-official"],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    official, opened = load_autoencoder("official:vmae.pth"), AutoencoderVMAE.from_pretrained("vmae")
    again = load_official_vmae("again.pth", 2, 2)
    assert opened.config.latents_std == [1.0] * 16
    for name, weight in official.state_dict().items():
        assert torch.equal(weight, opened.state_dict()[name])
        assert torch.equal(weight, again.state_dict()[name])


def test_imagenet_archives_become_class_folders(tmp_path):
    """On archives of the official layout with two classes."""
    archives, out = tmp_path / "archives", tmp_path / "imagenet"
    archives.mkdir()
    picture = encoded(Image.new("RGB", (8, 8), "red"), "JPEG")
    classes = {}
    for wordnet, count in (("n01440764", 3), ("n01443537", 2)):
        classes[f"{wordnet}.tar"] = tarred({f"{wordnet}_{i}.JPEG": picture for i in range(count)})
    held_out = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": picture for i in range(3)}
    (archives / "ILSVRC2012_img_train.tar").write_bytes(tarred(classes))
    (archives / "ILSVRC2012_img_val.tar").write_bytes(tarred(held_out))
    meta, kinds = io.BytesIO(), [("ILSVRC2012_ID", "f8"), ("WNID", object), ("words", object)]
    savemat(meta, {"synsets": np.array([(1, "n01440764", "tench"), (2, "n01443537", "goldfish")], kinds)})
    data = "ILSVRC2012_devkit_t12/data"
    kit = {
        f"{data}/meta.mat": meta.getvalue(),
        f"{data}/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n",
    }
    (archives / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tarred(kit, "w:gz"))

    assert run("prepare_imagenet.py", archives, out) == (5, 3)
    assert sorted(path.name for path in (out / "train").iterdir()) == ["n01440764", "n01443537"]
    assert [path.name for path in (out / "val" / "n01440764").iterdir()] == ["ILSVRC2012_val_00000002.JPEG"]
    assert len(list((out / "val" / "n01443537").iterdir())) == 2
    (archives / "ILSVRC2012_img_val.tar").write_bytes(tarred(dict.fromkeys([*held_out][:2], picture)))
    with pytest.raises(SystemExit, match="holds 2 images, expected 3; download it again"):
        run("prepare_imagenet.py", archives, out)
    (archives / "ILSVRC2012_img_val.tar").write_bytes(tarred(held_out)[:700])
    with pytest.raises(SystemExit, match="is damaged"):
        run("prepare_imagenet.py", archives, out)


def test_imagenet_archives_that_lack_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"lacks ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar"):
        run("prepare_imagenet.py", tmp_path, tmp_path / "out")


def test_celebahq_is_reduced_by_the_packages_own_crop_and_once(tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    picture = Image.effect_noise((96, 70), 80).convert("RGB")
    picture.save(images / "7.jpg")
    (images / "list.txt").write_text("no picture")
    assert run("prepare_celebahq.py", images, out, "--size", "32") == 1
    made = out / "7.png"
    with Image.open(images / "7.jpg") as saved, Image.open(made) as small:
        assert small.tobytes() == center_crop(saved, 32).tobytes()
    before = made.stat().st_mtime_ns
    assert run("prepare_celebahq.py", images, out, "--size", "32") == 1
    assert made.stat().st_mtime_ns == before
    assert "1 other files ignored" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run("prepare_celebahq.py", images, images)
    for arguments, told in (
        ([out.parent, out], "holds no images"),
        ([images, out, "--size", "16"], r"7\.png has 32 × 32 px"),
    ):
        with pytest.raises(SystemExit, match=told):
            run("prepare_celebahq.py", *arguments)
    (images / "8.png").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"8\.png: "):
        run("prepare_celebahq.py", images, out, "--size", "32")
    picture.save(images / "7.webp")
    with pytest.raises(SystemExit, match=r"7\.jpg, 7\.webp: some would become the same file"):
        run("prepare_celebahq.py", images, tmp_path / "other")


def test_the_three_properties_are_drawn_from_a_run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)  # whose images the run names by a relative path
    paths = run("draw_three_properties.py", trained, "--out", tmp_path / "pictures", "--images", "4")
    assert {path.stem for path in paths} == {
        *("smoothness", "smoothness-curve", "interpolation"),
        *("compression", "reconstruction", "masking"),
    }
    figures = json.loads((tmp_path / "pictures" / "figures.json").read_text())
    measured = json.loads((trained / "results.json").read_text())["results"]
    assert figures["PSNR"] == pytest.approx(
        next(r["value"] for r in measured if r["name"] == "PSNR"), abs=1e-5
    )
    for path in paths:
        with Image.open(path) as picture:
            assert picture.mode == "P", path  # 256 colours
            assert len(picture.getcolors(256) or []) > 8, path
        committed = EXAMPLES.parent / "docs" / "pictures" / path.name
        assert committed.stat().st_size < 120_000, committed
    file = tmp_path / "file"
    file.touch()
    for arguments in ([trained, "--images", "1"], [trained, "--out", file], [tmp_path]):
        with pytest.raises(SystemExit, match="2"):
            run("draw_three_properties.py", *arguments)


# ---- extensions


def test_a_new_objective_trains_by_its_own_term():
    lines = [json.loads(line) for line in load("extend/new_objective.py").main(steps=20)]
    first, last = lines[0]["terms"], lines[-1]["terms"]
    assert set(first) == {"visible", "masked", "kl", "relative_std", "turned"}
    assert last["turned"] < 0.6 * first["turned"]
    assert last["visible"] < 0.6 * first["visible"]


def test_a_new_autoencoder_restores_and_is_saved_as_diffusers_saves(tmp_path):
    module = load("extend/new_autoencoder.py")
    autoencoder = module.photo_components()
    image = torch.rand(2, 3, 64, 32) * 2 - 1
    latents = autoencoder.encode(image).latent
    assert latents.shape == (2, 16, 8, 4)
    restored = autoencoder.decode(latents).sample
    again = autoencoder.encode(restored).latent
    torch.testing.assert_close(
        again, latents, atol=1e-4, rtol=0
    )  # a projection: the second time loses nothing
    autoencoder.save_pretrained(tmp_path)
    loaded = module.PatchComponents.from_pretrained(tmp_path)
    assert torch.equal(loaded.axes, autoencoder.axes)


def test_a_new_autoencoder_carries_the_whole_diffusion(trained, tmp_path):
    sys.path.insert(0, str(EXAMPLES / "extend"))
    overrides = [f"data={trained.parent / 'toy-images'}", "data.val=0.1", "diffusion.training.steps=3"]
    overrides += ["autoencoder.source=new_autoencoder:photo_components", "diffusion.model.patch_size=1"]
    run_stages(load_config("smoke", overrides), tmp_path / "run", "latents", "diffusion", "pipeline")
    pipeline = LDMAEPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert type(pipeline.vae).__name__ == "PatchComponents"
    assert len(pipeline.config.latents_mean) == 16


def test_a_sampler_of_second_order_halves_the_step_and_quarters_the_error():
    solver = load("extend/my_solver.py").Midpoint

    def error(steps: int) -> float:
        scheduler = solver()
        set_sampling_times(scheduler, steps)
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        for timestep in scheduler.timesteps:  # dx/dσ = 3 σ x, from σ = 1 to 0
            x = scheduler.step(3 * timestep.double() / 1000 * x, timestep, x, return_dict=False)[0]
        return abs(x.item() - math.exp(-1.5))

    assert error(32) == pytest.approx(error(16) / 4, rel=0.1)


def test_a_diffusion_model_inside_the_package_is_a_line_in_the_registry(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "extend")
    monkeypatch.setitem(DIFFUSION, "tiny-sit", "my_dit:TinySiT")
    config = DiffusionConfig(kind="tiny-sit", options={"width": 16})
    model = build_backbone(config, sample_size=4, in_channels=2, num_classes=3)
    assert (type(model).__name__, model.config.width, model.null_class) == ("TinySiT", 16, 3)


def test_an_autoencoder_that_no_saved_pipeline_could_load_is_refused_at_once(monkeypatch, tmp_path):
    text = (EXAMPLES / PARTS["autoencoder.kind"][0]).read_text(encoding="utf-8")
    aliased = text.replace("import ModelMixin", "import ModelMixin as M").replace("ModelMixin,", "M,")
    (tmp_path / "ae_of_alias").with_suffix(".py").write_text(aliased)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES / "extend")
    check_models(load_config("smoke", ["autoencoder.kind=my_ae:MyAutoencoder"]), None)
    config = load_config("smoke", ["autoencoder.kind=ae_of_alias:MyAutoencoder"])
    with pytest.raises(UserError, match="ae_of_alias must import ModelMixin and have the class"):
        check_models(config, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return AbsoluteError(My", "return (My", "of autoencoder.training gave MyAutoencoder; expected an"),
        (
            "return ObjectiveOutput(loss=error, terms=",
            "return (error, ",
            "gave tuple without terms; expected an",
        ),
    ],
)
def test_what_an_objective_of_ones_own_lacks_is_named(monkeypatch, tmp_path, capsys, old, new, message):
    text = (EXAMPLES / PARTS["autoencoder.kind"][0]).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "ae_lacking").with_suffix(".py").write_text(text.replace(old, new))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ae_lacking", raising=False)
    words = ["run", "smoke", "autoencoder.kind=ae_lacking:MyAutoencoder", "--out", str(tmp_path / "run")]
    assert run_app(lambda: app(words)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_code_that_changed_since_a_training_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    file = (tmp_path / "ae_edited").with_suffix(".py")
    shutil.copy(EXAMPLES / PARTS["autoencoder.kind"][0], file)
    few = "autoencoder.options={width: 8, training: {steps: 2}}"
    config = load_config("smoke", ["autoencoder.kind=ae_edited:MyAutoencoder", few])
    run_stages(config, tmp_path / "run", "autoencoder")
    run_stages(config, tmp_path / "run", "autoencoder")
    told = "autoencoder.training was begun with other code of your class than there is now; "
    assert told not in " ".join(capsys.readouterr().err.split())
    file.write_text(file.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    run_stages(config, tmp_path / "run", "autoencoder")
    assert f"{told}what it made stays" in " ".join(capsys.readouterr().err.split())
    load_autoencoder(tmp_path / "run", allow_code=True)
    used = "has other code than when .*run was trained; its weights are used with this one"
    assert re.search(used, " ".join(capsys.readouterr().err.split()))
    more = few.replace("steps: 2", "steps: 3")
    longer = load_config("smoke", ["autoencoder.kind=ae_edited:MyAutoencoder", more])
    for _ in range(2):  # the first code is what is recorded
        run_stages(longer, tmp_path / "run", "autoencoder")
        assert told in " ".join(capsys.readouterr().err.split())
    run_stages(config, tmp_path / "run", "autoencoder", restart="autoencoder.training")
    assert told not in " ".join(capsys.readouterr().err.split())


def test_a_diffusion_model_that_no_saved_pipeline_could_load_is_refused_at_once(monkeypatch, tmp_path):
    text = (EXAMPLES / PARTS["diffusion.kind"][0]).read_text(encoding="utf-8")
    aliased = text.replace("import ModelMixin", "import ModelMixin as M").replace("(ModelMixin,", "(M,")
    local = f"{text}\n\nHidden = type('Elsewhere', (TinySiT,), {{}})\n"
    monkeypatch.syspath_prepend(tmp_path)
    for module, name, content in (("dit_of_alias", "TinySiT", aliased), ("dit_hidden", "Hidden", local)):
        (tmp_path / module).with_suffix(".py").write_text(content)
        with pytest.raises(UserError, match=f"{module} must import ModelMixin and have the class"):
            build_backbone(DiffusionConfig(kind=f"{module}:{name}"), 4, 2, num_classes=3)


@pytest.mark.usefixtures("blank")
def test_a_run_takes_parts_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES / "extend")
    run_folder = tmp_path / "run"
    own = [f"{setting}={Path(file).stem}:{name}" for setting, (file, name) in PARTS.items()]
    own += ["data.val=0.2", "diffusion.options={width: 32, depth: 1}"]
    own += ["autoencoder.options={width: 8, training: {steps: 2}}"]
    few = ["diffusion.training.steps=2"]
    less = ["sampling.per_class=1", "evaluation.samples=12", "evaluation.real_images=12"]
    arguments = ["smoke", *own, *few, *less, "--out", str(run_folder)]
    assert run_app(lambda: app(["run", *arguments])) == 0
    made = json.loads((run_folder / "samples" / "samples.json").read_text())
    assert made["solver"] == "my_solver:Midpoint"
    assert made["class_names"] == ["circles", "squares"]
    transformer = json.loads((run_folder / "pipeline" / "transformer" / "config.json").read_text())
    kept = [transformer[name] for name in ("_class_name", "width", "num_classes")]
    assert kept == ["TinySiT", 32, 2]
    capsys.readouterr()
    assert run_app(lambda: app(["run", *arguments, "diffusion.options.widht=3", "--dry-run"])) == 2
    assert "did you mean 'diffusion.options.width'" in " ".join(capsys.readouterr().err.split())
    assert run_app(lambda: app(["run", *arguments, "--dry-run"])) == 0
    assert "one process loads" in capsys.readouterr().out
    assert run_app(lambda: app(["sample", str(run_folder)])) == 2
    assert "names code to run, my_ae:MyAutoencoder, my_source:Pairs, my_dit:TinySiT" in " ".join(
        capsys.readouterr().err.split()
    )
    assert run_app(lambda: app(["sample", str(run_folder), "--allow-code", "--count", "1"])) == 0


@pytest.mark.usefixtures("blank")
def test_a_new_metric_is_measured_by_its_name(trained, monkeypatch):
    monkeypatch.chdir(trained.parent.parent)
    sys.path.insert(0, str(EXAMPLES / "extend"))
    result = CliRunner().invoke(app, ["evaluate", str(trained), "--only", "new_metric:EffectiveRank"])
    assert result.exit_code == 0, result.output
    entries = json.loads((trained / "results.json").read_text())["results"]
    (rank,) = [entry for entry in entries if entry["measurement"] == "effective-rank"]
    assert 1 < rank["value"] < 4
    assert rank["reference"] == {"channels": 4}
    assert {"reconstruction", "generation"} <= {entry["measurement"] for entry in entries}
    assert "Effective rank" in (trained / "report.html").read_text()
    assert "effective-rank" in result.output


def test_effective_rank_counts_directions():
    rank: Callable[[torch.Tensor], float] = load("extend/new_metric.py").effective_rank
    torch.manual_seed(0)
    assert rank(torch.randn(64, 8, 16, 16)) == pytest.approx(8, abs=0.05)
    assert rank(torch.randn(64, 1, 16, 16).expand(-1, 8, -1, -1)) == pytest.approx(1, abs=1e-3)
    assert math.isfinite(rank(torch.randn(4, 2, 2, 2)))


@pytest.mark.parametrize("path", EXTENSIONS, ids=lambda path: path.stem)
def test_extensions_are_under_75_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 75


# ---- all


def test_every_script_is_tested_here():
    assert set(re.findall(r'"([\w/]+\.py)"', Path(__file__).read_text(encoding="utf-8"))) == set(SCRIPTS)


@pytest.mark.parametrize("script", [name for name in SCRIPTS if not name.startswith("extend/")])
def test_every_script_tells_how_to_run_it(script):
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    assert f"python examples/{script}" in text.split('"""')[1]
    assert 'if __name__ == "__main__":\n    sys.exit(run_app(main))\n' in text  # mistakes without a traceback


def test_a_script_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "prepare_imagenet.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "archives" in done.stdout


def test_the_tour_runs_top_to_bottom(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    code = "\n".join(cell.source for cell in tour() if cell.cell_type == "code")
    code = code.replace("num_inference_steps=20", "num_inference_steps=2")  # fewer steps and images
    code = code.replace('"evaluation.images=32"', '"evaluation.images=8", "evaluation.epsilons=[0,0.3]"')
    assert "num_inference_steps=2," in code
    exec(code, {})
    printed = capsys.readouterr().out
    assert "photo latents (1, 16, 16, 16)" in printed
    assert "PSNR" in printed


def tour() -> list[Any]:
    return nbformat.read(EXAMPLES / "tour.ipynb", as_version=4).cells


def test_the_tour_that_the_site_shows_was_executed_in_order():
    code = [cell for cell in tour() if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    images = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(images) == 4


def test_an_autoencoder_of_ones_own_must_say_how_it_is_trained(monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES / "extend")
    assert run_app(lambda: app(["run", "smoke", "autoencoder.kind=my_ae:AbsoluteError", "--dry-run"])) == 2
    assert "must have a static method `trainings(config, image_size)`" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("a", "a"), ("my/training",), ()])
def test_trainings_of_ones_own_have_names_of_their_own(monkeypatch, names):
    monkeypatch.chdir(EXAMPLES / "extend")
    own = import_object("my_ae:MyAutoencoder")
    (training,) = own.trainings(own_settings(own, {}, "options", ("sample_size",)), 32)
    found = iter([dataclasses.replace(training, name=name) for name in names])
    monkeypatch.setattr(own, "trainings", staticmethod(lambda *_: found if names else training))
    with pytest.raises(UserError, match="each with a word of its own as name"):
        autoencoder_trainings(load_config("smoke", ["autoencoder.kind=my_ae:MyAutoencoder"]))
