"""Encode, decode and training steps, beside plain models of the same weights, as the official code has them.

Plain: attention written out as softmax(q kᵀ) v, norms, rotation and SwiGLU by their formulas, and memory that
is given back after each large tensor.

Usage: python benchmarks/models.py [--size demo|paper] [--device cuda] [--precision no] [--batch 1]
    [--turns 9] [--only encode]
"""

import argparse
import contextlib
import ctypes
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from _timing import print_head, print_row, side_by_side
from torch import Tensor, nn

import ldmae.autoencoders.vmae
import ldmae.diffusion.lightningdit
from ldmae.autoencoders.masked_objective import MaskedObjective
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import as_dict, load_config
from ldmae.config.autoencoder import MaskedObjectiveConfig, MaskingConfig
from ldmae.config.diffusion import FlowConfig
from ldmae.config.training import OptimizerConfig
from ldmae.contracts import BatchKeys
from ldmae.core.device import resolve_precision, reuse_freed_memory
from ldmae.diffusion.flow import FlowMatchingObjective
from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel
from ldmae.training.optim import build_optimizer


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
    return weights.to(v.dtype) @ v


def plain_rms_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps).to(x.dtype) * gain + shift


def plain_swiglu(gate_and_value: Tensor) -> Tensor:
    gate, value = gate_and_value.chunk(2, dim=-1)
    return F.silu(gate) * value


def plain_rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    return x * cos + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * signed_sin


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """The same weights, written as the papers write them, with glibc's own treatment of large tensors."""
    vmae, dit = ldmae.autoencoders.vmae, ldmae.diffusion.lightningdit
    give_back_freed_memory()
    with (
        mock.patch.object(vmae, "attention", written_out),
        mock.patch.object(dit, "attention", written_out),
        mock.patch.object(dit, "rms_norm", plain_rms_norm),
        mock.patch.object(dit, "swiglu", plain_swiglu),
        mock.patch.object(dit, "_rotate", plain_rotate),
    ):
        yield
    reuse_freed_memory()


def give_back_freed_memory() -> None:
    """Sets glibc's thresholds to where they end by themselves: tensors over 32 MiB are mapped each time."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


def with_plain(work: Callable[[], None]) -> Callable[[], None]:
    def rival() -> None:
        with plain():
            work()

    return rival


def training_step(objective: nn.Module, batch: dict[str, Tensor], device: str, dtype: torch.dtype | None):
    objective.to(device).train()
    optimizer = build_optimizer(objective, OptimizerConfig())
    rows = len(next(iter(batch.values())))
    batch = {name: value.to(device) for name, value in batch.items()}

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = objective(batch, BatchKeys(0, 0, range(rows), rows)).loss
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def inference(call: Callable[[], object], device: str, dtype: torch.dtype | None) -> Callable[[], None]:
    @torch.no_grad()
    def work() -> None:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            call()
        if device == "cuda":
            torch.cuda.synchronize()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("demo", "paper"), default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("auto", "no", "bf16", "fp16"), default="auto")
    parser.add_argument("--batch", type=int, help="images or latents at once")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    arguments = parser.parse_args()
    device = arguments.device
    reuse_freed_memory()
    precision = resolve_precision(arguments.precision, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[precision]
    config = load_config("emoji" if arguments.size == "demo" else "imagenet-256")
    size = config.image_size
    images, latents = (32, 64) if arguments.size == "demo" else (4, 4)
    images, latents = arguments.batch or images, arguments.batch or latents
    torch.manual_seed(0)
    vae = AutoencoderVMAE(sample_size=size, use_mask_token=True, **as_dict(config.autoencoder.model)).to(
        device
    )
    pixels = torch.rand(images, 3, size, size, device=device) * 2 - 1
    grid, channels = size // config.autoencoder.model.patch_size, config.autoencoder.model.latent_channels
    z = torch.randn(images, channels, grid, grid, device=device)
    masked = MaskedObjectiveConfig(masking=MaskingConfig(ratio=0.25), perceptual_weight=0.0)
    dit = LightningDiTTransformer2DModel(
        sample_size=grid, in_channels=channels, num_classes=10, **as_dict(config.diffusion.model)
    )
    batch = {"latents": torch.randn(latents, channels, grid, grid), "labels": torch.arange(latents) % 10}
    works = {
        f"VMAE encode, {images} × {size} px": (inference(lambda: vae.encode(pixels), device, dtype), images),
        f"VMAE decode, {images} × {size} px": (inference(lambda: vae.decode(z), device, dtype), images),
        f"VMAE training step, {images} × {size} px": (
            training_step(MaskedObjective(vae, masked), {"images": pixels}, device, dtype),
            images,
        ),
        f"DiT training step, {latents} × {grid} × {grid} latents": (
            training_step(FlowMatchingObjective(dit, FlowConfig()), batch, device, dtype),
            latents,
        ),
    }
    print(f"{arguments.size} size, {device}, precision {precision}, {torch.get_num_threads()} threads\n")
    print_head()
    for name, (work, count) in works.items():
        if arguments.only not in name:
            continue
        print_row(
            name,
            side_by_side({"ours": work, "plain": with_plain(work)}, arguments.turns, min(2, arguments.turns)),
            "plain",
            count,
            "images",
        )


if __name__ == "__main__":
    main()
