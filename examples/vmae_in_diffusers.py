"""Use a VMAE in a diffusers program: encode, decode, save, swap it for an AutoencoderKL, half precision.

python examples/vmae_in_diffusers.py                                # a small one, trained for seconds
python examples/vmae_in_diffusers.py --vae runs/emoji/autoencoder   # any saved VMAE
"""

# B batch, C latent channels, h w latent grid

import argparse
import sys
from pathlib import Path
from tempfile import mkdtemp

# --8<-- [start:imports]
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from skimage import data
from torch import Tensor

from ldmae import AutoencoderVMAE
from ldmae.autoencoders.masked_objective import MaskedObjective
from ldmae.cli.output import run_app
from ldmae.config.autoencoder import MaskedObjectiveConfig, MaskingConfig
from ldmae.contracts import BatchKeys
from ldmae.loading import load_autoencoder


def photo_crops(count: int, size: int) -> Tensor:
    """Returns crops of a photograph, (B, 3, size, size) in [-1, 1]."""
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 127.5 - 1
    photo = torch.nn.functional.interpolate(photo, scale_factor=0.5, mode="area")[0]
    places = torch.Generator().manual_seed(0)
    tops, lefts = torch.randint(0, photo.shape[-1] - size + 1, (2, count), generator=places).tolist()
    return torch.stack([photo[:, y : y + size, x : x + size] for y, x in zip(tops, lefts, strict=True)])


# --8<-- [end:imports]


# --8<-- [start:loop]
def train_in_your_own_loop(steps: int = 120) -> AutoencoderVMAE:
    """Trains a small VMAE in a plain PyTorch loop; the objective is the one that `ldmae train` steps."""
    torch.manual_seed(0)
    vae = AutoencoderVMAE(
        sample_size=64,
        patch_size=8,
        latent_channels=16,
        encoder_hidden_size=96,
        encoder_num_hidden_layers=1,
        encoder_num_attention_heads=4,
        decoder_hidden_size=96,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        use_mask_token=True,  # masked training needs it
    )
    vae.to_latent.bias.data[16:] = -4.0  # where the log variance starts
    masking = MaskingConfig(ratio=0.25)
    objective = MaskedObjective(vae, MaskedObjectiveConfig(masking=masking, perceptual_weight=0.0))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    images = photo_crops(256, 64)
    for step in range(steps):
        batch = {"images": images[torch.arange(step * 16, step * 16 + 16) % len(images)]}
        loss = objective(batch, BatchKeys(seed=0, step=step, rows=range(16), batch_size=16)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae.eval()


# --8<-- [end:loop]


# --8<-- [start:swap]
def to_latents(vae: AutoencoderKL | AutoencoderVMAE, images: Tensor) -> Tensor:
    """Encodes as diffusers' training scripts do; it does not matter which of the two classes it gets."""
    return vae.encode(images).latent_dist.sample() * vae.config.scaling_factor


def dit_pipeline(vae: AutoencoderKL | AutoencoderVMAE, grid: int) -> DiTPipeline:
    """Puts the autoencoder into one of diffusers' own pipelines (its transformer here is untrained)."""
    transformer = DiTTransformer2DModel(
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        sample_size=grid,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
    )
    return DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler())


# --8<-- [end:swap]


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Goes through all uses; returns what was measured on the way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", help="run, folder, Hub name or pretrained:NAME; else one is trained")
    parser.add_argument("--out", type=Path, help="where it is saved")
    options = parser.parse_args(arguments)
    folder = options.out or Path(mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    if options.vae is not None:
        vae = load_autoencoder(options.vae)
    else:
        with torch.enable_grad():
            vae = train_in_your_own_loop()
    if not isinstance(vae, AutoencoderVMAE):
        parser.error(f"--vae {options.vae} holds a {type(vae).__name__}, not a VMAE")
    vae.save_pretrained(folder)
    measured: dict[str, float] = {}

    # --8<-- [start:load]
    vae = AutoencoderVMAE.from_pretrained(folder)
    images = photo_crops(4, 8 * vae.config.patch_size)  # (B, 3, H, W) in [-1, 1]
    posterior = vae.encode(images).latent_dist
    latents = posterior.mode()  # (B, C, h, w), the mean; .sample() draws
    restored = vae.decode(latents).sample  # (B, 3, H, W)
    # --8<-- [end:load]
    measured["psnr"] = (10 * torch.log10(4 / (restored - images).square().mean())).item()

    # --8<-- [start:sizes]
    p = vae.config.patch_size
    wide = photo_crops(1, 16 * p)[:, :, : 9 * p]  # any multiples of the patch size, square or not
    assert vae.decode(vae.encode(wide).latent_dist.mode()).sample.shape == wide.shape
    vae.enable_slicing()  # one image at a time, for less memory; the results are the same
    sliced = vae.encode(images).latent_dist.mode()
    vae.disable_slicing()
    # --8<-- [end:sizes]
    measured["slicing"] = (sliced - latents).abs().max().item()

    # --8<-- [start:statistics]
    many = to_latents(vae, photo_crops(64, 8 * p))
    mean, std = many.mean((0, 2, 3)), many.std((0, 2, 3))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    normal = (many - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)  # what a diffusion model should see
    # --8<-- [end:statistics]
    measured["deviation"] = normal.std().item()

    # --8<-- [start:save]
    saved = Path(mkdtemp())
    vae.save_pretrained(saved)  # config.json, with the statistics, and safetensors
    again = AutoencoderVMAE.from_pretrained(saved)
    assert again.config.latents_std == vae.config.latents_std
    # --8<-- [end:save]
    measured["saved"] = (again.encode(images).latent_dist.mode() - latents).abs().max().item()

    # --8<-- [start:half]
    half = AutoencoderVMAE.from_pretrained(saved, torch_dtype=torch.bfloat16)
    rough = half.decode(half.encode(images.bfloat16()).latent_dist.mode()).sample.float()
    # --8<-- [end:half]
    measured["half"] = (rough - restored).abs().mean().item()

    # --8<-- [start:use]
    kl = AutoencoderKL()  # in real use AutoencoderKL.from_pretrained("OWNER/NAME")
    for autoencoder in (kl, again):
        grid = to_latents(autoencoder, images).shape[-1]
        pipeline = dit_pipeline(autoencoder, grid)
        pipeline.set_progress_bar_config(disable=True)
        picture = pipeline(class_labels=[1], guidance_scale=1.0, num_inference_steps=2).images[0]
        print(f"{type(autoencoder).__name__}: a {picture.width} × {picture.height} image")
    # --8<-- [end:use]
    for name, value in measured.items():
        print(f"{name:10} {value:.3g}")
    return measured


if __name__ == "__main__":
    sys.exit(run_app(main))
