"""Settings of the autoencoders: shapes, objectives, trainings."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ldmae.config.base import (
    NUMBER,
    Batch,
    Cells,
    Channels,
    CountOrZero,
    Factor,
    Layers,
    Noise,
    Pixels,
    Range,
    Settings,
    Share,
    ShareBelowOne,
    Weight,
    Width,
)
from ldmae.config.data import AugmentConfig
from ldmae.config.evaluation import Distance
from ldmae.config.registry import AUTOENCODERS, OneOf
from ldmae.config.training import CheckpointConfig, OptimizerConfig, TrainingConfig

_Logvar = Annotated[float, Field(ge=-30, le=20), NUMBER]
KINDS = {"ae": "AE", "dae": "DAE", "vae": "VAE", "sd-vae": "SD-VAE"}
"""The baselines' names in settings, and in tables."""


class VMAEConfig(Settings):
    """The arguments of `AutoencoderVMAE` that a preset chooses; the others follow from the run."""

    patch_size: Cells = 8
    """Pixels along a patch's side: the latent grid is that much coarser than the image."""
    latent_channels: Channels = 16
    """Channels C of the latent."""
    encoder_hidden_size: Width = 192
    """Width of the encoder."""
    encoder_num_hidden_layers: Layers = 12
    """Blocks of the encoder."""
    encoder_num_attention_heads: Channels = 12
    """Attention heads of the encoder; they divide its width."""
    decoder_hidden_size: Width = 192
    """Width of the decoder."""
    decoder_num_hidden_layers: Layers = 12
    """Blocks of the decoder."""
    decoder_num_attention_heads: Channels = 12
    """Attention heads of the decoder; they divide its width."""
    mlp_ratio: Factor = 4.0
    """Width of a block's hidden layer over the block's width; the paper takes 4."""
    hidden_act: str = "gelu"
    """Activation of the hidden layers."""
    smooth_output: bool = True
    """End in a 3 × 3 convolution on the image, which removes seams between patches."""
    head_features: Cells | None = None
    """Features a pixel before that convolution, in place of colours, with a further 3 × 3 convolution on
    them, so that it sees more of both sides of a seam; null: the paper's head."""

    @model_validator(mode="after")
    def _sizes_go_together(self) -> Self:
        for side in ("encoder", "decoder"):
            width = getattr(self, f"{side}_hidden_size")
            heads = getattr(self, f"{side}_num_attention_heads")
            if width % heads or width % 4:
                raise ValueError(
                    f"{side}_hidden_size={width} must be a multiple of 4 (positions) and of "
                    f"{side}_num_attention_heads={heads}; change one of them"
                )
            if width * self.mlp_ratio < 1:
                raise ValueError(f"mlp_ratio={self.mlp_ratio} must leave hidden units; the paper takes 4")
        if self.head_features is not None and not self.smooth_output:
            raise ValueError(
                f"head_features={self.head_features} needs smooth_output=True: its features become pixels by "
                "a convolution"
            )
        return self


class MaskingConfig(Settings):
    """How much of an image is hidden."""

    ratio: ShareBelowOne = 0.6
    """Share of the patches hidden from the encoder, in [0, 1); the paper takes 0.6, 0 hides no patch."""
    ratio_range: Range[Annotated[float, Field(ge=-1, lt=1), NUMBER]] | None = None
    """In place of `ratio`: each step draws its share evenly from [low, high]; below 0 counts as 0. l-DeTok
    takes [-0.1, 0.7]."""

    @property
    def largest(self) -> float:
        """The largest share that a step may hide."""
        return self.ratio if self.ratio_range is None else max(0.0, self.ratio_range[1])


