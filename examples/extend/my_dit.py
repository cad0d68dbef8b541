"""A diffusion backbone of one's own: a plain transformer, its condition added to the tokens."""

# B batch, C latent channels, h w latent grid, N tokens, D width

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class TinySiT(ModelMixin, ConfigMixin):
    """Predicts the velocity of x_t; the arguments from `patch_size` on are settings, `diffusion.options`."""

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        num_classes: int,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        class_dropout_prob: float = 0.1,
    ) -> None:
        super().__init__()
        self.null_class = num_classes  # its row stands for no class; guidance and label dropout use it
        self.patch_size = patch_size
        self.embed = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (sample_size // patch_size) ** 2, width))
        self.classes = nn.Embedding(num_classes + 1, width)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.last = nn.Linear(width, patch_size**2 * in_channels)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Computes the velocity, (B, C, h, w), of latents x at times t (B,); 0 is noise, 1 is data."""
        grid = self.embed(x)  # (B, D, h / p, w / p)
        condition = self.time(t[:, None].to(x.dtype)) + self.classes(class_labels)  # (B, D)
        tokens = grid.flatten(2).mT + self.positions + condition[:, None]  # (B, N, D)
        for block in self.blocks:
            tokens = block(tokens)
        patches = self.last(tokens).mT.unflatten(2, grid.shape[2:])  # (B, p * p * C, h / p, w / p)
        return (F.pixel_shuffle(patches, self.patch_size),)
