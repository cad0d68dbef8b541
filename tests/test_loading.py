"""Opens what a user names: a run folder, a diffusers folder or Hub name, an official checkpoint."""

import functools
import json
import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import typer
import yaml
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ldmae import AutoencoderVMAE, LDMAEPipeline
from ldmae.cli.main import app
from ldmae.cli.options import run_config
from ldmae.conversion.vmae import to_official_vmae
from ldmae.core.autoencoding import reconstruct
from ldmae.core.errors import UserError
from ldmae.core.provenance import Record, Records
from ldmae.loading import is_run_folder, load_autoencoder, load_pipeline
from ldmae.run.external import open_autoencoder

from .tiny import tiny_pipeline, tiny_vmae, vmae_sizes

WEIGHTS = "diffusion_pytorch_model.safetensors"


vae = functools.partial(tiny_vmae, **vmae_sizes(12, heads=12))  # the official number of heads


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every form of source, by name."""
    root = tmp_path_factory.mktemp("sources")
    vae().save_pretrained(root / "vmae")
    tiny_pipeline(vae()).save_pretrained(root / "pipeline")
    shutil.copytree(root / "vmae", root / "run" / "autoencoder")
    for run in ("run", "theirs"):  # theirs: of a run that took its autoencoder from elsewhere
        shutil.copytree(root / "pipeline", root / run / "pipeline")
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(root / "kl")
    for name in ("run", "begun", "theirs"):
        (root / name).mkdir(exist_ok=True)
        (root / name / "config.yaml").write_text("seed: 0\n")
    torch.save({"model": to_official_vmae(vae())}, root / "official.pth")
    (root / "empty").mkdir()
    return root


# ---- autoencoders


@pytest.mark.parametrize("source", ["vmae", "run", "theirs", "pipeline", "kl"])
def test_a_folder_of_any_form_gives_its_autoencoder_ready_for_use(saved, source):
    model = load_autoencoder(saved / source)
    assert type(model) is (AutoencoderKL if source == "kl" else AutoencoderVMAE)
    assert not model.training
    if source != "kl":
        for name, weight in vae().state_dict().items():
            assert torch.equal(model.state_dict()[name], weight)


def test_a_run_whose_settings_are_damaged_is_named(saved, tmp_path):
    run = shutil.copytree(saved / "run", tmp_path / "run")
    (run / "config.yaml").write_text("autoencoder: [unclosed\n")
    for load in (load_autoencoder, load_pipeline):
        with pytest.raises(UserError, match=r"config\.yaml can't be read: .*; put back the run's own"):
            load(str(run))


def test_an_official_checkpoint_gives_the_same_weights(saved):
    model = load_autoencoder(f"official:{saved / 'official.pth'}")
    assert not model.training
    assert torch.equal(model.to_latent.weight, vae().to_latent.weight)


def test_a_relative_name_of_two_parts_that_is_a_folder_here_is_no_hub_name(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert isinstance(load_autoencoder(f"{saved.name}/vmae"), AutoencoderVMAE)


def test_weights_are_in_fp32_whatever_the_file_holds(tmp_path):
    vae().half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_autoencoder(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}])
def test_weights_of_one_variant_alone_are_loaded(shards, tmp_path):
    model = vae().half()
    model.save_pretrained(tmp_path / "alone", variant="fp16", **shards)
    loaded = load_autoencoder(str(tmp_path / "alone")).state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in model.state_dict().items())
    pipeline = tiny_pipeline(vae())
    pipeline.save_pretrained(tmp_path / "pipeline", variant="fp16", **shards)
    for part in ("vae", "transformer"):  # and where the other part has plain weights
        mixed = tmp_path / part
        pipeline.save_pretrained(mixed)
        shutil.rmtree(mixed / part)
        shutil.copytree(tmp_path / "pipeline" / part, mixed / part)
        load_pipeline(str(mixed))
    loaded = load_pipeline(str(tmp_path / "pipeline")).transformer.state_dict()
    assert all(torch.equal(loaded[k], value) for k, value in pipeline.transformer.state_dict().items())
    other = vae()
    torch.nn.init.ones_(other.to_latent.weight)
    other.save_pretrained(tmp_path / "alone")  # beside the variant: this one counts
    assert load_autoencoder(str(tmp_path / "alone")).to_latent.weight.eq(1).all()


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


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "emoji").mkdir(parents=True)
    for load in (load_autoencoder, load_pipeline, lambda source: open_autoencoder(source, [], False)):
        with pytest.raises(UserError, match=r"runs/emojii in the folder runs here; did you mean 'emoji'"):
            load("runs/emojii")
    for source in ("official:x.pt", "own.module:Name"):
        with pytest.raises(UserError, match=f"there is no {source}; expected a run folder"):
            load_pipeline(source)


@pytest.mark.parametrize("source", ["name", "./a/b", "/a/b", "a/b/c", "", "a//b"])
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
            r"holds UNet2DModel, which is no autoencoder that diffusers \d.* knows",
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


def test_position_tables_that_are_missing_are_named(saved, tmp_path):
    folder = damaged(saved, tmp_path / "x")
    tensors = load_file(Path(folder, WEIGHTS))
    del tensors["decoder_pos_embed"]
    save_file(tensors, Path(folder, WEIGHTS), metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"AutoencoderVMAE in .* lacks decoder_pos_embed; download it again"):
        load_autoencoder(folder)


def test_a_hub_name_that_cannot_be_had_is_named(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = "nobody/nothing is neither a folder here nor an autoencoder on the Hub"
    with pytest.raises(UserError, match=told):
        load_autoencoder("nobody/nothing")
    with pytest.raises(UserError, match="cannot load the pipeline nobody/nothing"):
        load_pipeline("nobody/nothing")


def test_an_rae_without_transformers_says_what_to_install(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("diffusers.AutoencoderRAE", AutoencoderKL, raising=False)
    source = damaged(saved, tmp_path / "x", '{"_class_name": "AutoencoderRAE"}')
    with pytest.raises(UserError, match=r"AutoencoderRAE in .* the package transformers; type: pip install"):
        load_autoencoder(source)


# ---- a user's own

OWN = """
import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Half(nn.Module):
    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), scale, dtype=torch.float16))

    def encode(self, x):
        return x / self.scale

    def decode(self, z):
        return z * self.scale

    class Nested:
        @staticmethod
        def build():
            return Half(3.0)


