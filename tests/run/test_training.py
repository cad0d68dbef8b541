"""The arrows that train."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.autoencoders.vmae_training import resized
from ldmae.config import load_config
from ldmae.core.errors import UserError
from ldmae.images.sources import FolderSource
from ldmae.run import run_all
from ldmae.run.training import _check_shards, spread
from ldmae.training import sharding

from ..tiny import tiny_vmae, vmae_sizes


def test_losses_on_some_held_out_images_are_of_all_classes(pictures: Path) -> None:
    source = FolderSource(pictures)  # 3 classes of 20, sorted
    some = spread(source, 6)
    assert np.bincount(some.labels).tolist() == [2, 2, 2]
    assert len({some.describe(k) for k in range(6)}) == 6
    assert [spread(source, 100).describe(k) for k in range(60)] == [source.describe(k) for k in range(60)]


def small(**changes: Any) -> AutoencoderVMAE:
    return tiny_vmae(**{"latent_channels": 3, **vmae_sizes(8), **changes})


@pytest.mark.parametrize("size", [16, 32, 8])
def test_a_training_from_a_file_keeps_its_stretched_positions(size: int) -> None:
    model = small()
    generator = torch.Generator().manual_seed(1)
    for name in ("pos_embed", "decoder_pos_embed"):
        table = torch.randn(1, 16, 8, generator=generator)
        model.load_state_dict({**model.state_dict(), name: table})
    copy = resized(model, size)
    assert copy.config["sample_size"] == size
    if size == model.config["sample_size"]:
        found = copy.state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())
    images = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(copy(images).sample, model(images).sample)


def test_a_training_from_weights_forgets_the_statistics_of_their_latents():
    model = small()
    model.register_to_config(latents_mean=[1.0] * 4, latents_std=[2.0] * 4, scaling_factor=0.5)
    config = resized(model, 16).config
    assert (config["latents_mean"], config["latents_std"], config["scaling_factor"]) == (None, None, 1.0)


@pytest.mark.parametrize("size", [16, 32])
def test_a_training_from_a_rounded_file_has_exact_sine_cosine_positions(size: int) -> None:
    copy, exact = resized(small().to(torch.float16), size), small(sample_size=size)
    for name in ("pos_embed", "decoder_pos_embed"):
        assert torch.equal(copy.state_dict()[name], exact.state_dict()[name])


def test_shards_of_another_number_of_images_are_refused_unless_they_are_foreign_on_purpose():
    def run(fingerprint: str) -> Any:
        latents = SimpleNamespace(fingerprint=fingerprint)
        return SimpleNamespace(
            config=SimpleNamespace(latents=latents), stream=None, train=range(5), folder="run"
        )

    class Shards(list):
        folder = "latents"

    _check_shards(run("skip"), Shards(range(7)), nn.Identity())
    with pytest.raises(UserError, match="holds latents of 7 images, the run has 5"):
        _check_shards(run("check"), Shards(range(7)), nn.Identity())


def test_a_launch_that_a_later_training_refuses_is_refused_before_the_first(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "is_sharded", lambda accelerator: True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    monkeypatch.setattr(AcceleratorState, "fsdp_plugin", plugin, raising=False)
    config = load_config(str(preset), ["autoencoder.tuning.objective.adversarial_weight=0.5"])
    with pytest.raises(UserError, match=r"autoencoder\.tuning: FSDP does not support a discriminator"):
        run_all(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
