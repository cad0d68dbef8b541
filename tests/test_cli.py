import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import typer
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from ldmae import AutoencoderVMAE, LightningDiTTransformer2DModel, __version__
from ldmae.cli import output
from ldmae.cli.main import app
from ldmae.cli.options import name_of, next_folder
from ldmae.cli.output import run_app
from ldmae.config import preset_names
from ldmae.core.errors import UserError

from .golden import GOLDEN, needs_golden

pytestmark = pytest.mark.usefixtures("blank", "small_features", "quick_timing")


@pytest.fixture
def quick_timing(monkeypatch):
    monkeypatch.setattr("ldmae.run.loading_rate._SECONDS", 0.2)


VERBS = [
    "run",
    "train autoencoder",
    "train diffusion",
    "finetune decoder",
    "encode",
    "sample",
    "evaluate",
    "evaluate-samples",
    "compare",
    "publish",
    "prepare emoji-sets",
    "prepare wallpapers",
    "report",
    "convert",
    "app",
]

TINY = """
data: {source: SOURCE, val: "0.3"}
image_size: 32
mixed_precision: "no"
autoencoder:
  model: {patch_size: 8, latent_channels: 4, encoder_hidden_size: 16, encoder_num_hidden_layers: 1,
    encoder_num_attention_heads: 2, decoder_hidden_size: 16, decoder_num_hidden_layers: 1,
    decoder_num_attention_heads: 2}
  pretraining:
    objective: {perceptual: st-lpips-alex, perceptual_weight: 0.1, perceptual_rows: 1}
    training: {steps: 22, batch_size: 4, log_every: 5, checkpoint: {every_steps: 10}, num_workers: 0}
  tuning:
    objective: {masking: {ratio: 0.0}, perceptual: st-lpips-alex, perceptual_weight: 0.1, perceptual_rows: 1}
    training: {steps: 2, batch_size: 4, num_workers: 0}
diffusion:
  model: {num_layers: 1, num_attention_heads: 2, attention_head_dim: 8}
  training: {steps: 3, batch_size: 4, num_workers: 0}
sampling: {per_class: 1, num_inference_steps: 2, guidance_scale: 2.0, timestep_shift: 0.3}
evaluation: {samples: 10, real_images: 10}
"""


def draw_images(folder: Path, count: int = 24) -> Path:
    """Draws discs and boxes of random colours, a subfolder each."""
    colours = np.random.default_rng(0).integers(0, 255, (2, count, 6))
    for k, (name, shape) in enumerate((("box", "rectangle"), ("disc", "ellipse"))):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            first, second = tuple(colours[k, i, :3]), tuple(colours[k, i, 3:])
            image = Image.new("RGB", (40, 36), tuple(int(c) for c in first))
            corner = 3 + i % 5
            box = (corner, corner, 20 + i % 9, 22 + i % 7)
            getattr(ImageDraw.Draw(image), shape)(box, fill=tuple(int(c) for c in second))
            image.save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="session")
def made(server, tmp_path_factory, images):
    """A whole tiny run, made by the command in a process of its own."""
    base = tmp_path_factory.mktemp("cli")
    (base / "tiny.yaml").write_text(TINY.replace("SOURCE", str(images)))
    process = server.run("run", "tiny.yaml", cwd=base, drawn=True)
    return SimpleNamespace(base=base, folder=base / "runs" / "tiny", yaml=base / "tiny.yaml", process=process)