class NeedsArguments(Half):
    def __init__(self, path):
        raise AssertionError


class Encoder(nn.Module):
    def encode(self, x):
        return x


class Plain:
    encode = decode = None


class Methods:
    def encode(self, x):
        return x

    decode = encode


def broken():
    raise FileNotFoundError("weights.pt")


built = Half(4.0)
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A current directory with a user's module in it; returns how to name things there."""
    package = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "models.py").write_text(OWN)
    (tmp_path / package / "lacks.py").write_text("import nothing_of_that_name")
    (tmp_path / package / "wrong.py").write_text("x = (")
    (tmp_path / package / "script.py").write_text("import sys; sys.exit('usage: script.py FILE')")
    monkeypatch.chdir(tmp_path)
    # as of the command line's script: the current directory is not there, and what is added goes again
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return package


@pytest.mark.parametrize(("name", "scale"), [("Half", 2.0), ("Half.Nested.build", 3.0), ("built", 4.0)])
def test_a_class_function_or_module_of_the_users_own_is_loaded_in_fp32_for_use(own, name, scale):
    model = load_autoencoder(f"{own}.models:{name}")
    assert type(model).__name__ == "Half"
    assert not model.training
    assert model.scale.dtype == torch.float32
    assert model.scale.item() == scale
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(reconstruct(model, images), images)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none_such:Half", r"there is no module none_such in .* or among the installed packages; expected p"),
        ("OWN.none:Half", r"there is no module own_\w+\.none in "),
        (
            "OWN.lacks:Half",
            r"importing \w+\.lacks failed \(ModuleNotFoundError: No module named 'nothing_of_",
        ),
        (
            "OWN.wrong:Half",
            r"importing \w+\.wrong failed \(SyntaxError: .*python -c \"import own_\w+\.wrong\"",
        ),
        ("OWN.script:Half", r"importing \w+\.script failed \(SystemExit: usage"),
        ("OWN.models:Hafl", r"the module \w+\.models \(.*models\.py\) has no Hafl; did you mean 'Half'\?"),
        ("OWN.models:number", "is of type int; expected a class, or a function that builds the autoencoder"),
        (
            "OWN.models:NeedsArguments",
            r"calling NeedsArguments\(\) of .*missing 1 req.*without arguments: na",
        ),
        ("OWN.models:broken", r"calling broken\(\) of .* failed \(FileNotFoundError: weights\.pt\)"),
        ("OWN.models:Encoder", "gave Encoder, without decode; expected a torch.nn.Module with encode"),
        ("OWN.models:Plain", "gave Plain, without encode and decode"),
        ("OWN.models:Methods", r"gave Methods, which is not a torch\.nn\.Module; expected"),
        ("OWN.models:", "there is no .*; expected a run folder, .*package.module:Name"),
        ("pretrained:emojis", "ldmae has no pretrained model 'emojis'; did you mean 'emoji'"),
        ("OWN/models.py:Half", "there is no .*; expected a run folder, .*package.module:Name"),
    ],
)
def test_what_is_wrong_with_an_import_path_is_said(own, source, message):
    with pytest.raises(UserError, match=message):
        load_autoencoder(source.replace("OWN", own))


