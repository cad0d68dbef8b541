"""Settings of the autoencoders: shapes and objectives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ldmae.core.bounds import MOST, MOST_AT_ONCE, Bounded, number
from ldmae.core.errors import UserError, nearest
from ldmae.perception.names import SPATIAL

PIXEL_LOSSES = ("mse", "l1")
EXPANSIONS = ("absolute", "relative")
NETWORKS = ("conv", "vit")
"""What a baseline trains: its own convolutions, or VMAE's transformers."""

KINDS = {"ae": "AE", "dae": "DAE", "vae": "VAE", "sd-vae": "SD-VAE"}
"""The baselines' names in settings, and in tables."""

VAE_PIXEL_STD = 0.16
"""Deviation of the VAE's Gaussian decoder, in images in [-1, 1]; the paper names none.

At the optimum each latent number adds its square to a patch's squared error: 16 times it over 192 numbers
makes about the step from the paper's AE (32.2 dB) to its VAE (29.4 dB).
"""


@dataclass(frozen=True, kw_only=True)
class VMAEConfig(Bounded):
    """The arguments of `AutoencoderVMAE` that a preset chooses; the others follow from the run."""

    group = "autoencoder.model."

    patch_size: int = number(8, ge=1, le=1024)
    """Pixels along a patch's side: the latent grid is that much coarser than the image."""
    latent_channels: int = number(16, ge=1, le=4096)
    """Channels C of the latent."""
    encoder_hidden_size: int = number(192, ge=1, le=65_536)
    """Width of the encoder."""
    encoder_num_hidden_layers: int = number(12, ge=1, le=1000)
    """Blocks of the encoder."""
    encoder_num_attention_heads: int = number(12, ge=1, le=4096)
    """Attention heads of the encoder; they divide its width."""
    decoder_hidden_size: int = number(192, ge=1, le=65_536)
    """Width of the decoder."""
    decoder_num_hidden_layers: int = number(12, ge=1, le=1000)
    """Blocks of the decoder."""
    decoder_num_attention_heads: int = number(12, ge=1, le=4096)
    """Attention heads of the decoder; they divide its width."""
    mlp_ratio: float = number(4.0, gt=0, le=64)
    """Width of a block's hidden layer over the block's width."""
    hidden_act: str = "gelu"
    """Activation of the hidden layers."""
    smooth_output: bool = True
    """End in a 3 × 3 convolution on the image, which removes seams between patches."""
    head_features: int | None = number(None, ge=1, le=1024, hint="null is the paper's head")
    """Features a pixel before that convolution, in place of colours, with a further 3 × 3 convolution on
    them, so that it sees more of both sides of a seam; null: the paper's head."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig(Bounded):
    """How much of an image is hidden."""

    group = "masking."

    ratio: float = number(0.6, ge=0, lt=1, hint="the paper takes 0.6, 0 hides no patch")
    """Share of the patches hidden from the encoder, in [0, 1)."""
    ratio_range: list[float] | None = number(None, ge=-1, lt=1, hint="l-DeTok takes [-0.1, 0.7]")
    """In place of `ratio`: each step draws its share evenly from [low, high]; below 0 counts as 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio_range is not None and not (
            len(self.ratio_range) == 2 and self.ratio_range[0] <= self.ratio_range[1]
        ):
            raise UserError(
                f"masking.ratio_range must be two numbers [low, high], low first, got {self.ratio_range}"
            )

    @property
    def largest(self) -> float:
        """The largest share that a step may hide."""
        return self.ratio if self.ratio_range is None else max(0.0, self.ratio_range[1])


