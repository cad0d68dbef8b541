"""A new metric: how many of the latents' channels are in use.

ldmae evaluate runs/emoji --only new_metric:EffectiveRank
"""

# N images, C latent channels, h w latent grid

import torch
from torch import Tensor

from ldmae.contracts import Metric
from ldmae.core.autoencoding import normalised
from ldmae.evaluation.api import Measured, Measurement
from ldmae.evaluation.subject import Subject


def effective_rank(latents: Tensor) -> float:
    """Computes exp(entropy) of the covariance's eigenvalues: C if all are alike, 1 if one has all variance.

    Args:
        latents: (N, C, h, w).
    """
    cells = latents.double().movedim(1, -1).flatten(0, -2)  # (N · h · w, C)
    eigenvalues = torch.linalg.eigvalsh(cells.T.cov()).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum()
    return torch.special.entr(shares).sum().exp().item()


def measure(subject: Subject) -> Measured:
    """Measures the posterior means of the held-out images."""
    latents = normalised(subject.autoencoder, subject.held_out_latents.to(subject.device))
    metric = Metric(
        name="effective-rank",
        value=effective_rank(latents),
        better="higher",
        counts={"images": len(latents)},
        reference={"channels": latents.shape[1]},
    )
    return Measured([metric])


EffectiveRank = Measurement(
    name="effective-rank",
    title="Effective rank",
    measure=measure,
    reads=frozenset({"images", "seed"}),  # of evaluation.*: what the metric depends on
)
