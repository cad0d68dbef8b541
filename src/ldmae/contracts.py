"""The few types that cross folders."""

# B batch, C latent channels, h w latent grid

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # import ldmae stays fast
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor


@runtime_checkable  # diffusers checks the parts of a pipeline against their annotations
class Autoencoder(Protocol):
    """What diffusers' autoencoders and ours have in common.

    `encode(x)` takes images (B, 3, H, W) in [-1, 1] and returns an object with `latent_dist` (mode, sample)
    or `latent`; `decode(z)` takes latents (B, C, h, w) and returns an object with `sample`, images (B, 3, H,
    W).
    """

    config: Any

    def encode(self, x: Tensor, /) -> Any:
        """Encodes images."""
        ...

    def decode(self, z: Tensor, /) -> Any:
        """Decodes latents."""
        ...


class ImageSource(Protocol):
    """Images with random access: a folder, a built-in set, a table, tar shards."""

    name: str
    """What to call it in reports."""
    licence: str
    """Licence or origin of the images, or an empty string where it is not known."""
    classes: list[str]
    """Class names; a label is an index into them."""
    labels: np.ndarray
    """(N,) int64; -1 where an image bears no class (it trains the autoencoder only)."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image:
        """Returns the image as a viewer shows it: RGB, upright, alpha composited on white."""
        ...

    def describe(self, index: int) -> str:
        """Returns what an error message calls the image: its path, or shard and member."""
        ...

    def fingerprint(self) -> str:
        """Returns a hash of contents and labels: changes where inputs changed, whatever their names."""
        ...


@dataclass(frozen=True)
class BatchKeys:
    """Where in the training a piece of a batch stands: the key of all its randomness."""

    seed: int
    step: int
    rows: Sequence[int]
    """The piece's rows in the whole batch of the step, over all processes and micro-batches."""
    batch_size: int
    """Rows of the whole batch."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective returns for a piece of a batch.

    Both are SHARES of the whole batch's means: summed over all pieces of the batch (micro-batches, processes)
    they give the mean over `batch_size` rows. A mean over the b rows of a piece is thus weighted with b /
    batch_size.
    """

    loss: Tensor
    """(), weighted sum, to differentiate."""
    terms: dict[str, Tensor]
    """Detached, unweighted, by name."""


RESULTS_SCHEMA = 2
"""Version of the files that hold metrics; raised when their format changes."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured value, with what a reader must know to judge it (docs/reference/results-format.md)."""

    name: str
    """As the literature calls it, such as `PSNR` or `KID-efficientnet_lite0`."""
    value: float
    unit: str = ""
    better: str = ""
    """`higher`, `lower`, or empty where neither is."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many images it was computed on, by kind: `{"generated": 1000, "real": 1037}`."""
    spread: dict[str, float] = field(default_factory=dict)
    """How far it would vary, by kind: `{"standard deviation over subsets": 0.002}`."""
    reference: dict[str, float] = field(default_factory=dict)
    """The same measure of something known, to compare with, by kind: `{"held-out images": 0.01}`."""
    trained_on_metric: bool = False
    """Whether the autoencoder was trained on the metric that judges it."""
    note: str = ""
    """Further remarks for the reader; text that may change."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the metric as plain JSON types."""
        return asdict(self)