@pytest.fixture
def ldmae(capfd, monkeypatch, tmp_path):
    """Runs a command in this process, in an empty folder; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object):
        AcceleratorState._reset_state(True)  # each command is a process of its own
        capfd.readouterr()
        code = run_app(lambda: app([str(argument) for argument in arguments]))
        printed = capfd.readouterr()
        AcceleratorState._reset_state(True)
        return SimpleNamespace(code=code, out=printed.out, err=" ".join(printed.err.split()))

    return call


def finished(folder: Path) -> dict[str, str]:
    stages = json.loads((folder / "stages.json").read_text())["stages"]
    return {stage["name"]: stage["finished"] for stage in stages if stage["name"] != "report"}


# ---- help, version, presets


def commands() -> list[tuple[str, object]]:
    group = typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():  # pyright: ignore
        inner = getattr(command, "commands", None)
        found += [(f"{name} {sub}", c) for sub, c in inner.items()] if inner else [(name, command)]
    return found


def test_every_planned_verb_is_there():
    assert sorted(name for name, _ in commands()) == sorted([*VERBS, "presets", "schema"])


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_argument_and_option_has_a_line_of_help(name, command, ldmae):
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name}"
    shown = ldmae(*name.split(), "--help")
    assert shown.code == 0
    assert command.help.splitlines()[0][:30] in shown.out
    assert f"{name} [OPTIONS]" in shown.out


def test_version(ldmae):
    assert ldmae("--version").out == f"ldmae {__version__}\n"


def test_presets_are_listed_a_line_each(ldmae):
    lines = ldmae("presets").out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


# ---- a whole run


def test_run_makes_everything_and_says_where(made):
    for made_file in ("config.yaml", "results.json", "report.html", "samples/grid.png", "metrics.jsonl"):
        assert (made.folder / made_file).is_file()
    assert made.process.stdout.splitlines() == [
        "samples: runs/tiny/samples/grid.png",
        "report:  runs/tiny/report.html",
    ]


def test_run_begins_with_its_stages_and_estimates_its_time(made):
    assert (
        "autoencoder.pretraining (22 steps) → autoencoder.tuning (2 steps) → latents" in made.process.stderr
    )
    told = re.findall(
        r"about .+ for the whole run \(pre-training .+, tuning .+, encoding .+, diffusion .+, sampling .+, "
        r"evaluation .+\)",
        made.process.stderr,
    )
    assert len(told) == 1


def test_finished_run_is_not_redone(made, ldmae):
    before = finished(made.folder)
    again = ldmae("run", made.yaml, "--out", made.folder)
    assert again.code == 0
    assert finished(made.folder) == before
    assert "22 of 22 steps" in again.err


def test_estimate_of_a_longer_run_counts_only_what_is_left(made, ldmae, tmp_path):
    shutil.copytree(made.folder, tmp_path / "longer")
    (tmp_path / "longer" / "stages.json").write_text(
        json.dumps(
            {"schema": 2, "stages": json.loads((made.folder / "stages.json").read_text())["stages"][:3]}
        )
    )
    shutil.rmtree(tmp_path / "longer" / "diffusion")
    again = ldmae("run", made.yaml, "--out", tmp_path / "longer", "diffusion.training.steps=30")
    assert again.code == 0
    assert re.search(r"about .+ for the rest of the run \(diffusion ", again.err)
    assert "pre-training" not in again.err.partition("rest of the run")[2]


def test_dry_run_prints_the_plan_and_makes_nothing(made, ldmae):
    shown = ldmae("run", made.yaml, "--dry-run")
    assert shown.code == 0
    assert "# autoencoder.pretraining:" in shown.out
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([], {"autoencoder.tuning": "done", "latents": "done", "diffusion": "done"}),
        (["diffusion.training.steps=9000"], {"latents": "done", "diffusion": "resumed at step 3 of 9,000"}),
        (
            ["autoencoder.tuning.training.optimizer.learning_rate=0.5"],
            {"autoencoder.tuning": "refused without --restart autoencoder.tuning (training.optimizer."},
        ),
        (["latents.flip=false"], {"latents": "made again (flip: True -> False)", "diffusion": "refused"}),
        (
            ["latents.flip=false", "--restart", "latents"],
            {"autoencoder.tuning": "done", "latents": "to be made", "diffusion": "made again (latents: "},
        ),
    ],
)
def test_dry_run_says_what_becomes_of_each_stage_of_a_folder(made, ldmae, changes, told):
    before = finished(made.folder)
    shown = ldmae("run", made.yaml, "--dry-run", "--out", made.folder, *changes)
    lines = dict(re.findall(r"^# ([a-z.]+): ([a-z].*)$", shown.out, re.MULTILINE))
    assert {name: lines[name][: len(text)] for name, text in told.items()} == told
    assert "# images are not looked at here" in shown.out
    assert finished(made.folder) == before


@pytest.mark.parametrize(
    ("verb", "told"),
    [("autoencoder", "autoencoder: {}/autoencoder"), ("diffusion", "diffusion model: {}/diffusion")],
)
def test_train_verbs_leave_what_is_done(made, ldmae, verb, told):
    before = finished(made.folder)
    trained = ldmae("train", verb, made.yaml, "--out", made.folder)
    assert (trained.code, trained.out.strip()) == (0, told.format(made.folder))
    assert finished(made.folder) == before


@pytest.fixture
def one_thread():
    """Computes with one thread, as `made` was: with another number sums come out other in their last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_run_made_verb_by_verb_equals_the_whole(made, ldmae, tmp_path):
    folder = tmp_path / "parts"
    for command in (
        ("train", "autoencoder", made.yaml, "--out", folder),
        ("encode", folder),
        ("train", "diffusion", made.yaml, "--out", folder),
        ("sample", folder),
        ("evaluate", folder, "--only", "generation"),
        ("report", folder),
    ):
        done = ldmae(*command)
        assert done.code == 0, done.err
    for part in ("autoencoder", "diffusion"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(folder / name), load_file(made.folder / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (folder / "samples" / "grid.png").read_bytes() == (
        made.folder / "samples" / "grid.png"
    ).read_bytes()
    assert (folder / "report.html").is_file()


# ---- encode


def test_encode_writes_lightningdit_shards_of_all_images(made, images, ldmae, tmp_path):
    bf16 = "mixed_precision=bf16"  # is for training: what is kept is not rounded
    encoded = ldmae("encode", made.folder, f"data={images}", bf16, "--out", tmp_path / "latents")
    assert (encoded.code, encoded.out.strip()) == (0, f"latents of 48 images: {tmp_path / 'latents'}")
    (shard,) = (tmp_path / "latents").glob("*.safetensors")
    assert shard.name == "latents_rank00_shard000.safetensors"
    tensors = load_file(shard)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "latents": (48, 8, 4, 4),
        "latents_flip": (48, 8, 4, 4),
        "labels": (48,),
    }
    assert (tensors["latents"] != tensors["latents"].bfloat16()).float().mean() > 0.9
    stats = torch.load(tmp_path / "latents" / "latents_stats.pt", weights_only=True)
    assert stats["mean"].shape == stats["std"].shape == (1, 4, 1, 1)


def test_encode_keeps_whole_shards_and_refuses_a_folder_of_other_latents(made, tmp_path, ldmae):
    images, out = draw_images(tmp_path / "few", count=3), tmp_path / "latents"
    command = ("encode", made.folder / "autoencoder", f"data={images}", "latents.shard_size=4", "--out", out)
    assert ldmae(*command).code == 0
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert len(first) == 2
    assert ldmae(*command).code == 0
    made_of = out / "made_of.json"
    made_of.write_text(json.dumps({**json.loads(made_of.read_text()), "processes": 3}))
    assert ldmae(*command, "latents.statistics_samples=2").code == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == first

    lost = next(iter(out.glob("*.safetensors")))
    lost.unlink()
    again = ldmae(*command)
    assert again.code == 0
    assert "encoding all again: processes: 3 -> 1" in again.err
    assert lost.exists()

    for other in ("latents.flip=false", "image_size=40", None):
        if other is None:
            (images / "box" / "00.png").unlink()
        refused = ldmae(*command, *filter(None, [other]))
        assert refused.code == 2
        assert "holds latents of something else: " in refused.err
    assert sum(len(load_file(path)["labels"]) for path in out.glob("*.safetensors")) == 6


# ---- sample


def test_sample_makes_the_images_asked_for(made, ldmae):
    sampled = ldmae("sample", made.folder, "--class", "disc", "--count", 3, "--steps", 2, "--seed", 5)
    folder = made.folder / "samples-1"
    assert (sampled.code, sampled.out.strip()) == (0, f"samples: {folder / 'grid.png'}")
    pictures = sorted((folder / "images").iterdir())
    assert [path.name for path in pictures] == [f"000{i}_disc.png" for i in range(3)]
    record = json.loads((folder / "samples.json").read_text())
    assert (record["seed"], record["num_inference_steps"], record["guidance_scale"]) == (5, 2, 2.0)

    ldmae("sample", made.folder, "--class", 1, "--count", 3, "--steps", 2, "--seed", 5)
    again = sorted((made.folder / "samples-2" / "images").iterdir())
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in pictures]


