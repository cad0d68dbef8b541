"""A folder of small pictures, the smallest settings that reach every stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from ..processes import Server

CLASSES = ("bars", "discs", "waves")

SETTINGS = """\
image_size: 24
mixed_precision: "no"
device: cpu
autoencoder:
  model: {patch_size: 4, latent_channels: 4, encoder_hidden_size: 16, encoder_num_hidden_layers: 1,
          encoder_num_attention_heads: 2, decoder_hidden_size: 16, decoder_num_hidden_layers: 1,
          decoder_num_attention_heads: 2}
  pretraining:
    image_size: 16
    initial_logvar: -4.0
    objective: {masking: {ratio: 0.25}, perceptual_weight: 0.0}
    training:
      steps: 12
      batch_size: 8
      num_workers: 0
      optimizer: {learning_rate: 2.0e-3, warmup_steps: 2, schedule: cosine, gradient_clip: 1.0}
      checkpoint: {every_steps: 4}
      log_every: 3
      validate_every: 6
  tuning:
    objective: {masking: {ratio: 0.0}, sample_posterior: false, perceptual: st-lpips-alex,
                perceptual_weight: 0.1, perceptual_rows: 3}
    training:
      steps: 8
      batch_size: 8
      num_workers: 0
      optimizer: {learning_rate: 1.0e-3, schedule: cosine}
      checkpoint: {every_steps: 3}
      log_every: 1
latents: {batch_size: 8, shard_size: 16, num_workers: 0}
diffusion:
  model: {patch_size: 2, num_layers: 1, num_attention_heads: 2, attention_head_dim: 8}
  training:
    steps: 16
    batch_size: 12
    num_workers: 0
    ema_decay: 0.8
    optimizer: {name: muon, learning_rate: 2.0e-3, gradient_clip: 1.0}
    checkpoint: {every_steps: 5}
    log_every: 2
sampling: {per_class: 2, num_inference_steps: 3, guidance_scale: 2.0, timestep_shift: 0.3}
evaluation: {samples: 12, real_images: 12}
"""


def draw_picture(kind: int, number: int) -> np.ndarray:
    """Returns a (20, 24, 3) uint8 picture of a class, different for each number."""
    rng = np.random.default_rng((kind, number))
    y, x = np.mgrid[:20, :24] / 20
    angle, phase, centre = rng.uniform(0, np.pi), rng.uniform(0, 6), rng.uniform(0.2, 0.8, 2)
    shape = (
        np.sin(12 * (x * np.cos(angle) + y * np.sin(angle)) + phase) > 0,
        (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < rng.uniform(0.04, 0.12),
        0.5 + 0.5 * np.sin(8 * np.hypot(x - centre[0], y - centre[1]) + phase),
    )[kind]
    colours = rng.uniform(0, 255, (2, 3))
    picture = colours[0] + (colours[1] - colours[0]) * np.asarray(shape, float)[..., None]
    return (picture + rng.normal(0, 8, picture.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(autouse=True, scope="module")
def _look_small(small_features: None) -> None:
    """Metrics of generated and restored images are computed as ever, on features of small images."""


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Lets each run choose its device and precision, as a process of its own could."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 pictures, a subfolder for each of three classes."""
    folder = tmp_path_factory.mktemp("images") / "pictures"
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(draw_picture(kind, number)).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A file with the smallest settings that go through every stage."""
    path = tmp_path_factory.mktemp("presets") / "tiny.yaml"
    path.write_text(f'data: {{source: {pictures}, val: "0.15"}}\n{SETTINGS}')
    return path


@pytest.fixture(scope="session")
def finished(ldmae: Server, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one process."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    ldmae.run("run", preset, "--out", folder)
    return folder