def test_the_current_directory_is_importable_as_by_python_m_and_is_added_once(own):
    for _ in range(2):
        load_autoencoder(f"{own}.models:Half")
    assert sys.path.count(str(Path.cwd())) == 1
    assert sys.path[0] == str(Path.cwd())


# ---- code that a folder names

TRAP = "from pathlib import Path\nPath('was_run').touch()\nimport torch\nclass Thing(torch.nn.Module): {}\n"
METHODS = "encode = decode = lambda self, x: x"


@pytest.fixture
def trap(saved, tmp_path, monkeypatch):
    """A current directory with a module that leaves a trace, and a run folder that names it; its name."""
    name = f"trap_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(TRAP.format(METHODS))
    shutil.copytree(saved / "run", tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(f'autoencoder: {{source: "{name}:Thing"}}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return name


@pytest.mark.parametrize("load", [load_autoencoder, load_pipeline])
def test_a_run_folder_that_names_code_is_refused_and_runs_none(trap, load):
    with pytest.raises(UserError, match=rf"config\.yaml names code to run, {trap}:Thing, .*add --allow-code"):
        load("run")
    assert not Path("was_run").exists()


def test_a_run_folder_that_names_code_is_loaded_where_that_is_allowed(trap):
    assert type(load_autoencoder("run", allow_code=True)).__name__ == "Thing"
    assert type(load_pipeline("run", allow_code=True).vae.module).__name__ == "Thing"
    assert Path("was_run").exists()


@pytest.mark.parametrize("base", [False, True])
def test_settings_of_a_run_folder_that_name_code_are_refused(trap, base):
    if base:  # by way of a second file
        Path("run/config.yaml").rename("run/other.yaml")
        Path("run/config.yaml").write_text("base: other.yaml\n")
    with pytest.raises(UserError, match=f"names code to run, {trap}:Thing"):
        run_config(Path("run"))
    assert run_config(Path("run"), None, allow_code=True).autoencoder.source == f"{trap}:Thing"


@pytest.mark.parametrize(
    "command",
    [
        ["encode", "run"],
        ["encode", "run", "data=photos", "--out", "latents"],
        ["sample", "run"],
        ["sample", "run", "--count", "1"],
        ["evaluate", "run"],
        ["evaluate", "run", "data=photos"],
        ["evaluate-samples", "run", "data=photos"],
    ],
)
def test_no_verb_runs_code_that_a_folder_names(trap, command):
    with pytest.raises(UserError, match=f"names code to run, {trap}:Thing"):
        typer.main.get_command(app).main(command, standalone_mode=False)
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    "group", ["autoencoder: {kind", "diffusion: {kind", "sampling: {solver", "data: {source"]
)
@pytest.mark.parametrize("command", [["encode"], ["sample"], ["sample", "--count=1"], ["evaluate"]])
def test_no_component_that_a_run_folder_names_is_imported(trap, group, command):
    Path("run/config.yaml").write_text(f'{group}: "{trap}:Thing"}}\n')
    needless = "source" in group and "--count=1" in command  # other samples of its pipeline need no images
    with nullcontext() if needless else pytest.raises(UserError, match=f"names code to run, {trap}:Thing"):
        typer.main.get_command(app).main([command[0], "run", *command[1:]], standalone_mode=False)
    assert not Path("was_run").exists()


@pytest.mark.parametrize("name", ["vae", "transformer", "scheduler", "_class_name"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_pipeline_folder_whose_parts_are_foreign_code_is_refused(saved, trap, name, beside):
    folder = Path(shutil.copytree(saved / "pipeline", "pipeline"))
    index = json.loads((folder / "model_index.json").read_text())
    index[name] = [trap, "Thing"]
    (folder / "model_index.json").write_text(json.dumps(index))
    if beside:
        for place in (folder, folder / name):
            place.mkdir(exist_ok=True)
            shutil.copy(f"{trap}.py", place)
        Path(f"{trap}.py").unlink()
    with pytest.raises(
        UserError, match=rf"model_index\.json of pipeline names code to run \('{name}: {trap}'\)"
    ):
        load_pipeline("pipeline")
    assert not Path("was_run").exists()


# ---- pipelines


@pytest.mark.parametrize("source", ["run", "pipeline"])
def test_a_run_folder_and_a_saved_folder_give_the_pipeline(saved, source):
    pipeline = load_pipeline(str(saved / source))
    assert isinstance(pipeline, LDMAEPipeline)
    assert isinstance(pipeline.vae, AutoencoderVMAE)
    assert is_run_folder(str(saved / source)) == (source == "run")


def test_a_saved_model_beside_a_config_yaml_of_somebody_s_own_is_no_run(saved, tmp_path):
    shutil.copytree(saved / "vmae", tmp_path / "vmae")
    (tmp_path / "vmae" / "config.yaml").touch()
    assert isinstance(load_autoencoder(f"{tmp_path}/vmae"), AutoencoderVMAE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", r"empty holds no pipeline \(no model_index\.json\)"),
        ("vmae", r"vmae holds no pipeline"),
        ("begun", r"there is no pipeline .*begun/pipeline; make it with `ldmae run`"),
        ("missing", "there is no .*missing; expected"),
    ],
)
def test_a_source_without_a_pipeline_says_what_was_expected(saved, source, message):
    with pytest.raises(
        UserError, match=f"{message}.*a run folder, the folder or Hub name .*, or pretrained:NAME"
    ):
        load_pipeline(str(saved / source))


def test_a_pipeline_of_parts_that_were_trained_again_is_not_used_as_if_it_were_of_them(saved, tmp_path):
    shutil.copytree(saved / "run", tmp_path / "run")
    records = Records(tmp_path / "run")
    records.stages = {
        "diffusion": Record(outputs={"diffusion": "old"}, status="done"),
        "pipeline": Record(inputs={"diffusion": "old", "latents": "put here by hand"}, status="done"),
    }
    records.write()
    assert load_pipeline(f"{tmp_path}/run") is not None
    records.stages["diffusion"].outputs = {"diffusion": "new"}
    records.write()
    with pytest.raises(UserError, match=r"older than its diffusion; join them again with `ldmae sample "):
        load_pipeline(f"{tmp_path}/run")


def test_a_run_that_takes_an_autoencoder_is_that_one_whatever_it_once_trained(saved, tmp_path):
    run = Path(shutil.copytree(saved / "run", tmp_path / "run"))
    records = Records(run)
    records.stages = {
        "autoencoder.tuning": Record(outputs={"autoencoder": "old"}, status="done"),
        "pipeline": Record(inputs={"autoencoder": "taken"}, status="done"),
    }
    records.write()
    (run / "autoencoder").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="older than its autoencoder"):
        load_pipeline(str(run))
    settings = yaml.safe_load((run / "config.yaml").read_text()) or {}
    settings["autoencoder"] = {**settings.get("autoencoder", {}), "source": "elsewhere"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    ours, theirs = load_autoencoder(str(run)).state_dict(), load_pipeline(str(run)).vae.state_dict()
    assert all(weight.equal(theirs[name]) for name, weight in ours.items())


def test_a_pipeline_of_another_kind_is_named(tmp_path):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(4,), norm_num_groups=2, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot load the pipeline .*Expected a run folder"):
        load_pipeline(str(tmp_path))
    with pytest.raises(UserError, match="holds no diffusers autoencoder"):
        load_autoencoder(str(tmp_path))


def test_a_pipeline_whose_scheduler_is_not_of_flow_matching_is_named(saved, tmp_path):
    pipeline = load_pipeline(str(saved / "pipeline"))
    pipeline.register_modules(scheduler=DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="DDPMScheduler, which it cannot sample with"):
        load_pipeline(str(tmp_path / "other"))