class MaskedObjectiveConfig(Settings):
    """The terms' weights and what they are taken of; the defaults are the paper's."""

    masking: MaskingConfig = MaskingConfig()
    """What is hidden from the encoder; a ratio of 0 is plain autoencoding (decoder tuning)."""
    visible_weight: Weight = 1.0
    """Weight of L_R, the squared error of visible patches."""
    masked_weight: Weight = 1.0
    """λ_M, weight of L_M, the squared error of masked patches."""
    perceptual_weight: Weight = 1.0
    """λ_P, weight of L_P, the perceptual distance between the image and the whole decoded image."""
    perceptual: Distance = "lpips-vgg"
    """The network of the perceptual distance."""
    perceptual_rows: Batch | None = None
    """How many rows of the whole batch get the perceptual term, evenly spread; null: all."""
    kl_weight: Weight = 1e-6
    """λ_reg, weight of L_reg, which pulls the posterior's variance to the prior's."""
    prior_std: Annotated[float, Field(gt=0, le=1000), NUMBER] = 1.0
    """s, the standard deviation that the posterior's is pulled to: the paper has 1, the official script
    1e-3."""
    sample_posterior: bool = True
    """Whether a draw from the posterior is decoded rather than its mean."""
    latent_noise: Noise = 0.0
    """Largest standard deviation of normal noise added before decoding, as a share of the standard deviation
    of an image's own latents; each draws its share evenly from [0, this]. It readies a tuned decoder for
    generated latents, which are never exact (after RAE, arXiv 2510.11690); the paper has none."""
    interpolation_noise: Noise = 0.0
    """γ: (1 − τ) z + τ γ s ε is decoded, with τ drawn evenly from [0, 1] for each image, s the standard
    deviation of the image's own latents and ε normal noise (l-DeTok, arXiv 2507.15856, takes 3)."""
    expansion_weight: Weight = 0.0
    """λ_V, weight of the mean of 1 / (σ² + 10⁻⁴), which keeps the posterior's variance from collapsing (arXiv
    2603.21085). It is meant to replace L_reg: set `kl_weight` to 0."""
    expansion: Literal["absolute", "relative"] = "relative"
    """What σ² is there: `absolute`, as in that paper, with a guard of the latents' scale; or `relative`, as a
    share of the variance of the image's own mean latents, which needs no guard."""
    equivariance: Share = 0.0
    """Probability that a training step decodes scaled or turned latents to the image scaled (by ¼ to 1) or
    turned (by quarters) alike (EQ-VAE, arXiv 2502.09509, takes 0.5). Nothing is masked in such a step."""
    alignment_weight: Weight = 0.0
    """Weight of the alignment of latents with a frozen network's features (VA-VAE, arXiv 2501.01423, takes
    0.1), after a factor that makes its gradient by the encoder's last layer as large as reconstruction's."""
    alignment: Literal[
        "efficientnet_lite0", "dinov2-small", "dinov2-base", "dinov2-large", "dinov2-giant"
    ] = "efficientnet_lite0"
    """That network. Metrics on the same network no longer judge the autoencoder fairly."""
    spectrum_weight: Weight = 0.0
    """Weight of the KL between the radial spectra of image and latents (SpectrumMatching, which takes
    0.01)."""
    adversarial_weight: Weight = 0.0
    """Weight of the discriminator's term, after the adaptive weight; 0: no discriminator."""
    adversarial_start_step: CountOrZero = 0
    """Step from which the discriminator learns and counts; half of the steps is usual in decoder tuning."""

    @model_validator(mode="after")
    def _expansion_has_a_draw(self) -> Self:
        if self.expansion_weight > 0 and not self.sample_posterior:
            raise ValueError(
                f"expansion_weight={self.expansion_weight} needs sample_posterior=true: without "
                "sampling, nothing limits the variance"
            )
        return self


class BaselineConfig(Settings):
    """The shape of a baseline; width 1, factor 8 and 16 channels are the paper's, 83.8 M parameters."""

    factor: Cells = 8
    """Pixels of the image along one side of a latent cell; a power of two, for each block halves."""
    latent_channels: Channels = 16
    """Channels C of the latent."""
    width: Factor = 1.0
    """Multiplier of 128, 256, 512, 512 channels; each is rounded to an even number. 1 is the paper's."""

    @model_validator(mode="after")
    def _factor_is_a_power_of_two(self) -> Self:
        if self.factor & (self.factor - 1):
            powers = 2 ** int(math.log2(self.factor)), 2 ** math.ceil(math.log2(self.factor))
            raise ValueError(
                "factor must be a power of two because each block of an AutoencoderKL halves the image, "
                f"got {self.factor}; take {powers[0]} or {powers[1]}"
            )
        return self


