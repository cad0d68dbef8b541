"""The README and the pages of docs/ are true: their commands are commands, the README's program runs."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import typer
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy

from ldmae.cli.main import app
from ldmae.config import load_config, preset_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def shell_lines(text: str) -> list[str]:
    """Returns what a page tells to type: in bash blocks, indented, or between backticks; no comments."""
    joined = re.sub(r" \\\n\s*", " ", text)
    blocks = re.findall(r"^( *)```bash\n(.*?)\n\1```", joined, re.M | re.S)
    typed = [line.strip() for _, block in blocks for line in block.splitlines() if line.strip()]
    indented = re.findall(r"^    ((?:\.venv/bin/)?(?:ldmae|accelerate|make) [^`\n]+)", joined, re.M)
    inline = re.findall(r"`((?:ldmae|make|accelerate launch|python examples/\S+) ?[^`\n]*)`", joined)
    lines = [re.split(r"\s#", line)[0].strip() for line in (*typed, *indented, *inline)]
    return [line for line in lines if "[" not in line.replace("'.[", "")]  # a pattern is no command


FOUND = sorted({(page, line) for page in PAGES for line in shell_lines(page.read_text(encoding="utf-8"))})
WORDS = [
    (page, [word for word in shlex.split(line) if "ACCELERATE_USE_CPU" not in word]) for page, line in FOUND
]


def started_by(*programs: str) -> list:
    """Returns the commands that start with one of the programs, each as a case named after its page."""
    return [
        pytest.param(words, id=f"{page.stem}: {shlex.join(words)}")
        for page, words in WORDS
        if Path(words[0]).name in programs
    ]


def ldmae_commands() -> list:
    """Returns the commands of `ldmae`, also where a launcher starts it."""
    launched = [
        pytest.param(case.values[0][case.values[0].index("ldmae") :], id=case.id)
        for case in started_by("accelerate")
        if "ldmae" in case.values[0]
    ]
    return [case for case in (*started_by("ldmae"), *launched) if len(case.values[0]) > 1]


@pytest.mark.parametrize("words", ldmae_commands())
def test_command_is_one(words):
    """Its verb, options, preset and settings exist; what it does is tested with the verb."""
    words = words[1:]
    if words[0] in ("--help", "--version", "--install-completion"):
        return
    node = typer.main.get_command(app)
    while hasattr(node, "commands"):
        if not words:  # a group, as `ldmae train`
            return
        assert words[0] in node.commands
        name, node = words[0], node.commands[words.pop(0)]
    if "--help" in words:
        return
    with node.make_context(
        name, [word for word in words if word != "--dry-run"], resilient_parsing=True
    ) as context:
        preset, overrides = context.params.get("preset"), context.params.get("overrides")
    assert preset is None or preset in preset_names() or preset in ("PRESET", "mine.yaml")
    if overrides and "key=value" not in overrides:
        load_config(preset if preset in preset_names() else {}, list(overrides))


@pytest.mark.parametrize("words", started_by("accelerate"))
def test_launcher_takes_its_options(words):
    assert words[1] in ("launch", "config")
    if len(words) > 2:
        options = launch_command_parser().parse_args(words[2:])
        assert (options.module, options.training_script) == (True, "ldmae")
        assert options.config_file is None or (ROOT / options.config_file).is_file()


@pytest.mark.parametrize("words", started_by("make"))
def test_target_is_in_the_makefile(words):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words[1:]:
        assert "=" in target or re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize(
    "words", [case for case in started_by("python") if any("examples/" in word for word in case.values[0])]
)
def test_example_is_there_and_knows_the_options(words):
    script = ROOT / words[1]
    assert script.is_file()
    source = script.read_text(encoding="utf-8")
    for word in words[2:]:
        assert not word.startswith("--") or f'"{word}"' in source, word


def test_commands_were_found():
    assert len(ldmae_commands()) > 60
    assert any("compare" in case.id for case in ldmae_commands())
    assert started_by("accelerate")
    assert started_by("make")
    assert started_by("python")


def test_launch_files_are_as_accelerate_reads_them():
    from accelerate.commands.config.config_args import load_config_from_file

    for path in (ROOT / "examples" / "accelerate").glob("*.yaml"):
        config = load_config_from_file(str(path))
        assert config.num_processes > 1, path
        assert config.distributed_type == ("FSDP" if path.stem == "fsdp" else "MULTI_GPU"), path


def test_sharding_launch_asks_for_what_the_training_loop_takes(monkeypatch):
    file = ROOT / "examples" / "accelerate" / "fsdp.yaml"
    words = ["--config_file", str(file), "-m", "ldmae"]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    told = prepare_multi_gpu_env(options)
    assert told["ACCELERATE_USE_FSDP"] == "true"
    for name, value in told.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)


def test_slurm_script_starts_a_launcher_with_options_that_it_knows(tmp_path):
    """With stand-ins for Slurm's programs, for there is no cluster; the launcher tells what it was given."""
    stand_ins = {
        "scontrol": "echo node-a; echo node-b",
        "srun": 'exec "$@"',
        "accelerate": 'printf "%s\\n" "$@"',
    }
    for name, does in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node-[a-b]"}
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "accelerate" / "nodes.sbatch"), "imagenet-256", "data=A B"],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *words = done.stdout.splitlines()
    assert first == "launch"
    options = launch_command_parser().parse_args(words)
    assert (options.num_machines, options.num_processes, options.machine_rank) == (2, 16, 1)
    assert options.main_process_ip == "node-a"
    assert options.training_script_args == ["run", "imagenet-256", "data=A B"]


def test_program_runs():
    (program,) = BLOCKS
    names = {"images": torch.rand(2, 3, 64, 64) * 2 - 1}
    exec(program, names)
    assert names["image"].size == (64, 64)
    assert names["latents"].shape == (2, 16, 8, 8)
    assert names["decoded"].shape == (2, 3, 64, 64)
