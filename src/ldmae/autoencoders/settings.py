"""Settings of the autoencoder's shape."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VMAEConfig:
    """The arguments of `AutoencoderVMAE` that a preset chooses; the others follow from the run."""

    patch_size: int = 8
    """Pixels along a patch's side: the latent grid is that much coarser than the image."""
    latent_channels: int = 16
    """Channels C of the latent."""
    encoder_hidden_size: int = 192
    """Width of the encoder."""
    encoder_num_hidden_layers: int = 12
    """Blocks of the encoder."""
    encoder_num_attention_heads: int = 12
    """Attention heads of the encoder; they divide its width."""
    decoder_hidden_size: int = 192
    """Width of the decoder."""
    decoder_num_hidden_layers: int = 12
    """Blocks of the decoder."""
    decoder_num_attention_heads: int = 12
    """Attention heads of the decoder; they divide its width."""
    mlp_ratio: float = 4.0
    """Width of a block's hidden layer over the block's width."""
    hidden_act: str = "gelu"
    """Activation of the hidden layers."""
    smooth_output: bool = True
    """End in a 3 × 3 convolution on the image, which removes seams between patches."""
