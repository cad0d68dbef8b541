"""Square patches of a picture or a latent grid as tokens."""

# B batch, C channels, H W picture, p patch edge, D width, N tokens (H/p * W/p)

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """A linear layer on each patch, its weights kept as the convolution of the official layouts."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = _PatchConv(channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), both edges multiples of the patch size, to (B, N, D), row by row."""
        return self.proj(x)


class _PatchConv(nn.Conv2d):
    """The convolution as a linear layer; a module, as what offloads or casts weights layer by layer needs."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        # Not as a convolution: oneDNN's bf16 kernel for AMX is wrong where a grid is one token wide
        # (https://github.com/pytorch/pytorch/pull/188426).
        (p, q) = self.kernel_size
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)
        return F.linear(patches, self.weight.flatten(1), self.bias)


def start_linear_layers(model: nn.Module, patches: PatchEmbedding) -> None:
    """Draws the weights of a model's linear layers, then of its patch embedding; sets their biases to 0.

    Xavier's uniform distribution: the fans of the embedding are a patch's numbers and the width.
    """
    for layer in (*(m for m in model.modules() if isinstance(m, nn.Linear)), patches.proj):
        nn.init.xavier_uniform_(layer.weight.flatten(1))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
