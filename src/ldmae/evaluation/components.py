"""Latents as pictures: their first three principal components as red, green and blue."""

# N images, C latent channels, h w latent grid, H W picture

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ldmae.contracts import Metric
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.compression import flat_latents, standardised, varied_latents
from ldmae.evaluation.groupings import enlarged
from ldmae.evaluation.reconstruction import hwc
from ldmae.evaluation.subject import Subject

_PERCENTILES = (1.0, 99.0)
"""What of a component's values over the set becomes 0 and 255."""


@dataclass(frozen=True)
class Components:
    """The first three principal components of an autoencoder's latents, made by `fit_components`."""

    mean: np.ndarray
    """(C,) of the latents."""
    std: np.ndarray
    """(C,) standard deviation of the latents; 0 where a channel is constant."""
    axes: np.ndarray
    """(C, 3), of length 1, in standardised latents; the loading largest in magnitude is positive. An axis
    that does not exist, for want of channels, is 0."""
    low: np.ndarray
    """(3,) values that become 0."""
    high: np.ndarray
    """(3,) values that become 255."""
    shares: tuple[float, ...]
    """Share of the standardised latents' variance that each of the three explains."""

    def pictures(self, latents: Tensor, size: tuple[int, int]) -> np.ndarray:
        """Shows latents of the same autoencoder.

        Args:
            latents: (N, C, h, w) posterior means.
            size: height and width (H, W) of the pictures; every cell becomes a rectangle of one colour.

        Returns:
            (N, H, W, 3) uint8. A component that does not vary is shown as 128.
        """
        values = flat_latents(latents)
        assert values.shape[1] == len(self.mean), (
            f"fitted on {len(self.mean)} channels, got {values.shape[1]}"
        )
        projected = np.stack([standardised(x, self.mean, self.std) @ self.axes for x in values])
        spread = self.high - self.low
        scaled = np.divide(
            projected - self.low, spread, out=np.full_like(projected, 0.5), where=spread > 1e-9
        )
        colours = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)  # (N, h · w, 3)
        return enlarged(colours.reshape(len(values), *latents.shape[2:], 3), size)


def fit_components(latents: Tensor) -> Components:
    """Finds the principal components of one autoencoder's latents.

    Channels are standardised first, as for σ² and ρ and as a diffusion model sees them: otherwise the channel
    with the largest numbers would be the picture. The result depends on the set of images, not on their order
    (but for the last digits, which no picture shows).

    Args:
        latents: (N, C, h, w) posterior means of the images to fit on; some hundred are plenty.

    Raises:
        UserError: there are no latents, they are not finite, or all the same.
    """
    values, mean, std = varied_latents(latents)
    cells = np.concatenate([standardised(x, mean, std) for x in values])  # (N · h · w, C)
    variances, axes = np.linalg.eigh(cells.T @ cells / len(cells))  # ascending
    shares = np.zeros(3)
    chosen = np.zeros((len(mean), 3))
    count = min(3, len(mean))
    shares[:count] = variances[::-1][:count].clip(min=0) / variances.sum()
    chosen[:, :count] = axes[:, ::-1][:, :count]
    chosen *= np.where(np.take_along_axis(chosen, np.abs(chosen).argmax(axis=0)[None], axis=0) < 0, -1, 1)
    low, high = np.percentile(cells @ chosen, _PERCENTILES, axis=0)
    return Components(mean, std, chosen, low, high, tuple(shares.tolist()))


def _measure(subject: Subject) -> Measured:
    components = fit_components(subject.train_latents[0])
    shown = subject.held_out_latents[subject.shown]
    metrics = [
        Metric(
            name=f"component-{k + 1}-variance",
            value=share,
            counts={"images": len(subject.train_latents[0])},
            note="share of the standardised latents' variance; the three are shown as red, green and blue",
        )
        for k, share in enumerate(components.shares)
    ]
    return Measured(
        metrics,
        {
            "components": components.pictures(shown, (subject.size, subject.size)),
            "originals": hwc(subject.images(subject.chosen[subject.shown])),
        },
    )


COMPONENTS = Measurement(
    name="components",
    title="Principal components",
    measure=_measure,
    reads=frozenset({"images", "latent_images", "seed"}),
)
