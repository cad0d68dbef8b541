"""A pipeline, an autoencoder and a run folder with random weights, as small as they go."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image

from ldmae import AutoencoderVMAE, LDMAEPipeline
from ldmae.app.workbench import Workbench, open_workbench
from ldmae.perception.lpips import PerceptualDistance, load_perceptual

from ..tiny import tiny_transformer, tiny_vmae

CLASSES = ["faces", "hearts", "clocks"]
SIZE = 32
RUN = """
data: {source: digits}
image_size: 32
sampling: {guidance_scale: 2.0, guidance_interval: [0.2, 0.9], num_inference_steps: 7, timestep_shift: 0.5}
"""


def tiny_vae(seed: int = 0, use_mask_token: bool = True, latent_channels: int = 4) -> AutoencoderVMAE:
    statistics = {"latents_mean": [0.1] * latent_channels, "latents_std": [0.8] * latent_channels}
    shape = {"sample_size": SIZE, "patch_size": 8, "latent_channels": latent_channels}
    return tiny_vmae(seed, use_mask_token=use_mask_token, **shape, **statistics)


def tiny_pipeline(classes: list[str] = CLASSES) -> LDMAEPipeline:
    vae = tiny_vae()
    transformer = tiny_transformer(num_classes=len(classes))
    with torch.no_grad():  # a fresh one predicts 0 whatever the class
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    return LDMAEPipeline(vae, transformer, scheduler, dict(enumerate(classes)))


def photo(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    """Returns a smooth picture with an edge."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    channels = [np.sin(7 * (a * x + b * y)) * 90 + 128 for a, b in random.random((3, 2))]
    pixels = np.stack(channels, axis=-1).round().astype(np.uint8)
    pixels[: height // 3, : width // 3] = random.integers(0, 255, 3)
    return Image.fromarray(pixels)


@contextlib.contextmanager
def serving(bench: Workbench, uploads: Path) -> Iterator[tuple[str, Any]]:
    """Serves a page, which keeps what visitors send in a folder, and gives its address and the page."""
    from ldmae.app.hosts import Hosts
    from ldmae.app.page import build_page, launch
    from ldmae.app.serve import _free_port

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        page = build_page(bench)
        try:
            host = "127.0.0.1"
            (address,) = launch(page, bench, host, _free_port(host, 0), Hosts(host))
            yield address, page
        finally:
            page.close(verbose=False)


@pytest.fixture(scope="session")
def perceptual() -> PerceptualDistance:
    return load_perceptual("st-lpips-alex")


@pytest.fixture(scope="session")
def pipeline() -> LDMAEPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, pipeline: LDMAEPipeline) -> SimpleNamespace:
    """Saved: `pipeline`, an autoencoder `other`, and a `run` with held-out images and a report."""
    base: Path = tmp_path_factory.mktemp("app")
    pipeline.save_pretrained(base / "pipeline")
    tiny_vae(seed=1, latent_channels=8).save_pretrained(base / "other")
    run = base / "runs" / "small"
    pipeline.save_pretrained(run / "pipeline")
    pipeline.vae.save_pretrained(run / "autoencoder")
    (run / "config.yaml").write_text(RUN)
    (run / "results").mkdir()
    pictures = np.stack([np.asarray(photo(SIZE, SIZE, seed=k)) for k in range(5)])
    np.savez(run / "results" / "reconstruction.npz", originals=pictures, reconstructions=pictures)
    (run / "report.html").write_text(
        "<!doctype html><title>r</title><h1>Report of the run</h1><script>x</script>"
    )
    return SimpleNamespace(base=base, pipeline=base / "pipeline", other=base / "other", run=run)


@pytest.fixture(scope="session")
def bench(folders: SimpleNamespace) -> Workbench:
    return open_workbench(str(folders.run), device="cpu", may_name=True)
