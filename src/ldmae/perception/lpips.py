"""Perceptual distances: LPIPS (Zhang et al., CVPR 2018) and shift-tolerant LPIPS (Ghildyal, Liu, ECCV 2022).

A distance compares the features of two images at five depths of a classifier: each position's feature vector
is scaled to length 1, squared differences are weighted per channel, averaged over positions and summed over
depths. The networks here are plain functions of the published weights: frozen, without dropout, and safe to
differentiate where a feature vector is all zero.
"""

# B batch, H W image, C channels of a stage, h w grid of a stage, O output channels

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmae.core.errors import UserError, check_known
from ldmae.core.imports import package_folder
from ldmae.perception.features import published_weights
from ldmae.perception.names import DISTANCES, SMALLEST

_VGG16_STAGES = (2, 2, 3, 3, 3)
"""Convolutions before each reduction (the fifth has none behind it)."""

_Convolutions = Iterator[tuple[Tensor, Tensor]]
"""Weights and biases in the network's order."""


class PerceptualDistance:
    """A frozen perceptual distance between images; no module, so that it enters no checkpoint and no wrapper.

    Attributes:
        name: the name in settings, such as `st-lpips-alex`.
        label: the name in tables, such as `ST-LPIPS-alex`.
    """

    def __init__(self, name: str, trunk: _Trunk) -> None:
        self.name = name
        self.label = DISTANCES[name]
        self._trunk = trunk
        self._copies: dict[torch.dtype, _Trunk] = {torch.float32: trunk}

    def to(self, device: torch.device | str) -> PerceptualDistance:
        """Moves the weights to a device and returns the distance itself."""
        for trunk in self._copies.values():
            trunk.to(device)
        return self

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Computes the distance of each pair, differentiable in both (faster where y needs no gradient).

        Under autocast the convolutions run in its dtype; scaling, norms and sums are always in float32.

        Args:
            x: (B, 3, H, W) images in [-1, 1].
            y: (B, 3, H, W) images in [-1, 1].

        Returns:
            (B,) float32, 0 for equal images.

        Raises:
            UserError: the images are smaller than the network can take.
        """
        self._check(x, y)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        trunk = self._in(dtype)
        with torch.autocast(device, enabled=False):
            features_x = trunk(x, dtype)
            with torch.set_grad_enabled(torch.is_grad_enabled() and y.requires_grad):
                features_y = trunk(y, dtype)
            distance = x.new_zeros(len(x), dtype=torch.float32)
            for fx, fy, weight in zip(features_x, features_y, trunk.channel_weights, strict=True):
                distance = distance + _stage_distance(fx, fy, weight)
        return distance

    def _in(self, dtype: torch.dtype) -> _Trunk:
        # autocast would cast frozen weights anew at every call: it caches only those that require gradients
        if dtype not in self._copies:
            self._copies[dtype] = copy.deepcopy(self._trunk)
            self._copies[dtype].stages.to(dtype)  # image scaling and channel weights stay in float32
        return self._copies[dtype]

    def _check(self, x: Tensor, y: Tensor) -> None:
        assert x.shape == y.shape, f"images to compare must have one shape, got {x.shape} and {y.shape}"
        assert x.shape[1:-2] == (3,), f"expected (B, 3, H, W), got {tuple(x.shape)}"
        smallest = SMALLEST[self.name]
        if min(x.shape[-2:]) < smallest:
            names = [name for name, size in SMALLEST.items() if size <= min(x.shape[-2:])]
            options = f"choose {' or '.join(names)}, or larger images" if names else "take larger images"
            raise UserError(
                f"{self.label} needs images of at least {smallest}x{smallest} pixels, "
                f"got {x.shape[-2]}x{x.shape[-1]}; {options}"
            )


def load_perceptual(name: str, device: torch.device | str = "cpu") -> PerceptualDistance:
    """Loads a perceptual distance.

    Args:
        name: `st-lpips-alex` or `st-lpips-vgg`, whose weights lie in the wheel `stlpips-pytorch`; or
            `lpips-vgg` (the paper's) or `lpips-alex`, whose classifier torchvision fetches once.
        device: where it computes.

    Raises:
        UserError: the name is unknown, or the weights can't be had.
    """
    check_known("perceptual distance", name, DISTANCES)
    family, _, network = name.rpartition("-")
    read = _read_shift_tolerant if family == "st-lpips" else _read_lpips
    convolutions, channel_weights = read(network)
    build = _alexnet if network == "alex" else _vgg16
    trunk = _Trunk(build(iter(convolutions), shift_tolerant=family == "st-lpips"), channel_weights)
    return PerceptualDistance(name, trunk.to(device))


# -------------------------------------------------------------------------------------------- the distance


def _stage_distance(fx: Tensor, fy: Tensor, weight: Tensor) -> Tensor:
    difference = _unit(fx.float()) - _unit(fy.float())  # (B, C, h, w)
    return torch.einsum("bchw,c->bhw", difference.square(), weight).mean(dim=(1, 2))


def _unit(features: Tensor) -> Tensor:
    # The root's slope is infinite at 0, where every channel is off; times the ReLU's slope of 0 that is NaN
    squares = features.square().sum(dim=1, keepdim=True)
    return features / (squares.clamp(min=1e-20).sqrt() + 1e-10)


# -------------------------------------------------------------------------------------------- the networks


class _Trunk(nn.Module):
    """A classifier's convolutions, in stages whose outputs are compared; buffers only: nothing can train."""

    shift: Tensor
    scale: Tensor

    def __init__(self, stages: list[nn.Sequential], channel_weights: list[Tensor]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        # LPIPS's own scaling of images in [-1, 1]: ImageNet's mean and deviation
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        for i, weight in enumerate(channel_weights):
            self.register_buffer(f"channel_weight{i}", weight.flatten())
        self.eval()

    @property
    def channel_weights(self) -> list[Tensor]:
        return [self.get_buffer(f"channel_weight{i}") for i in range(len(self.stages))]

    def forward(self, images: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        x = (images.float() - self.shift) / self.scale
        # channels last: pooling on a CPU is three times as fast in it, and no convolution is slower
        x = x.to(dtype, memory_format=torch.channels_last)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class _Conv(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, padding: int, stride: int = 1) -> None:
        super().__init__()
        self.register_buffer("weight", weight.clone(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.clone())
        self.padding, self.stride = padding, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _Blur(nn.Module):
    """Anti-aliased halving (Zhang, ICML 2019): [1, 2, 1]/4 both ways at every second place, edges mirrored.

    The shift-tolerant networks mirror two pixels instead of one, so no position of the input weighs less than
    others.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = _mirrored_edges(x)
        # [1, 2, 1]/4 is [1, 1]/2 twice: average pooling beats a grouped convolution in bf16
        return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1), 2, stride=2)


def _mirrored_edges(x: Tensor) -> Tensor:
    """Returns x (B, C, H, W) with two rows and columns more on each side, mirrored at the edge."""
    if not torch.are_deterministic_algorithms_enabled():
        return F.pad(x, (2, 2, 2, 2), mode="reflect")
    for dim in (-1, -2):  # on CUDA the above has no gradient that is deterministic: it would raise
        before, after = (x.narrow(dim, start, 2).flip(dim) for start in (1, x.shape[dim] - 3))
        x = torch.cat([before, x, after], dim=dim)
    return x


class _BlurredConv(nn.Module):
    """A convolution of stride 1 followed by `_Blur`, in one convolution of stride 2 with a kernel 2 larger.

    Both are linear, so they merge; the full-size feature map, the costliest of the network, is never made.
    Only where the blur sees its mirrored edge it differs. Let c be the convolution's output of length N in
    one direction. The blur's first value mirrors its second, 1/4 [c0, c1, c2] · [1, 2, 1], exactly. Its last
    one mirrors likewise where N is odd; where N is even it sees c[N-2], c[N-1] and c[N-2] again: 1/2 (c[N-2]
    + c[N-1]), a merged kernel of its own.
    """

    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, padding: int) -> None:
        super().__init__()
        taps = {"blur": (0.25, 0.5, 0.25), "last": (0.5, 0.5)}
        for rows, row_taps in taps.items():
            for columns, column_taps in taps.items():
                merged = _merge(_merge(weight, row_taps, 2), column_taps, 3)
                self.register_buffer(
                    f"{rows}_{columns}", merged.contiguous(memory_format=torch.channels_last)
                )
        self.register_buffer("bias", bias.clone())
        self.padding, self.kernel = padding, weight.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.padding,) * 4)
        last_rows, last_columns = ((size - self.kernel + 1) % 2 == 0 for size in x.shape[-2:])  # N even?
        edge = self.kernel + 1
        out = self._convolve(x, "blur_blur")
        if last_columns:
            out = torch.cat([out, self._convolve(x[..., -edge:], "blur_last")], dim=3)
        if last_rows:
            bottom = self._convolve(x[..., -edge:, :], "last_blur")
            if last_columns:
                bottom = torch.cat([bottom, self._convolve(x[..., -edge:, -edge:], "last_last")], dim=3)
            out = torch.cat([out, bottom], dim=2)
        return F.pad(out, (1, int(not last_columns), 1, int(not last_rows)), mode="replicate")

    def _convolve(self, x: Tensor, kernel: str) -> Tensor:
        weight = self.get_buffer(kernel)
        # A single column needs no stride, and oneDNN's bf16 kernel for AMX is wrong where there is one:
        # https://github.com/pytorch/pytorch/pull/188426
        across = 1 if x.shape[-1] == weight.shape[-1] else 2
        return F.conv2d(x, weight, self.bias, stride=(2, across))


def _merge(weight: Tensor, taps: tuple[float, ...], dim: int) -> Tensor:
    """Returns the kernel (O, C, k, k) convolved with taps along one dimension."""
    shape = list(weight.shape)
    shape[dim] += len(taps) - 1
    merged = weight.new_zeros(shape)
    for i, tap in enumerate(taps):
        merged.narrow(dim, i, weight.shape[dim]).add_(weight, alpha=tap)
    return merged


def _halve(pool: int, *, shift_tolerant: bool) -> list[nn.Module]:
    return [nn.MaxPool2d(pool, stride=1), _Blur()] if shift_tolerant else [nn.MaxPool2d(pool, stride=2)]


def _alexnet(convolutions: _Convolutions, *, shift_tolerant: bool) -> list[nn.Sequential]:
    weight, bias = next(convolutions)
    first = (
        _BlurredConv(weight, bias, padding=2) if shift_tolerant else _Conv(weight, bias, padding=2, stride=4)
    )
    stages = [nn.Sequential(first, nn.ReLU())]
    for i, (weight, bias) in enumerate(convolutions):
        before = _halve(3, shift_tolerant=shift_tolerant) if i < 2 else []
        convolution = _Conv(weight, bias, padding=weight.shape[-1] // 2)
        stages.append(nn.Sequential(*before, convolution, nn.ReLU()))
    return stages


def _vgg16(convolutions: _Convolutions, *, shift_tolerant: bool) -> list[nn.Sequential]:
    stages = []
    for i, count in enumerate(_VGG16_STAGES):
        layers = _halve(2, shift_tolerant=shift_tolerant) if i else []
        for _ in range(count):
            layers += [_Conv(*next(convolutions), padding=1), nn.ReLU()]
        stages.append(nn.Sequential(*layers))
    return stages


# --------------------------------------------------------------------------------------------- the weights


def _read_shift_tolerant(network: str) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    # Only the weight files are taken from this package; it needs undeclared dependencies to import
    path = package_folder("stlpips_pytorch") / "weights" / "vST0.0" / f"{network}_shift_tolerant.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return _convolutions(state, "net."), _channel_weights(state)


def _read_lpips(network: str) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    import torchvision

    weights = (
        torchvision.models.AlexNet_Weights if network == "alex" else torchvision.models.VGG16_Weights
    ).IMAGENET1K_V1
    what = f"torchvision's classifier for LPIPS-{network}"
    _, state = published_weights(
        weights.url, what, "another `perceptual`, as st-lpips-alex, which needs no download"
    )
    file = package_folder("lpips") / "weights" / "v0.1" / f"{network}.pth"
    channel_weights = _channel_weights(torch.load(file, map_location="cpu", weights_only=True))
    return _convolutions(state, "features."), channel_weights


def _convolutions(state: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    names = [
        key.removesuffix(".weight") for key in state if key.startswith(prefix) and key.endswith(".weight")
    ]
    return [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names]


def _channel_weights(state: dict[str, Tensor]) -> list[Tensor]:
    return [state[f"lin{i}.model.1.weight"] for i in range(len(_VGG16_STAGES))]
