"""A folder of small pictures, the smallest settings that reach every stage, and quick starts of `ldmae`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

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
      optimizer: {learning_rate: 1.0e-3, schedule: cosine}
      checkpoint: {every_steps: 3}
      log_every: 1
latents: {batch_size: 8, shard_size: 16}
diffusion:
  model: {patch_size: 2, num_layers: 1, num_attention_heads: 2, attention_head_dim: 8}
  training:
    steps: 16
    batch_size: 12
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


@dataclass
class Started:
    """A started `ldmae`, in a process group of its own."""

    server: Server
    process: int
    log: Path
    began: float = field(default_factory=time.monotonic)
    code: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code (negative for a signal), or None while it runs."""
        if self.code is None:
            self.code = self.server.ask({"poll": self.process})
        return self.code

    def kill(self, loaders: bool = True) -> None:
        """Ends it by SIGKILL, and its loading processes too, or leaves these behind."""
        if self.poll() is not None:
            return
        try:
            (os.killpg if loaders else os.kill)(self.process, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(self.process, signal.SIGKILL)

    def wait(self, timeout: float = 240) -> int:
        """Returns the exit code; an error after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"not done after {timeout} s:\n{self.output}")
            time.sleep(0.005)
        assert self.code is not None
        return self.code

    @property
    def output(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")


class Server:
    """Starts `ldmae` without waiting for its imports each time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """Sends a request and returns the answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def start(
        self,
        *arguments: str | Path,
        environment: dict[str, str] | None = None,
        largest_file: int | None = None,
        die_at_write: tuple[int, Path] | None = None,
    ) -> Started:
        """Starts `ldmae ARGUMENTS…`.

        Args:
            arguments: of the command line.
            environment: variables to add.
            largest_file: bytes above which a write to a file fails.
            die_at_write: (n, folder): SIGKILL just before the n-th change to a file in the folder.
        """
        self.count += 1
        log = self.folder / f"{self.count}.log"
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": environment or {},
            "log": str(log),
            "largest_file": largest_file,
            "die_at_write": die_at_write and (die_at_write[0], str(die_at_write[1])),
        }
        return Started(self, self.ask({"start": request}), log)

    def close(self) -> None:
        """Ends the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def environment() -> dict[str, str]:
    """Returns the variables under which programs are started: one thread, as bitwise comparison needs."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def ldmae(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts `ldmae`; its imports are made once."""
    server = Server(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


PASSING = ("seconds", "images_per_second", "data_share", "finished", "_name_or_path")
"""What differs between two runs that are the same: times, and where diffusers read a model from."""


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def _bits(value: Any) -> Any:
    """Returns something that compares equal where all tensors and arrays in `value` do, bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def _read(path: Path) -> Any:
    """Returns what a file holds, without what may differ."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return file.metadata(), {name: _bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".pt":
        return _bits(torch.load(path, weights_only=True))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return _bits(dict(arrays))
    if path.suffix == ".json":
        return _lasting(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_lasting(json.loads(line)) for line in path.read_text().splitlines()]
    return None if path.suffix == ".html" else path.read_bytes()


def read_run(folder: Path) -> dict[str, Any]:
    """Returns all that a run folder holds, by file, so that two runs can be compared bit for bit.

    All but `run.json`, which tells how it was started.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(folder)): _read(path) for path in files}


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, Any]]:
    """The function that reads a whole run folder, to compare it bit for bit."""
    return read_run


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Path, Path], None]:
    """Compares two run folders, all files but the report: weights, training states, pixels, figures."""

    def compare(one: Path, other: Path) -> None:
        a, b = read_run(one), read_run(other)
        assert a.keys() == b.keys()
        assert [name for name in a if a[name] != b[name]] == []

    return compare
