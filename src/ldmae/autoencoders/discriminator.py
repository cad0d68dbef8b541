"""PatchGAN, the adversary of SD-VAE (Isola et al., CVPR 2017; Esser et al., VQGAN, CVPR 2021).

Its norms are GroupNorms, not BatchNorms: what it says of an image does not depend on the others in the batch,
and so neither on micro-batches nor on the number of processes.
"""

# b rows of a piece of a batch, H W image, h w grid of patches

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmae.config.autoencoder import smallest_image


class PatchDiscriminator(nn.Module):
    """Says of every patch whether it is real: convolutions, without a look at the whole image.

    Args:
        num_layers: halvings. A patch is 16, 34, 70 or 142 pixels wide at 1, 2, 3 or 4; 3 is the usual for
            256 px, 2 does for 32 to 64 px.
        base_channels: channels after the first halving; they double with each further one, up to eightfold.
    """

    def __init__(self, num_layers: int = 3, base_channels: int = 64) -> None:
        super().__init__()
        self.smallest_image = smallest_image(num_layers)
        """Pixels that an image needs along a side, so that there is at least one patch."""
        widths = [base_channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            stride = 1 if i == num_layers - 1 else 2
            layers += [
                nn.Conv2d(before, after, 4, stride, 1, bias=False),
                nn.GroupNorm(math.gcd(32, after, after // 4), after),  # 4 channels a group or more
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits of patches, (b, 1, h, w), of images (b, 3, H, W) in [-1, 1]; real is positive."""
        return self.layers(images)


def build_discriminator(stage: Any) -> PatchDiscriminator | None:
    """Builds the discriminator of a training, by its settings, whose objective has one."""
    if stage.objective.adversarial_weight == 0:
        return None
    return PatchDiscriminator(stage.discriminator_layers, stage.discriminator_channels)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Computes ½ · (mean max(0, 1 - real) + mean max(0, 1 + fake)) of logits: both (b, 1, h, w) to (b,)."""
    return 0.5 * (F.relu(1 - real).flatten(1).mean(1) + F.relu(1 + fake).flatten(1).mean(1))


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """Computes the negative mean of each reconstruction's logits: (b, 1, h, w) to (b,)."""
    return -fake.flatten(1).mean(1)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """Computes the weight at which the adversary pulls the last layer as hard as the reconstruction does.

    λ = ‖∇ L_reconstruction‖ / (‖∇ L_adversarial‖ + 1e-4), at most 1e4 (VQGAN, equation 7), of the whole
    batch's two gradients by the decoder's last weight.
    """
    ratio = torch.linalg.vector_norm(reconstruction) / (torch.linalg.vector_norm(adversarial) + 1e-4)
    return ratio.clamp(max=1e4).detach()
