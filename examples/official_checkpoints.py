"""Open official LDMAE checkpoints, generate with them, and write the official layout again.

python examples/official_checkpoints.py         # small files made here, in the official layout
python examples/official_checkpoints.py --vmae vmaef8d16.pth --transformer lightningdit.pt \
    --latents-stats latents_stats.pt
"""

import argparse
import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldmae import AutoencoderVMAE, LDMAEPipeline, LightningDiTTransformer2DModel
from ldmae.cli.output import run_app
from ldmae.conversion import load_official_lightningdit, load_official_vmae
from ldmae.conversion.lightningdit import to_official_lightningdit
from ldmae.conversion.vmae import to_official_checkpoint, to_official_vmae


def make_official_files(folder: Path) -> dict[str, Path]:
    """Writes small files as the official training codes leave them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()}
    vmae = AutoencoderVMAE(sample_size=64, patch_size=8, latent_channels=16, use_mask_token=True, **both)
    transformer = LightningDiTTransformer2DModel(
        sample_size=8,
        in_channels=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_classes=10,
    )
    weights = to_official_lightningdit(transformer)
    paths = {name: folder / name for name in ("vmae.pth", "lightningdit.pt", "latents_stats.pt")}
    torch.save({"model": to_official_vmae(vmae), "args": argparse.Namespace(epochs=400)}, paths["vmae.pth"])
    torch.save({"model": weights, "ema": weights}, paths["lightningdit.pt"])
    statistics = {"mean": torch.zeros(1, 16, 1, 1), "std": torch.ones(1, 16, 1, 1)}
    torch.save(statistics, paths["latents_stats.pt"])
    return paths


def main(arguments: list[str] | None = None) -> LDMAEPipeline:
    """Converts both models to one pipeline, saves it, generates a picture; returns the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vmae", type=Path)
    parser.add_argument("--transformer", type=Path)
    parser.add_argument("--latents-stats", type=Path)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    if (options.vmae is None) != (options.transformer is None):
        parser.error("--vmae and --transformer belong together")
    if options.vmae is None and options.latents_stats is not None:
        parser.error("--latents-stats belongs to --vmae and --transformer")
    out = options.out or Path(mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    if options.vmae is None:
        vmae_file, transformer_file, stats_file = make_official_files(out).values()
        steps = 4
    else:
        vmae_file, transformer_file, stats_file = options.vmae, options.transformer, options.latents_stats
        steps = 249  # the official 250 points of time

    # --8<-- [start:load]
    vae = load_official_vmae(vmae_file, latents_stats=stats_file)
    transformer = load_official_lightningdit(transformer_file)
    # --8<-- [end:load]

    # --8<-- [start:pipeline]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)  # the official time shift 0.3 on t
    pipeline = LDMAEPipeline(vae, transformer, scheduler)
    pipeline.save_pretrained(out / "pipeline")
    picture = pipeline(
        [1],
        guidance_scale=10.0,
        guidance_interval=(0.1, 1.0),
        guidance_channels=3,  # what the official sampler does; None with a scale of about 4 is an alternative
        num_inference_steps=steps,  # 249: the official 250 points of time
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    picture.save(out / "picture.png")
    # --8<-- [end:pipeline]

    # --8<-- [start:back]
    torch.save(to_official_checkpoint(vae), out / "vmae-again.pth")
    # --8<-- [end:back]
    print(f"{out / 'picture.png'}: {picture.width} × {picture.height}")
    return pipeline


if __name__ == "__main__":
    sys.exit(run_app(main))
