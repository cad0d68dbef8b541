"""What the benchmarks compare with computes the same as what they measure."""

import importlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel
from ldmae.loading import load_pipeline

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_plain_transformer_predicts_the_same_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    plain = importlib.import_module("models").plain
    model = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=3, num_layers=2, num_attention_heads=2, attention_head_dim=8
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = torch.randn(2, 3, 4, 4), torch.rand(2), torch.tensor([1, 2])
    with torch.no_grad():
        ours = model(*inputs).sample
        with plain():
            torch.testing.assert_close(model(*inputs).sample, ours)


@pytest.mark.parametrize("split", [False, True])
def test_the_plain_loop_makes_the_pipelines_images(monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sampling = importlib.import_module("sampling")
    pipeline, labels = load_pipeline(sampling.SOURCE), torch.tensor([0, 4])
    seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
    theirs = sampling.plain_loop(pipeline, labels, 2, split, seeded[0])
    ours = pipeline(labels, guidance_scale=sampling.SCALE, num_inference_steps=2, generator=seeded[1]).images
    for image, other in zip(ours, theirs, strict=True):
        assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 1


SCRIPTS = sorted([*BENCHMARKS.glob("[a-z]*.py"), *(BENCHMARKS.parent / "tools").glob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_every_script_says_how_it_is_used(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    assert f"usage: {script.name}" in capsys.readouterr().out
