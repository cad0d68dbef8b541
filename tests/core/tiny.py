"""Tiny autoencoders: ours, and of every 2-D class of diffusers."""

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL

from ..tiny import tiny_vmae as tiny_vmae

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tiny_kl(**arguments) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, **arguments).eval()


TWO_STAGES = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "latent_channels": 4,
}

DIFFUSERS = {
    "AutoencoderKL": dict(TWO_STAGES, block_out_channels=(4, 4), scaling_factor=1.5, shift_factor=0.1),
    "AutoencoderKLFlux2": dict(TWO_STAGES, block_out_channels=(4, 4)),
    "AsymmetricAutoencoderKL": dict(
        TWO_STAGES, down_block_out_channels=(4, 4), up_block_out_channels=(8, 8), layers_per_up_block=1
    ),
    "VQModel": dict(TWO_STAGES, block_out_channels=(4, 4), num_vq_embeddings=8),
    "AutoencoderTiny": {
        "encoder_block_out_channels": (4, 4),
        "decoder_block_out_channels": (4, 4),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "latent_channels": 2,
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_out_channels": (4, 4),
        "decoder_block_out_channels": (4, 4),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    },
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "spatial_compression_ratio": 2,
        "sample_size": 16,
        "scaling_factor": 0.75,
    },
    "AutoencoderKLKVAE": {
        "channels": 32,
        "num_enc_blocks": 1,
        "num_dec_blocks": 1,
        "z_channels": 4,
        "ch_mult": (1, 1),
    },
}
"""Tiny models of every 2-D autoencoder class, of two stages; those that this diffusers lacks are left out."""

CONSISTENCY = {
    "encoder_block_out_channels": (4,),
    "encoder_down_block_types": ("DownEncoderBlock2D",),
    "encoder_norm_num_groups": 2,
    "encoder_layers_per_block": 1,
    "decoder_block_out_channels": (8, 8),
    "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
    "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    "decoder_layers_per_block": 1,
    "decoder_norm_num_groups": 2,
}
"""A tiny ConsistencyDecoderVAE, which has no module of its own that is its decoder."""

THERE = [name for name in DIFFUSERS if hasattr(diffusers, name)]


def tiny(name):
    if name == "AutoencoderRAE":
        return tiny_rae()
    torch.manual_seed(0)
    return getattr(diffusers, name)(**DIFFUSERS[name]).eval()


def tiny_rae():
    kind = getattr(diffusers, "AutoencoderRAE", None)
    if kind is None:
        pytest.skip("this diffusers has no AutoencoderRAE")
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"encoder_num_hidden_layers": 1, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
    small |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}
    sizes = {"encoder_hidden_size": 64, "encoder_patch_size": 16, "encoder_input_size": 64, "patch_size": 4}
    statistics = {"latents_mean": [0.5], "latents_std": [2.0], "scaling_factor": 3.0}
    return kind(encoder_type="mae", **sizes, **small, **statistics).eval()
