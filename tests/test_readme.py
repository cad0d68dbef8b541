"""The README is true: its commands are commands, its program runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from ldmae import AutoencoderVMAE, LDMAEPipeline, LightningDiTTransformer2DModel
from ldmae.cli import app
from ldmae.config import preset_names

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [
    line.partition(" #")[0]
    for line in re.findall(r"(?:^    |`)(?:\.venv/bin/)?(ldmae [^`\n]+)", README, re.M)
    if "[" not in line  # a pattern, not a command
]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_command_is_one(command):
    """Its verb, options and preset exist; what it does is tested with the verb."""
    words = shlex.split(command)[1:]
    if words == ["--help"]:
        return
    node = typer.main.get_command(app)
    while hasattr(node, "commands"):
        assert words[0] in node.commands, command
        name, node = words[0], node.commands[words.pop(0)]
    with node.make_context(
        name, [word for word in words if word != "--dry-run"], resilient_parsing=True
    ) as context:
        preset = context.params.get("preset")
    assert preset is None or preset in preset_names() or preset == "PRESET"


def test_commands_were_found():
    assert len(set(COMMANDS)) > 10
    assert any(command.startswith("ldmae compare") for command in COMMANDS)


def test_program_runs(tmp_path, monkeypatch):
    """With small models in the place of those that the demo leaves."""
    torch.manual_seed(0)
    heads = {"encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2}
    sizes = {"encoder_hidden_size": 16, "decoder_hidden_size": 16, **heads}
    vae = AutoencoderVMAE(
        sample_size=16,
        patch_size=4,
        latent_channels=4,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        **sizes,
    )
    transformer = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_classes=2
    )
    pipeline = LDMAEPipeline(vae, transformer, FlowMatchEulerDiscreteScheduler(), {0: "faces", 1: "hearts"})
    pipeline.save_pretrained(tmp_path / "runs" / "emoji" / "pipeline")
    vae.save_pretrained(tmp_path / "runs" / "emoji" / "autoencoder")
    monkeypatch.chdir(tmp_path)
    (program,) = BLOCKS
    names = {"images": torch.rand(2, 3, 16, 24) * 2 - 1}
    exec(program, names)
    assert names["picture"].size == (16, 16)
    assert names["latents"].shape == (2, 4, 4, 6)
    assert names["images"].shape == (2, 3, 16, 24)
