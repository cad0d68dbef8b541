"""iFID: whether what lies between latents decodes to images, a forecast of generation without a generator.

For each held-out image one of its nearest training latents is drawn, the point halfway between both is
decoded, and the decoded images are compared with the held-out ones as two sets (arXiv 2603.05630).
"""

# B batch, N training images, C latent channels, h w latent grid, D = C · h · w, k neighbours

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ldmae.core.autoencoding import decode
from ldmae.core.errors import check_enough
from ldmae.core.random import generator
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.distances import FEWEST_IMAGES
from ldmae.evaluation.reconstruction import feature_distances, to_uint8
from ldmae.evaluation.subject import Subject

_NEIGHBOURS = 10
"""k, the paper's."""

_PARALLEL = 1e-6
"""Below this sine of the angle, slerp is linear."""


def _nearest_latents(
    latents: Tensor,
    training: Tensor,
    neighbours: int = _NEIGHBOURS,
    alike: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Returns the training latents nearest by cosine over the whole flattened latent, (B, k) int64.

    `alike` numbers the groups of near-duplicates of both, (B,) and (N,), which are no neighbours.
    """
    ours, theirs = (torch.nn.functional.normalize(z.flatten(1).float(), dim=1) for z in (latents, training))
    cosines = ours @ theirs.T  # (B, N)
    if alike is not None:
        cosines[alike[0][:, None] == alike[1]] = -torch.inf
    others = int(cosines.isfinite().sum(dim=1).min())
    check_enough("iFID", 1, others, "training image beside an image's near-duplicates", "give more")
    return cosines.topk(min(neighbours, others), dim=1).indices


def _choose_neighbours(
    latents: Tensor, training: Tensor, nearest: Tensor, keys: Sequence[str], seed: int = 0
) -> Tensor:
    """Draws one neighbour for each latent, (B,), with probability softmax(−mean squared difference).

    `nearest` (B, k) are indices of training latents; an image's draw depends on the seed and its key alone.
    """
    squares = torch.stack(  # (B, k); image by image, for k training latents of each would not fit into memory
        [(training[of] - z).square().flatten(1).mean(dim=1) for of, z in zip(nearest, latents, strict=True)]
    )
    cumulative = torch.softmax(-squares.double(), dim=1).cumsum(dim=1)
    draws = [torch.rand((), generator=generator(seed, "iFID", key), dtype=torch.float64) for key in keys]
    places = torch.searchsorted(cumulative, torch.stack(draws)[:, None]).clamp(max=nearest.shape[1] - 1)
    return nearest.gather(1, places)[:, 0]


def _slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Interpolates latents (B, C, h, w) on the arc between their directions; lengths follow.

    sin((1 − t) θ) / sin θ · z₁ + sin(t θ) / sin θ · z₂ with θ the angle between the flattened latents; linear
    where sin θ < 1e-6.
    """
    units = [torch.nn.functional.normalize(z.flatten(1).double(), dim=1) for z in (first, second)]
    angle = (units[0] * units[1]).sum(dim=1).clamp(-1, 1).acos()  # (B,)
    sine = angle.sin()
    straight = sine < _PARALLEL
    safe = torch.where(straight, torch.ones_like(sine), sine)
    weights = [
        torch.where(straight, torch.full_like(sine, linear), (linear * angle).sin() / safe)
        for linear in (1 - t, t)
    ]
    shape = (-1, *[1] * (first.ndim - 1))
    one, other = (w.view(shape).to(first.dtype) for w in weights)
    return one * first + other * second


@torch.no_grad()
def _measure(subject: Subject) -> Measured:
    """Returns `iKID`, and `iFID` where there are enough images, by the names of the network."""
    extractor, config = subject.features, subject.config
    training, latents = subject.train_latents[0], subject.held_out_latents
    check_enough("iFID", FEWEST_IMAGES, len(latents), "held-out images", "hold out more")
    check_enough("iFID", 2, len(training), "training images", "give more")
    assert extractor is not None  # which only too few images lack
    alike = None
    if subject.train is subject.held_out:
        group = getattr(subject.held_out, "group", None)
        group = np.arange(len(subject.held_out)) if group is None else pd.factorize(np.asarray(group))[0]
        alike = torch.tensor(group[subject.chosen]), torch.tensor(group[subject.train_drawn])
    keys = [subject.keys[row] for row in subject.chosen]
    nearest = _nearest_latents(latents, training, alike=alike)
    partners = _choose_neighbours(latents, training, nearest, keys, config.seed)
    decoded, originals, done = [], [], 0
    for rows, images in subject.batches("iFID"):
        here = slice(done, done + len(rows))
        halfway = _slerp(latents[here], training[partners[here]], 0.5)
        decoded.append(extractor(to_uint8(decode(subject.autoencoder, halfway.to(subject.device)))).cpu())
        originals.append(extractor(to_uint8(images)).cpu())
        done += len(rows)
    how = extractor, config.seed, config.shrink_covariance, "i", subject.trained_on
    return Measured(feature_distances(torch.cat(decoded), torch.cat(originals), *how))


IFID = Measurement(
    name="ifid",
    title="Between nearest latents",
    measure=_measure,
    reads=frozenset({"features", "shrink_covariance", "images", "latent_images", "seed"}),
    needs=("features",),
)