def test_two_commands_at_the_same_time_sample_into_two_folders(tmp_path):
    with next_folder(tmp_path) as one, next_folder(tmp_path) as other:
        (other / "grid.png").touch()
        assert (one.name, other.name) == ("samples-1", "samples-2")
    assert [path.name for path in tmp_path.iterdir()] == ["samples-2"]  # what stayed empty is gone


@pytest.mark.parametrize("verb", [["sample"], ["evaluate"], ["evaluate-samples"], ["run", "--out"]])
def test_a_name_that_no_system_takes_is_told_in_a_line(ldmae, verb):
    refused = ldmae(*verb[:1], *(["smoke"] if len(verb) > 1 else []), *verb[1:], "x" * 300, "data=photos")
    assert refused.code == 2
    assert "Traceback" not in refused.err


def test_sample_from_a_pipeline_folder_keeps_its_time_shift(made, ldmae):
    sampled = ldmae("sample", made.folder / "pipeline", "--count", 1, "--steps", 1, "--solver", "heun")
    assert (sampled.code, sampled.out.strip()) == (0, "samples: samples/grid.png")
    record = json.loads(Path("samples/samples.json").read_text())
    assert record["timestep_shift"] == pytest.approx(0.3)
    assert record["labels"] == [0, 1]


# ---- evaluate