class _RestorationConfig(Settings):
    """What compares the decoded image with the image; the pixel loss has weight 1."""

    pixel_loss: Literal["mse", "l1"] = "mse"
    """The mean over pixels and colours of the squared or absolute error, in [-1, 1]."""
    perceptual_weight: Weight = 1.0
    """Weight of the perceptual distance between the image and the decoded image."""
    perceptual: Distance = "lpips-vgg"
    """The network of the perceptual distance."""
    perceptual_rows: Batch | None = None
    """How many rows of the whole batch get the perceptual term, evenly spread; null: all."""
    adversarial_weight: Weight = 0.0
    """Weight of the discriminator's term, after the adaptive weight; 0: no discriminator. Usual: 0.5."""
    adversarial_start_step: CountOrZero = 0
    """Step from which the discriminator learns and counts: before, reconstruction warms up alone."""


class ReconstructionObjectiveConfig(_RestorationConfig):
    """The terms' weights and what they are taken of."""

    input_noise: Noise = 0.0
    """Standard deviation of Gaussian noise on the image that is encoded; the clean one is to be restored
    (DAE)."""
    sample_posterior: bool = True
    """Whether a draw from the posterior is decoded (VAE, SD-VAE) rather than its mean (AE, DAE)."""
    kl_weight: Weight = 1e-6
    """Weight of the KL to N(0, 1), summed over channels, averaged over cells; 0 for AE and DAE."""
    variance_kl: bool = False
    """Take the KL of the variance alone, with a free mean: VMAE's L_reg in place of a VAE's."""


class DecoderObjectiveConfig(_RestorationConfig):
    """The terms' weights and what they are taken of, where the decoder alone is trained."""

    pixel_loss: Literal["mse", "l1"] = "l1"
    """The mean over pixels and colours of the squared or absolute error, in [-1, 1]."""
    perceptual: Distance = "st-lpips-alex"
    """The network of the perceptual distance."""
    latent_noise: Noise = 0.0
    """Largest standard deviation of normal noise added before decoding, as a share of the standard deviation
    of an image's own latents; each draws its share evenly from [0, this] (arXiv 2510.11690)."""


class _StageConfig(Settings):
    """What every training of an autoencoder has, beside its objective."""

    discriminator_layers: Annotated[int, Field(ge=1, le=10), NUMBER] = 2
    """Halvings of the discriminator, where the objective has one: 2 for 32 to 64 px, 3 for 256 px."""
    discriminator_channels: Annotated[int, Field(ge=1, le=8192), NUMBER] = 64
    """Its channels after the first halving."""
    augment: AugmentConfig = AugmentConfig()
    """Random crops and mirror images."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch, optimizer."""


class PretrainingConfig(_StageConfig):
    """Masked pre-training of the whole autoencoder."""

    image_size: Pixels | None = None
    """Pixels along an image's side; null: the run's."""
    initial_logvar: _Logvar | None = None
    """Log variance of the posterior at the start (its bias); null: 0, as the official code. A small training
    starts sooner with -4."""
    objective: MaskedObjectiveConfig = MaskedObjectiveConfig()
    """Weights of the loss's terms, and the share of masked patches."""


class TuningConfig(_StageConfig):
    """Decoder tuning at the run's image size: no mask, posterior mean."""

    enabled: bool = True
    """False: the pre-trained autoencoder is the final one."""
    freeze_encoder: bool = True
    """Train the decoder alone, so that the latents stay what they are."""
    objective: MaskedObjectiveConfig = MaskedObjectiveConfig(
        masking=MaskingConfig(ratio=0.0), sample_posterior=False
    )
    """Weights of the loss's terms."""


