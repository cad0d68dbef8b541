"""Train, use and evaluate autoencoders for latent diffusion."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_LAZY = {
    "AnyModel": "ldmae.diffusion.any_model",
    "AutoencoderVMAE": "ldmae.autoencoders.vmae",
    "LDMAEPipeline": "ldmae.diffusion.pipeline_ldmae",
    "LightningDiTTransformer2DModel": "ldmae.diffusion.lightningdit",
    "OwnAutoencoder": "ldmae.diffusion.own_autoencoder",
    "pretrained": "ldmae.loading",
}
__all__ = ["AutoencoderVMAE", "LDMAEPipeline", "LightningDiTTransformer2DModel", "__version__", "pretrained"]

if TYPE_CHECKING:
    from ldmae.autoencoders.vmae import AutoencoderVMAE
    from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel
    from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
    from ldmae.loading import pretrained


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "conversion":
        return importlib.import_module("ldmae.conversion")
    raise AttributeError(f"module 'ldmae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
