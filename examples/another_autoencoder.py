"""Train LDMAE's diffusion model on the latents of another autoencoder.

python examples/another_autoencoder.py                                     # a small AutoencoderKL, in seconds
python examples/another_autoencoder.py --autoencoder OWNER/NAME --data PATH --val VAL \
    --preset imagenet-256
"""

import argparse
import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from diffusers import AutoencoderKL

# --8<-- [start:imports]
from ldmae import LDMAEPipeline
from ldmae.config import load_config
from ldmae.images.builtin import open_builtin
from ldmae.images.dataset import ImageDataset
from ldmae.run import run_stages

# --8<-- [end:imports]
# isort: split
from ldmae.cli.output import run_app


def small_autoencoder(folder: Path, steps: int = 60) -> Path:
    """Trains an AutoencoderKL (32 px images to 8 × 8 × 4) on digits for seconds, in place of yours."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 16, 32],
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    digits = ImageDataset(open_builtin("digits"), size=32)
    images = digits.images(range(0, len(digits), 20))
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=3e-3)
    for step in range(steps):
        batch = images[torch.arange(step * 16, step * 16 + 16) % len(images)]
        restored = autoencoder.decode(autoencoder.encode(batch).latent_dist.mode()).sample
        loss = (restored - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    autoencoder.save_pretrained(folder)
    return folder


def main(arguments: list[str] | None = None) -> LDMAEPipeline:
    """Encodes, trains, generates; returns the pipeline, whose `vae` is the other autoencoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--autoencoder", help="a diffusers folder or Hub name; by default a small one is trained"
    )
    parser.add_argument("--data", default="digits", help="images: a folder, a built-in set, …")
    parser.add_argument("--val", help="images to measure on: a folder, or a share; by default the preset's")
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--out", type=Path, default=Path("runs/another"))
    options = parser.parse_args(arguments)
    source = options.autoencoder or str(small_autoencoder(Path(mkdtemp())))

    held_out = [f"data.val={options.val}"] if options.val else []
    # --8<-- [start:run]
    chosen = [f"autoencoder.source={source}", f"data={options.data}", *held_out]
    settings = load_config(options.preset, chosen)
    # no autoencoder is trained; `run_all` would also measure and write the report
    run_stages(settings, options.out, "latents", "diffusion", "pipeline", "samples")
    pipeline = LDMAEPipeline.from_pretrained(options.out / "pipeline")
    # --8<-- [end:run]
    statistics = [round(number, 2) for number in pipeline.config.latents_std]
    print(f"{type(pipeline.vae).__name__}, latents normalised by {statistics}")
    return pipeline


if __name__ == "__main__":
    sys.exit(run_app(main))
