"""The benchmark for GPUs works from end to end; here on a CPU, of tiny models."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def told(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[list[str]]:
    """The cells of the table that the benchmark prints for one of its parts."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["gpu.py", request.param, "--device", "cpu", "--no-compile"])
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    torch.use_deterministic_algorithms(False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize("told", ["steps"], indirect=True)
def test_the_gpu_benchmark_times_every_training_step(told: list[list[str]]) -> None:
    head, _, *rows = told
    assert [row[0].partition(",")[0] for row in rows] == ["VMAE", "VMAE", "LightningDiT"]
    for row in rows:
        assert len(row) == len(head)
        assert all(float(cell.replace(",", "")) > 0 for cell in row[2:6])
        assert row[8] == "written out"  # what a CPU does in bf16 with so few tokens


@pytest.mark.parametrize("told", ["cost"], indirect=True)
def test_the_gpu_benchmark_times_both_autoencoders(told: list[list[str]]) -> None:
    assert [row[0] for row in told[2:]] == ["VMAE"] * 4 + ["convolutional"] * 4
    assert all(float(row[3].replace(",", "")) > 0 for row in told[2:])


@pytest.mark.parametrize("told", ["checks"], indirect=True)
def test_the_gpu_benchmark_finds_that_a_resumed_training_has_the_same_weights(told: list[list[str]]) -> None:
    results = dict(told)
    both = "autoencoder.pretraining, diffusion"
    resumed = results["interrupted and resumed, deterministic=true"]
    assert resumed == f"the same weights, bit for bit; interrupted: {both}"
    assert results["fp16 with a gradient scaler"] == "not run: needs a GPU"
    assert results["two processes"] == "not run: needs two GPUs"
