"""A run folder at work: what is set up before any stage."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from ldmae.config import load_config
from ldmae.core.errors import UserError
from ldmae.recipes.run import open_accelerator, run_autoencoder
from ldmae.stages import StageBook


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    torch.use_deterministic_algorithms(False)


def test_deterministic_run_lets_cublas_compute(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    open_accelerator(load_config("smoke", ["device=cpu"]), tmp_path)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    open_accelerator(load_config("smoke", ["device=cpu", "deterministic=true"]), tmp_path)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"  # else torch refuses to multiply on CUDA


def test_second_accelerator_of_a_process_shards_as_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    state = PartialState(cpu=True)._shared_state
    monkeypatch.setitem(state, "distributed_type", DistributedType.MULTI_GPU)
    for _ in range(2):
        accelerator = open_accelerator(load_config("smoke", ["device=cpu"]), tmp_path)
        assert accelerator.is_fsdp2
        assert state["distributed_type"] == DistributedType.FSDP


def test_run_without_its_autoencoder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("flowers")  # flowers/autoencoder reads like OWNER/NAME
    run: Any = SimpleNamespace(config=load_config("smoke"), folder=folder, book=StageBook(folder))
    with pytest.raises(UserError, match=r"the run flowers has no autoencoder yet; .*ldmae train autoencoder"):
        run_autoencoder(run)