class BaselineTrainingConfig(_StageConfig):
    """Training of one of the paper's baselines, at the run's image size; `autoencoder.kind` says which."""

    network: Literal["conv", "vit"] = "conv"
    """What is trained: `conv`, the convolutional autoencoder of the shape `model`, or `vit`, VMAE's network,
    of the shape `autoencoder.model`."""
    model: BaselineConfig = BaselineConfig()
    """Its shape."""
    initial_logvar: _Logvar | None = None
    """Log variance of the posterior at the start (its bias); null: torch's, near 0. AE and DAE have none."""
    objective: ReconstructionObjectiveConfig = ReconstructionObjectiveConfig()
    """Weights of the loss's terms; what is not set is as the kind has it."""


class DecoderTrainingConfig(_StageConfig):
    """Training of the decoder alone of `autoencoder.init`, at the run's image size; its latents stay."""

    gradient_checkpointing: bool = False
    """Compute the decoder's activations again in the backward pass: less memory, slower steps. Not every
    class of diffusers has it."""
    objective: DecoderObjectiveConfig = DecoderObjectiveConfig()
    """Weights of the loss's terms."""
    training: TrainingConfig = TrainingConfig(
        steps=2000,
        batch_size=16,
        ema_decay=0.995,
        optimizer=OptimizerConfig(schedule="cosine", warmup_steps=100, gradient_clip=1.0),
        checkpoint=CheckpointConfig(every_steps=200),
    )
    """Steps, batch, optimizer."""


class AutoencoderConfig(Settings):
    """The autoencoder: its shape and its trainings, or where to take it from."""

    kind: Annotated[str, OneOf(AUTOENCODERS)] = "vmae"
    """What is trained: `vmae`, a baseline, `decoder` (of `init`, alone), or `package.module:Name`, a class of
    yours."""
    options: dict[str, Any] = {}
    """Settings of a class of yours: fields of its `Config`."""
    source: str | None = None
    """Take this one as it is, train none: a run folder, a diffusers folder or Hub name, `official:FILE`,
    `pretrained:NAME`, or `package.module:Name`, a class or function of yours."""
    init: str | None = None
    """Start training from this autoencoder (same forms as `source`), whose shape is then that of `model`, or
    of `baseline.model`. The run folder keeps a copy."""
    taught_by: list[str] | None = None
    """Networks that `source` or `init` was trained with, such as `lpips-vgg`: metrics by them bear a mark.
    null: what its settings say, where it has any."""
    model: VMAEConfig = VMAEConfig()
    """Its shape."""
    pretraining: PretrainingConfig = PretrainingConfig()
    """First stage."""
    tuning: TuningConfig = TuningConfig()
    """Second stage."""
    baseline: BaselineTrainingConfig = BaselineTrainingConfig()
    """The one stage of a baseline, in place of both."""
    decoder: DecoderTrainingConfig = DecoderTrainingConfig()
    """The one stage of `kind=decoder`."""

    @property
    def own_kind(self) -> str | None:
        """The user's own class that is trained; None where it is the package's, or taken as it is."""
        return None if self.kind in AUTOENCODERS or self.source is not None else self.kind

    @property
    def stages(self) -> tuple[str, ...]:
        """The package's trainings that make it, by the names of their settings."""
        if self.source is not None or self.own_kind is not None:
            return ()
        return {"vmae": ("pretraining", "tuning"), "decoder": ("decoder",)}.get(self.kind, ("baseline",))

    @property
    def has_shape(self) -> bool:
        """Whether the settings give the shape of what is trained."""
        return bool(self.stages) and self.kind != "decoder"

    @property
    def is_vit(self) -> bool:
        """Whether VMAE's network is trained, by its own objective or by a baseline's."""
        return self.kind == "vmae" or self.baseline.network == "vit"

    @property
    def patch_size(self) -> int:
        """Pixels of the image along one side of a latent cell; that of the network which is trained."""
        return self.model.patch_size if self.is_vit else self.baseline.model.factor

    @property
    def latent_channels(self) -> int:
        """Channels of the latents; those of the network which is trained."""
        return self.model.latent_channels if self.is_vit else self.baseline.model.latent_channels


def smallest_image(discriminator_layers: int) -> int:
    """Returns the pixels along a side that a `PatchDiscriminator` needs, to have at least one patch."""
    return 3 * 2**discriminator_layers