@dataclass(frozen=True, kw_only=True)
class MaskedObjectiveConfig(Bounded):
    """The terms' weights and what they are taken of; the defaults are the paper's."""

    group = "objective."

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """What is hidden from the encoder; a ratio of 0 is plain autoencoding (decoder tuning)."""
    visible_weight: float = number(1.0, ge=0, le=1e6, hint="0 drops it")
    """Weight of L_R, the squared error of visible patches."""
    masked_weight: float = number(1.0, ge=0, le=1e6, hint="0 drops it")
    """λ_M, weight of L_M, the squared error of masked patches."""
    perceptual_weight: float = number(1.0, ge=0, le=1e6, hint="0 drops it")
    """λ_P, weight of L_P, the perceptual distance between the image and the whole decoded image."""
    perceptual: str = "lpips-vgg"
    """The network of the perceptual distance, such as `lpips-vgg` or `st-lpips-alex`."""
    perceptual_rows: int | None = number(None, ge=1, le=MOST_AT_ONCE, hint="null takes all")
    """How many rows of the whole batch get the perceptual term, evenly spread; all where None."""
    kl_weight: float = number(1e-6, ge=0, le=1e6, hint="0 drops it")
    """λ_reg, weight of L_reg, which pulls the posterior's variance to the prior's."""
    prior_std: float = number(1.0, gt=0, le=1000, hint="the paper takes 1")
    """s, the standard deviation that the posterior's is pulled to; the official script has 1e-3."""
    sample_posterior: bool = True
    """Whether a draw from the posterior is decoded rather than its mean."""
    latent_noise: float = number(0.0, ge=0, le=100, hint="0 drops it")
    """Largest deviation of normal noise added before decoding, as a share of the deviation of an
    image's own latents; each draws its share evenly from [0, this]. It readies a tuned decoder for generated
    latents, which are never exact (after RAE, arXiv 2510.11690); the paper has none."""
    interpolation_noise: float = number(0.0, ge=0, le=100, hint="0 drops it, l-DeTok takes 3")
    """γ: (1 − τ) z + τ γ s ε is decoded, with τ drawn evenly from [0, 1] for each image, s the deviation of
    the image's own latents and ε normal noise (l-DeTok, arXiv 2507.15856)."""
    expansion_weight: float = number(0.0, ge=0, le=1e6, hint="0 drops it")
    """λ_V, weight of the mean of 1 / σ², which keeps the posterior's variance from collapsing (arXiv
    2603.21085). It is meant to replace L_reg: set `kl_weight` to 0."""
    expansion: str = "relative"
    """What σ² is there: `absolute`, as in that paper, with a guard of the latents' scale; or `relative`, as a
    share of the variance of the image's own mean latents, which needs no guard."""
    equivariance: float = number(0.0, ge=0, le=1, hint="0 drops it, EQ-VAE takes 0.5")
    """Probability that a training step decodes scaled or turned latents to the image scaled (by ¼ to 1) or
    turned (by quarters) alike (EQ-VAE, arXiv 2502.09509). Nothing is masked in such a step."""
    alignment_weight: float = number(0.0, ge=0, le=1e6, hint="0 drops it, VA-VAE takes 0.1")
    """Weight of the alignment of latents with a frozen network's features (VA-VAE, arXiv 2501.01423), after
    a factor that makes its gradient by the encoder's last layer as large as reconstruction's."""
    alignment: str = "efficientnet_lite0"
    """That network: `efficientnet_lite0`, `dinov2-small`, `dinov2-base`, `dinov2-large` or `dinov2-giant`.
    Metrics on the same network no longer judge the autoencoder fairly."""
    spectrum_weight: float = number(0.0, ge=0, le=1e6, hint="0 drops it, its paper takes 0.01")
    """Weight of the KL between the radial spectra of image and latents (SpectrumMatching)."""
    adversarial_weight: float = number(0.0, ge=0, le=1e6, hint="0 drops it")
    """Weight of the discriminator's term, after the adaptive weight; 0: no discriminator."""
    adversarial_start_step: int = number(0, ge=0, le=MOST, hint="0 has a discriminator from the start")
    """Step from which the discriminator learns and counts; half of the steps is usual in decoder tuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("expansion", EXPANSIONS), ("alignment", SPATIAL)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(
                    f"objective.{name} is {value!r}{nearest(value, known)}; known: {', '.join(known)}"
                )
        if self.expansion_weight > 0 and not self.sample_posterior:
            raise UserError(
                f"objective.expansion_weight={self.expansion_weight} needs sample_posterior=true: without "
                "sampling, nothing limits the variance"
            )

    @property
    def of_encoder(self) -> dict[str, float]:
        """The weights of terms that only an encoder can lower, by name."""
        names = ("expansion_weight", "alignment_weight", "spectrum_weight")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(Bounded):
    """The shape of a baseline; width 1, factor 8 and 16 channels are the paper's, 83.8 M parameters."""

    group = "autoencoder.baseline.model."

    factor: int = number(8, ge=1, le=1024)
    """Pixels of the image along one side of a latent cell; a power of two, for each block halves."""
    latent_channels: int = number(16, ge=1, le=4096)
    """Channels C of the latent."""
    width: float = number(1.0, gt=0, le=64, hint="1 is the paper's")
    """Multiplier of 128, 256, 512, 512 channels; each is rounded to an even number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor & (self.factor - 1):
            powers = [2 ** int(math.log2(self.factor)), 2 ** math.ceil(math.log2(self.factor))]
            near = " or ".join(str(power) for power in dict.fromkeys(powers))
            raise UserError(
                f"factor must be a power of two because each block of an AutoencoderKL halves the image, "
                f"got {self.factor}; take {near}"
            )


@dataclass(frozen=True, kw_only=True)
class ReconstructionObjectiveConfig(Bounded):
    """The terms' weights and what they are taken of; the pixel loss has weight 1."""

    group = "objective."

    pixel_loss: str = "mse"
    """`mse` or `l1`: the mean over pixels and colours of the squared or absolute error, in [-1, 1]."""
    input_noise: float = number(0.0, ge=0, le=100, hint="0 drops it")
    """Deviation of Gaussian noise on the image that is encoded; the clean one is to be restored (DAE)."""
    sample_posterior: bool = True
    """Whether a draw from the posterior is decoded (VAE, SD-VAE) rather than its mean (AE, DAE)."""
    kl_weight: float = number(1e-6, ge=0, le=1e6, hint="0 drops it")
    """Weight of the KL to N(0, 1), summed over channels, averaged over cells; 0 for AE and DAE."""
    variance_kl: bool = False
    """Take the KL of the variance alone, with a free mean: VMAE's L_reg in place of a VAE's."""
    perceptual_weight: float = number(1.0, ge=0, le=1e6, hint="0 drops it")
    """Weight of the perceptual distance between the image and the decoded image."""
    perceptual: str = "lpips-vgg"
    """The network of the perceptual distance, such as `lpips-vgg` or `st-lpips-alex`."""
    perceptual_rows: int | None = number(None, ge=1, le=MOST_AT_ONCE, hint="null takes all")
    """How many rows of the whole batch get the perceptual term, evenly spread; all where None."""
    adversarial_weight: float = number(0.0, ge=0, le=1e6, hint="0 drops it")
    """Weight of the adversary's term, after the adaptive weight; 0: no adversary. The usual is 0.5."""
    adversarial_start_step: int = number(0, ge=0, le=MOST, hint="0 has an adversary from the start")
    """Step from which the adversary learns and is listened to: before, reconstruction warms up alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixel_loss not in PIXEL_LOSSES:
            raise UserError(f"pixel_loss must be {' or '.join(PIXEL_LOSSES)}, got {self.pixel_loss!r}")


def baseline_objective(kind: str, factor: int = 8) -> ReconstructionObjectiveConfig:
    """Returns what sets a baseline apart, its objective, by its name in `KINDS`.

    AE: squared error. DAE: the same, of the clean image from a noisy one. VAE: the negative evidence bound of
    a decoder with deviation `VAE_PIXEL_STD`. SD-VAE: L1 + LPIPS + 1e-6 · KL + the adversary's adaptive term.
    """
    if kind == "ae":
        return ReconstructionObjectiveConfig(sample_posterior=False, kl_weight=0.0, perceptual_weight=0.0)
    if kind == "dae":
        return ReconstructionObjectiveConfig(
            sample_posterior=False, kl_weight=0.0, perceptual_weight=0.0, input_noise=0.1
        )
    if kind == "vae":
        weight = elbo_kl_weight(VAE_PIXEL_STD, factor)
        return ReconstructionObjectiveConfig(kl_weight=weight, perceptual_weight=0.0)
    if kind == "sd-vae":
        return ReconstructionObjectiveConfig(pixel_loss="l1", adversarial_weight=0.5)
    raise UserError(f"there is no baseline {kind!r}; take one of: {', '.join(KINDS)}")


def smallest_image(discriminator_layers: int) -> int:
    """Returns the pixels along a side that a `PatchDiscriminator` needs, to have at least one patch."""
    return 3 * 2**discriminator_layers


def elbo_kl_weight(pixel_std: float, factor: int) -> float:
    """Returns the weight that makes MSE + weight · KL the negative evidence bound, up to its scale.

    The bound of an image is Σ error² / (2 s²) + Σ_cells KL. Times 2 s² / (3 H W) its first term is the mean
    squared error; there are H W / f² cells, so the mean over cells of the KL bears the weight 2 s² / (3 f²).
    """
    return 2 * pixel_std**2 / (3 * factor**2)