def test_evaluate_of_a_run_prints_its_figures(made, ldmae):
    before = finished(made.folder)
    shown = ldmae("evaluate", made.folder)
    assert shown.code == 0
    assert finished(made.folder) == before
    assert re.search(r"^KID-efficientnet_lite0 +\S+ +↓ +10 generated, 10 real", shown.out, re.M)
    assert re.search(r"^PSNR +\S+ +dB +↑ +\d+ images$", shown.out, re.M)


def test_evaluate_of_a_run_with_other_settings_keeps_to_its_own_images(made, ldmae, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "run")
    shown = ldmae("evaluate", folder, "evaluation.images=3", "--only", "reconstruction")
    assert shown.code == 0, shown.err
    assert re.search(r"^PSNR +\S+ +dB +↑ +3 images$", shown.out, re.M)
    assert "PSNR" in (folder / "report.html").read_text()


def test_evaluate_of_a_run_on_other_images_says_what_it_was_trained_on(made, images, ldmae):
    shown = ldmae("evaluate", made.folder, f"data={images}", "evaluation.epsilons=[0,0.1]")
    assert shown.code == 0
    assert re.search(
        r"^ST-LPIPS-alex .*48 images +the autoencoder was trained on this metric$", shown.out, re.M
    )
    results = json.loads(Path("results/tiny/results.json").read_text())["results"]
    assert {entry["measurement"] for entry in results} == {
        "reconstruction", "smoothness", "interpolation", "ifid", "compression", "probe", "components",
        "efficiency",
    }  # fmt: skip


