"""Models with random weights, as small as they go."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ldmae import AutoencoderVMAE, LDMAEPipeline, LightningDiTTransformer2DModel


def vmae_sizes(hidden_size: int = 16, layers: int = 1, heads: int = 2) -> dict[str, int]:
    """Returns the sizes of both halves of a VMAE."""
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in sizes.items()}


def tiny_vmae(seed: int = 0, **changes: Any) -> AutoencoderVMAE:
    """Returns an autoencoder of 16 px images to latents of (4, 4, 4), of the same weights each time."""
    torch.manual_seed(seed)
    shape = {"sample_size": 16, "patch_size": 4, "latent_channels": 4} | vmae_sizes()
    return AutoencoderVMAE(**(shape | changes)).eval()


def tiny_transformer(std: float | None = None, **changes: Any) -> LightningDiTTransformer2DModel:
    """Returns a diffusion model of latents of (4, 4, 4); `std` fills all weights, its zero layers too."""
    torch.manual_seed(0)
    shape = {"sample_size": 4, "in_channels": 4, "num_layers": 1, "num_attention_heads": 2}
    shape |= {"attention_head_dim": 8, "num_classes": 2}
    model = LightningDiTTransformer2DModel(**(shape | changes)).eval()
    for parameter in model.parameters() if std else ():
        torch.nn.init.normal_(parameter, std=std)
    return model


def tiny_pipeline(
    vae: Any = None, transformer: Any = None, scheduler: Any = None, **options: Any
) -> LDMAEPipeline:
    """Returns a pipeline of the two, by Euler's method."""
    parts = (vae or tiny_vmae(), transformer or tiny_transformer())
    return LDMAEPipeline(*parts, scheduler or FlowMatchEulerDiscreteScheduler(), **options)
