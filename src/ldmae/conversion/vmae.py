"""The official VMAE checkpoints ↔ `AutoencoderVMAE`: the same names, the sizes read from the shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.conversion.checkpoints import (
    check_layout,
    depth_of,
    layout_errors,
    read_official_checkpoint,
    require_keys,
    require_numbers,
    side_of,
    state_dict_of,
)
from ldmae.core.errors import UserError, shortened

_FOREIGN_PREFIXES = ("perceptual_loss.",)
"""Tensors in the official training files that are no part of the autoencoder: the loss network."""

_PLAIN_HEAD = "decoder_pred."
_SMOOTH_HEAD = "decoder_pred.linear_pred."
"""Without `smooth_output`, the official head is one linear layer, named without the second part."""

_SHAPE_KEYS = (
    "patch_embed.proj.weight",
    "pos_embed",
    "to_latent.weight",
    "from_latent.weight",
    "decoder_embed.weight",
    "decoder_pos_embed",
    "blocks.0.mlp.fc1.weight",
    "decoder_blocks.0.mlp.fc1.weight",
)

_OFFICIAL_HEADS = {  # (encoder width, decoder width, patch size): (encoder heads, decoder heads)
    (96, 96, 8): (8, 8),
    (96, 192, 8): (8, 12),
    (384, 384, 8): (16, 16),
    (384, 384, 16): (12, 12),
}
_HEAD_WIDTH = 16
"""What all other official sizes have."""

_OWN_ENTRY = "ldmae"
"""Beside "model", what the official layout has no place for and the official code does not look at."""
_OWN_KEYS = (
    "encoder_num_attention_heads",
    "decoder_num_attention_heads",
    "hidden_act",
    "mlp_ratio",
    "latents_mean",
    "latents_std",
    "scaling_factor",
)


def load_official_vmae(
    path: str | Path,
    encoder_num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    latents_stats: str | Path | None = None,
) -> AutoencoderVMAE:
    """Loads an official VMAE checkpoint, from either training stage.

    All sizes are read from the tensors' shapes but the numbers of heads, which neither a shape nor the
    arguments in the file tell. Where they are not given, they are what the file says that
    `to_official_checkpoint` wrote; else those of the official model of the same widths (96: 8 heads,
    192: 12, 384: 16, or 12 with patches of 16 pixels), else width / 16.

    Args:
        path: `.pth` file, `{"model": …}` or a bare state dict.
        encoder_num_attention_heads: heads of the encoder.
        decoder_num_attention_heads: heads of the decoder.
        latents_stats: LightningDiT's `latents_stats.pt`, {"mean", "std"} of (1, C, 1, 1), which goes into the
            config as `latents_mean` and `latents_std`.

    Returns:
        The model in evaluation mode; it has a mask token where the file has one (masked pre-training).

    Raises:
        UserError: the file can't be read safely, is of another layout, or its tensors do not fit one another.
    """
    checkpoint = read_official_checkpoint(path)
    state = _model_state(checkpoint)
    require_keys(state, _SHAPE_KEYS, path, "VMAE checkpoint")
    require_numbers(state, path)
    own = checkpoint.get(_OWN_ENTRY)
    own = {key: own[key] for key in _OWN_KEYS if key in own} if isinstance(own, Mapping) else {}
    with layout_errors(path, "VMAE checkpoint"):
        config = _config(state, path) | own
        if encoder_num_attention_heads is not None:
            config["encoder_num_attention_heads"] = encoder_num_attention_heads
        if decoder_num_attention_heads is not None:
            config["decoder_num_attention_heads"] = decoder_num_attention_heads
        if latents_stats is not None:
            config.update(_read_latents_stats(latents_stats, config["latent_channels"]))
        with torch.device("meta"):  # nothing is drawn: every tensor comes from the file
            model = AutoencoderVMAE(**config)
        check_layout(state, model.state_dict(), path, "VMAE checkpoint")
        model.load_state_dict({key: tensor.float().clone() for key, tensor in state.items()}, assign=True)
    return model.eval()


def to_official_vmae(model: AutoencoderVMAE) -> dict[str, Tensor]:
    """Returns the model's state dict in the official layout, on the CPU.

    Raises:
        UserError: the model has a wider pixel head than the layout has a place for.
    """
    if model.config["head_features"] is not None:
        raise UserError(
            f"the official layout has no place for head_features={model.config['head_features']}; keep this "
            "model in diffusers' format"
        )
    smooth = model.config["smooth_output"]
    return {
        key if smooth else key.replace(_SMOOTH_HEAD, _PLAIN_HEAD): tensor.detach().cpu().clone()
        for key, tensor in model.state_dict().items()
    }


def to_official_checkpoint(model: AutoencoderVMAE) -> dict[str, Any]:
    """Returns what `torch.save` writes as a file that the official code loads, and `load_official_vmae` too.

    The official layout has no place for numbers of heads and for the activation: the entry "ldmae" holds
    them, so that the file comes back as the same model.
    """
    return {
        "model": to_official_vmae(model),
        _OWN_ENTRY: {key: value for key in _OWN_KEYS if (value := model.config[key]) is not None},
    }


def _model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    state = state_dict_of(checkpoint, "model")
    state = {key: tensor for key, tensor in state.items() if not key.startswith(_FOREIGN_PREFIXES)}
    for kind in ("weight", "bias"):
        if _PLAIN_HEAD + kind in state:
            state[_SMOOTH_HEAD + kind] = state.pop(_PLAIN_HEAD + kind)
    return state


def _config(state: dict[str, Tensor], path: str | Path) -> dict[str, Any]:
    require_keys(state, [_SMOOTH_HEAD + "weight"], path, "VMAE checkpoint")
    width, in_channels, p, _ = state["patch_embed.proj.weight"].shape
    decoder_width = state["decoder_embed.weight"].shape[0]
    heads = _OFFICIAL_HEADS.get(
        (width, decoder_width, p), (max(1, width // _HEAD_WIDTH), max(1, decoder_width // _HEAD_WIDTH))
    )
    return {
        "sample_size": side_of(state["pos_embed"], path) * p,
        "in_channels": in_channels,
        "out_channels": state[_SMOOTH_HEAD + "weight"].shape[0] // p**2,
        "patch_size": p,
        "latent_channels": state["from_latent.weight"].shape[1],
        "encoder_hidden_size": width,
        "encoder_num_hidden_layers": depth_of(state, "blocks.", path),
        "encoder_num_attention_heads": heads[0],
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": depth_of(state, "decoder_blocks.", path),
        "decoder_num_attention_heads": heads[1],
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "smooth_output": "decoder_pred.conv_smoother.weight" in state,
        "use_mask_token": "mask_token" in state,
    }


def _read_latents_stats(path: str | Path, channels: int) -> dict[str, list[float]]:
    stats = read_official_checkpoint(path)
    found: dict[str, list[float]] = {}
    for name in ("mean", "std"):
        value = stats.get(name)
        if not isinstance(value, Tensor) or value.numel() != channels:
            got = tuple(value.shape) if isinstance(value, Tensor) else shortened(map(str, stats), 6)
            raise UserError(
                f"{path} is not a latents_stats.pt of this autoencoder: expected {name!r} of shape "
                f"(1, {channels}, 1, 1), got {got}; use the file beside its latents"
            )
        if not value.isfinite().all() or (name == "std" and (value <= 0).any()):
            raise UserError(f"{path} has NaN, infinity or a standard deviation of 0; encode again")
        found[f"latents_{name}"] = value.float().flatten().tolist()
    return found
