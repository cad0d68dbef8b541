"""LoRA: small trainable matrices beside a diffusion model's frozen weights (arXiv 2106.09685), by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ldmae.config.diffusion import LoraConfig
from ldmae.core.errors import UserError
from ldmae.core.imports import require
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline


def require_peft() -> None:
    """Raises a UserError where peft is not installed."""
    require("diffusion.lora", "peft", install="'ldmae[lora]'")


def add_adapter(model: Any, config: LoraConfig) -> Any:
    """Freezes a diffusion model and adds trainable matrices; returns it. With rank 0 it stays as it is.

    Raises:
        UserError: peft is not installed, or a target names no layer of the model.
    """
    if not config.rank:
        return model
    require_peft()
    import peft  # pyright: ignore[reportMissingImports]

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            ends = sorted({".".join(name.split(".")[-2:]) for name in names if name.startswith("blocks.0.")})
            raise UserError(
                f"diffusion.lora.targets names {target!r}, which no linear layer of the model is called; its "
                f"blocks have {', '.join(ends)}"
            )
    model.requires_grad_(False)
    model.add_adapter(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha or config.rank, target_modules=config.targets)
    )
    return model


def save_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter's weights, which `LDMAEPipeline.load_lora_weights` loads."""
    from peft import get_peft_model_state_dict  # pyright: ignore[reportMissingImports]

    weights: Any = get_peft_model_state_dict(model, adapter_name="default")
    LDMAEPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=weights,
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )


def merged(model: Any) -> Any:
    """Returns a diffusion model with its adapter's weights in its own."""
    model.fuse_lora()
    model.unload_lora()
    return model.requires_grad_(True)
