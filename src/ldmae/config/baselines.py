"""The objectives that set the paper's baselines apart."""

from __future__ import annotations

from typing import Any

from ldmae.config.autoencoder import KINDS, ReconstructionObjectiveConfig
from ldmae.core.errors import UserError

_VAE_PIXEL_STD = 0.16
"""Standard deviation of the VAE's Gaussian decoder, in images in [-1, 1]; the paper names none.

At the optimum each latent number adds its square to a patch's squared error: 16 times it over 192 numbers
makes about the step from the paper's AE (32.2 dB) to its VAE (29.4 dB).
"""


def baseline_objective(kind: str, factor: int = 8) -> ReconstructionObjectiveConfig:
    """Returns what sets a baseline apart, its objective, by its name in `KINDS`.

    AE: squared error. DAE: the same, of the clean image from a noisy one. VAE: the negative evidence bound of
    a decoder with deviation `_VAE_PIXEL_STD`. SD-VAE: L1 + LPIPS + 1e-6 · KL + the adversary's adaptive term.
    """
    plain = {"sample_posterior": False, "kl_weight": 0.0, "perceptual_weight": 0.0}
    objectives: dict[str, dict[str, Any]] = {
        "ae": plain,
        "dae": plain | {"input_noise": 0.1},
        "vae": {"kl_weight": _elbo_kl_weight(_VAE_PIXEL_STD, factor), "perceptual_weight": 0.0},
        "sd-vae": {"pixel_loss": "l1", "adversarial_weight": 0.5},
    }
    if kind not in objectives:
        raise UserError(f"there is no baseline {kind!r}; take one of: {', '.join(KINDS)}")
    return ReconstructionObjectiveConfig(**objectives[kind])


def _elbo_kl_weight(pixel_std: float, factor: int) -> float:
    """Returns the weight that makes MSE + weight · KL the negative evidence bound, up to its scale.

    The bound of an image is Σ error² / (2 s²) + Σ_cells KL. Times 2 s² / (3 H W) its first term is the mean
    squared error; there are H W / f² cells, so the mean over cells of the KL bears the weight 2 s² / (3 f²).
    """
    return 2 * pixel_std**2 / (3 * factor**2)