def test_evaluate_takes_an_autoencoder_of_diffusers(images, ldmae):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2).save_pretrained("kl")
    alone = ("evaluation.images=10", "--only", "reconstruction", "--out", "figures")
    shown = ldmae("evaluate", "kl", f"data={images}", "image_size=32", *alone)
    assert shown.code == 0, shown.err
    assert [line.split()[0] for line in shown.out.splitlines()] == [
        "L1", "PSNR", "SSIM", "ST-LPIPS-alex", "rKID-efficientnet_lite0", "results:", "report:",
    ]  # fmt: skip
    assert json.loads(Path("figures/measured.json").read_text())["settings"]["autoencoder"] == "kl"
    assert "PSNR" in Path("figures/report.html").read_text()


# ---- report, convert


def test_report_is_written_anew(made, ldmae):
    (made.folder / "report.html").unlink()
    assert ldmae("report", made.folder).code == 0
    assert (made.folder / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("part", "suffix", "model"),
    [
        ("autoencoder", ".pth", AutoencoderVMAE),
        ("diffusion", ".pt", LightningDiTTransformer2DModel),
    ],
)
def test_convert_to_official_and_back_keeps_every_weight(made, ldmae, part, suffix, model):
    official = Path(f"official{suffix}")
    done = ldmae("convert", made.folder / part, official, "--to-official")
    assert done.code == 0
    assert ("RUN/pipeline/vae has them" in " ".join(done.err.split())) == (part == "autoencoder")
    back = ldmae("convert", official, "back")
    assert back.code == 0, back.err
    assert back.out.startswith(model.__name__)
    ours, theirs = (model.from_pretrained(path).state_dict() for path in ("back", made.folder / part))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    configs = [json.loads(Path(path, "config.json").read_text()) for path in ("back", made.folder / part)]
    for config in configs:
        del config["_diffusers_version"]
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]


@needs_golden
@pytest.mark.parametrize(
    ("file", "model", "options"),
    [
        ("vmae_tiny.pth", AutoencoderVMAE, ("--encoder-heads", 4, "--decoder-heads", 4)),
        ("lightningdit_tiny.pt", LightningDiTTransformer2DModel, ("--num-classes", 10)),
    ],
)
def test_convert_finds_the_kind_of_official_files(ldmae, file, model, options):
    converted = ldmae("convert", GOLDEN / file, "out", *options)
    assert converted.code == 0, converted.err
    model.from_pretrained("out")


