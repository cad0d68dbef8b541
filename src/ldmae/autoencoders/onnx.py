"""Encoder and decoder of an autoencoder as ONNX files."""

# B batch, C latent channels, h w latent grid

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmae.core.autoencoding import decode, encode_moments
from ldmae.core.imports import require


class _Encoder(nn.Module):
    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> Tensor:
        return encode_moments(self.autoencoder, images)[0]


class _Decoder(nn.Module):
    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        # one generator, where one is asked for: one for each image would fix their number
        return decode(self.autoencoder, latents, generator=torch.Generator())


def require_onnx() -> None:
    """Raises a UserError where what exports is not installed."""
    require("--onnx", "onnx", "onnxscript", install="'ldmae[onnx]'")


@torch.no_grad()
def export_onnx(autoencoder: nn.Module, folder: Path, size: int) -> dict[str, Any]:
    """Writes `encoder.onnx` and `decoder.onnx`, in float32, for any batch of images of one size.

    Args:
        autoencoder: whatever `core.autoencoding` encodes and decodes with.
        folder: where they go.
        size: pixels along a side of the images.

    Returns:
        `channels` and `size` of the images, and the shape of the latents (C, h, w): raw ones, the posterior's
        mean.
    """
    autoencoder = autoencoder.cpu().float().eval()
    images = torch.zeros(2, 3, size, size)
    latents = encode_moments(autoencoder, images)[0]
    folder.mkdir(parents=True)
    _export(_Encoder(autoencoder), images, folder / "encoder.onnx", "images", "latents")
    _export(_Decoder(autoencoder), latents, folder / "decoder.onnx", "latents", "images")
    return {"channels": images.shape[1], "size": size, "latents": list(latents.shape[1:])}


def _export(network: nn.Module, example: Tensor, path: Path, takes: str, gives: str) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=[takes],
            output_names=[gives],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            optimize=False,  # it drops the 1e-15 that keeps a linear attention from dividing by 0
            external_data=False,
            verbose=False,
        )