# ---- mistakes


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("run smok", "did you mean 'smoke'?"),
        ("run smoke diffusion.training.step=3", "did you mean 'diffusion.training.steps'?"),
        ("run smoke diffusion.training.steps=many", "diffusion.training.steps"),
        ("run smoke nonsense", "an override is key=value"),
        ("run smoke --restart latent", "did you mean 'latents'?"),
        ("run quick", "give data=PATH"),
        ("run quick data=nowhere", "there is no folder or file nowhere, seen from /"),
        ("train diffusion RUN/nothing.yaml", "no preset or YAML file"),
        ("encode RUN --out x", "--out cannot be used here"),
        ("encode RUN data=IMAGES", "--out is missing"),
        ("encode RUN/autoencoder --out x", "give data=PATH"),
        ("encode nowhere data=IMAGES --out x", "there is no nowhere"),
        ("encode RUN/autoencoder data=IMAGES image_size=30 --out x", "multiples of 8, got 30x30"),
        ("sample RUN --class dics", "did you mean 'disc'?"),
        ("sample RUN --steps 0", "num_inference_steps must be at least 1"),
        ("sample RUN --out RUN", "holds other files"),
        ("sample RUN --out RUN/config.yaml", "holds other files, or is one"),
        ("sample nowhere", "nowhere"),
        ("evaluate nowhere data=IMAGES", "there is no nowhere"),
        ("evaluate RUN/diffusion data=IMAGES", "LightningDiTTransformer2DModel"),
        ("report nowhere", "is not a run folder"),
        ("convert nowhere x", "no checkpoint at nowhere"),
        ("convert RUN/autoencoder RUN/config.yaml --to-official", "exists"),
        ("convert RUN x.pth --to-official", "name one of its models"),
        ("convert RUN/autoencoder x.safetensors --to-official", "does not end in .pth or .pt"),
        ("sample RUN --device nonsense", "nonsense"),
        ("compare compare-photos --dry-run --only vmea", "did you mean 'vmae'"),
        ("compare compare-photos --dry-run --restart latent", "did you mean 'latents'"),
        ("convert RUN/autoencoder x.pth --to-official --heads 3", "--heads cannot be used here"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(made, images, ldmae, command, told):
    words = command.replace("RUN", str(made.folder)).replace("IMAGES", str(images)).split()
    failed = ldmae(*words)
    assert failed.code == 2
    assert failed.err.count("error:") == 1
    assert told in failed.err
    assert "Traceback" not in failed.err


def test_convert_does_not_replace_a_folder(made, ldmae):
    Path("mine").mkdir()
    Path("mine/precious.txt").write_text("mine")
    ldmae("convert", made.folder / "autoencoder", "file.pth", "--to-official")
    assert ldmae("convert", "file.pth", "mine").code == 2
    assert Path("mine/precious.txt").read_text() == "mine"


@pytest.mark.parametrize("command", ["sample", "sample x --foo", "nosuchverb", "run smoke --restart"])
def test_wrong_usage_exits_with_2(ldmae, command):
    failed = ldmae(*command.split())
    assert failed.code == 2
    assert "Traceback" not in failed.err


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback(tmp_path):
    failed = subprocess.run(
        [sys.executable, "-m", "ldmae", "run", "smok"], cwd=tmp_path, capture_output=True, text=True
    )
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: no preset or YAML file 'smok'")
    assert "Traceback" not in failed.stderr


def test_interrupt_exits_with_130(server, made, tmp_path):
    endless = "autoencoder.pretraining.training.steps=100000"
    started = server.start("run", made.yaml, endless, cwd=tmp_path)
    while not (tmp_path / "runs/tiny/metrics.jsonl").exists():
        assert started.poll() is None, started.output
        time.sleep(0.05)
    os.kill(started.process, signal.SIGINT)
    assert started.wait(60) == 130  # which ends one that did not hear it
    assert started.stderr.splitlines()[-1].startswith(
        "interrupted; what was saved is kept, and a command that"
    )
    assert "Traceback" not in started.output


@pytest.mark.parametrize("words", [["run", "--help"], ["schema"]])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_knows_few_characters_is_written_to(words, encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert run_app(lambda: app(words)) == 0
    if words == ["schema"]:
        assert json.loads(cast(io.BytesIO, terminal.buffer).getvalue())["properties"]


def test_links_in_a_circle_have_a_name(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert name_of(str(tmp_path / "a")) in ("a", "b")


def test_a_program_s_own_word_of_refusal_is_printed(capfd):
    assert run_app(lambda: sys.exit("no images")) == 2
    assert "no images" in capfd.readouterr().err


def test_a_part_of_ones_own_that_ends_the_program_is_no_success(capfd):
    assert run_app(lambda: sys.exit(0)) == 2
    assert "test_cli.py ended the program; take sys.exit() out of it" in capfd.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_app(lambda: 1 / 0)


def test_a_file_in_a_folders_place_is_named(tmp_path, capfd):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        assert run_app((tmp_path / place).mkdir) == 2
        assert f"{tmp_path / place} is no folder, or is below a file; name an" in capfd.readouterr().err


def test_only_the_main_process_prints(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    output.say("something was made")
    assert capfd.readouterr().out == ""


def test_a_mistake_that_another_process_alone_meets_is_told_in_the_end(monkeypatch, capfd):
    def fail() -> None:
        raise UserError("the disk is full")

    waits: list[float] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(output.time, "sleep", waits.append)
    assert run_app(fail) == 2
    assert waits == [5]
    assert capfd.readouterr().err == "process 1: error: the disk is full\n"
