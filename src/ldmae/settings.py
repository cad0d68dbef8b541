"""The settings of a run, gathered from the stages, and the checks that join stages."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ldmae.autoencoders.settings import (
    KINDS,
    NETWORKS,
    BaselineConfig,
    MaskedObjectiveConfig,
    MaskingConfig,
    ReconstructionObjectiveConfig,
    VMAEConfig,
    smallest_image,
)
from ldmae.core.bounds import MOST, MOST_PIXELS, SEEDS, Bounded, number
from ldmae.core.errors import UserError, nearest
from ldmae.diffusion.settings import FlowConfig, LightningDiTConfig, SamplingConfig
from ldmae.evaluation.settings import EvaluationConfig
from ldmae.images.settings import AugmentConfig, DataConfig
from ldmae.latents.settings import LatentsConfig
from ldmae.perception.names import SMALLEST
from ldmae.training.settings import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(Bounded):
    """The shape of the discriminator of a training whose objective has an `adversarial_weight`."""

    discriminator_layers: int = number(2, ge=1, le=10)
    """Halvings of the adversary, where the objective has one: 2 for 32 to 64 px, 3 for 256 px."""
    discriminator_channels: int = number(64, ge=1, le=8192)
    """Its channels after the first halving."""


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(DiscriminatorConfig):
    """Masked pre-training of the whole autoencoder."""

    group = "autoencoder.pretraining."

    image_size: int | None = number(None, ge=1, le=MOST_PIXELS)
    """Pixels along an image's side; null: the run's."""
    initial_logvar: float | None = number(None, ge=-30, le=20, hint="-4 starts soon")
    """Log variance of the posterior at the start (its bias); null: 0, as the official code."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and mirror images."""
    objective: MaskedObjectiveConfig = field(default_factory=MaskedObjectiveConfig)
    """Weights of the loss's terms, and the share of masked patches."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batch, optimizer."""


def _unmasked() -> MaskedObjectiveConfig:
    return MaskedObjectiveConfig(masking=MaskingConfig(ratio=0.0), sample_posterior=False)


@dataclass(frozen=True, kw_only=True)
class TuningConfig(DiscriminatorConfig):
    """Decoder tuning at the run's image size: no mask, posterior mean."""

    group = "autoencoder.tuning."

    enabled: bool = True
    """False: the pre-trained autoencoder is the final one."""
    freeze_encoder: bool = True
    """Train the decoder alone, so that the latents stay what they are."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and mirror images."""
    objective: MaskedObjectiveConfig = field(default_factory=_unmasked)
    """Weights of the loss's terms."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batch, optimizer."""


@dataclass(frozen=True, kw_only=True)
class BaselineTrainingConfig(DiscriminatorConfig):
    """Training of one of the paper's baselines, at the run's image size; `autoencoder.kind` says which."""

    group = "autoencoder.baseline."

    network: str = "conv"
    """What is trained: `conv`, the convolutional autoencoder of the shape `model`, or `vit`, VMAE's network,
    of the shape `autoencoder.model`."""
    model: BaselineConfig = field(default_factory=BaselineConfig)
    """Its shape."""
    initial_logvar: float | None = number(None, ge=-30, le=20, hint="-4 starts soon")
    """Log variance of the posterior at the start (its bias); null: torch's, near 0. AE and DAE have none."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and mirror images."""
    objective: ReconstructionObjectiveConfig = field(default_factory=ReconstructionObjectiveConfig)
    """Weights of the loss's terms; what is not set is as the kind has it."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batch, optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network not in NETWORKS:
            raise UserError(
                f"{self.group}network must be {' or '.join(NETWORKS)}, got {self.network!r}"
                f"{nearest(self.network, NETWORKS)}"
            )


AUTOENCODER_KINDS = ("vmae", *KINDS)
ABLATION = (
    "vmae-mse",
    "vmae-lm",
    "vmae-lm-lreg",
    "vmae-noise",
    "vit-ae",
    "vit-dae",
    "vit-vae",
    "vit-vmae-no-mask",
    "vit-vmae-no-noise",
    "conv-vmae-loss",
    "vmae-expansion",
    "vmae-expansion-absolute",
    "vmae-noise-pretraining",
    "vmae-interpolation",
    "vmae-discriminator",
    "vmae-wide-head",
    "vmae-equivariance",
    "vmae-alignment",
    "vmae-spectrum",
)
"""VMAE with the squared error alone; with masked patches, L_M; with the variance's KL, L_reg, too. Then what
the paper does not have, each told in `recipes/variants.py`."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The autoencoder: its shape and its trainings, or where to take it from."""

    kind: str = "vmae"
    """What is trained: `vmae`, or a baseline: `ae`, `dae`, `vae`, `sd-vae`."""
    source: str | None = None
    """Take this one as it is, train none: a run folder, a diffusers folder or Hub name, `official:FILE`,
    `pretrained:NAME`, or `package.module:Name`, a class or function of yours."""
    init: str | None = None
    """Start training from this VMAE (same forms as `source`); its own shape holds, and `model` and
    `pretraining.initial_logvar` say nothing."""
    model: VMAEConfig = field(default_factory=VMAEConfig)
    """Its shape."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """First stage."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Second stage."""
    baseline: BaselineTrainingConfig = field(default_factory=BaselineTrainingConfig)
    """The one stage of a baseline, in place of both."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The trainings that make it, by the names of their settings; none where it is taken as it is."""
        if self.source is not None:
            return ()
        return ("pretraining", "tuning") if self.kind == "vmae" else ("baseline",)

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


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The diffusion model: its shape, its objective, its training."""

    model: LightningDiTConfig = field(default_factory=LightningDiTConfig)
    """Its shape."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Flow matching: the density of the times."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batch, optimizer."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig(Bounded):
    """What `ldmae compare` sets side by side; a single run takes no notice of it."""

    group = "comparison."

    autoencoders: list[str] = field(default_factory=lambda: [*KINDS, "vmae"])
    """Autoencoders, each with a diffusion model of its own: `ae`, `dae`, `vae`, `sd-vae`, `vmae`."""
    seeds: list[int] = number([0], **SEEDS)
    """Each autoencoder is trained and measured once with each."""
    ablation: list[str] = field(default_factory=list)
    """Steps on the way to VMAE: `vmae-mse`, `vmae-lm`, `vmae-lm-lreg`, then `vmae` itself. Beyond the paper,
    VMAE with one change: `vmae-noise` (in tuning), `vmae-noise-pretraining`, `vmae-interpolation`,
    `vmae-expansion`, `vmae-expansion-absolute`, `vmae-discriminator`, `vmae-wide-head`, `vmae-equivariance`,
    `vmae-alignment`, `vmae-spectrum`. Objectives on VMAE's network: `vit-ae`, `vit-dae`, `vit-vae`,
    `vit-vmae-no-mask`, `vit-vmae-no-noise`; VMAE's loss on convolutions: `conv-vmae-loss`."""
    ablation_seeds: list[int] = number([0], **SEEDS)
    """The seeds of the ablation."""
    match_flops: bool = True
    """Shrink the baselines until encode and decode cost as many operations as the VMAE's; false: as wide as
    `autoencoder.baseline.model.width` says."""
    checkpoints: list[float] = number([], gt=0, le=1)
    """Shares of the diffusion model's steps after which KID of a few samples is measured, for its curve."""
    checkpoint_samples: int = number(500, ge=10, le=MOST)
    """Generated images, and real ones, for each point of that curve."""
    settings: dict[str, list[str]] = field(default_factory=dict)
    """Settings of single ones, as key=value, by name, such as
    `sd-vae: [autoencoder.baseline.objective.perceptual_weight=0.5]`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("autoencoders", AUTOENCODER_KINDS), ("ablation", ABLATION)):
            for value in getattr(self, name):
                if value not in known:
                    raise UserError(
                        f"comparison.{name} holds {value!r}{nearest(value, known)}; known: {', '.join(known)}"
                    )
        for value in self.settings:
            if value not in (*AUTOENCODER_KINDS, *ABLATION):
                raise UserError(
                    f"comparison.settings are of {value!r}, which is not compared"
                    f"{nearest(value, (*AUTOENCODER_KINDS, *ABLATION))}"
                )
        for name in ("seeds", "ablation_seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"comparison.{name} holds a seed twice: {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Config(Bounded):
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    image_size: int = number(256, ge=1, le=MOST_PIXELS)
    """Pixels along an image's side, from decoder tuning on."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """First model."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """What lies between the models."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Second model."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """What is generated."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured."""
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    """What `ldmae compare` sets side by side."""
    seed: int = number(0, **SEEDS)
    """Key of all randomness in training."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    threads: str = "auto"
    """CPU threads of each process: a number, or `auto`: 1 or more, whichever is faster in the first steps. A
    run keeps the number when it is resumed."""
    mixed_precision: str = "auto"
    """`no`, `bf16`, `fp16`, or `auto`: bf16 where the device computes in it, else fp16 on
    CUDA and no elsewhere."""
    deterministic: bool = False
    """Only deterministic kernels: on CUDA a resumed run is bitwise the same with this only (and slower)."""
    tracker: str = "none"
    """`tensorboard`, `wandb` (an extra), or `none`; metrics.jsonl is always written."""

    def __post_init__(self):
        super().__post_init__()
        self._check_autoencoder()
        self._check_perceptual()
        self._check_discriminator()
        self._check_frozen()
        transformer = self.diffusion.model
        if transformer.attention_head_dim % 4:
            raise UserError(
                "diffusion.model.attention_head_dim must be a multiple of 4 (positions), got "
                f"{transformer.attention_head_dim}; take {transformer.attention_head_dim // 4 * 4 + 4}"
            )
        scales = (self.sampling.guidance_scale, self.evaluation.guidance_scale)
        if transformer.class_dropout_prob == 0 and any(scale not in (None, 1) for scale in scales):
            raise UserError(
                "guidance needs diffusion.model.class_dropout_prob above 0 in training; set that, or "
                "sampling.guidance_scale=1 and evaluation.guidance_scale=1"
            )
        if self.device not in ("auto", "cpu", "cuda", "mps"):
            raise UserError(f"device must be auto, cpu, cuda or mps, got {self.device!r}")
        if self.threads != "auto" and not (self.threads.isdecimal() and int(self.threads) > 0):
            raise UserError(f"threads must be auto or a number of at least 1, got {self.threads!r}")
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise UserError(f"mixed_precision must be auto, no, bf16 or fp16, got {self.mixed_precision!r}")
        if self.tracker not in ("none", "tensorboard", "wandb"):
            raise UserError(f"tracker must be tensorboard, wandb or none, got {self.tracker!r}")

    def _check_autoencoder(self) -> None:
        """Raises for an autoencoder whose sizes do not fit each other, the images or the diffusion model."""
        autoencoder, model = self.autoencoder, self.autoencoder.model
        if autoencoder.kind not in AUTOENCODER_KINDS:
            raise UserError(
                f"autoencoder.kind must be one of {', '.join(AUTOENCODER_KINDS)}, got {autoencoder.kind!r}"
                f"{nearest(autoencoder.kind, AUTOENCODER_KINDS)}"
            )
        vit = autoencoder.is_vit
        name, patch = "model.patch_size" if vit else "baseline.model.factor", autoencoder.patch_size
        sizes = {"image_size": self.image_size, "autoencoder.pretraining.image_size": self.pretraining_size}
        for key, pixels in sizes.items():
            if autoencoder.source is None and pixels % patch:
                raise UserError(
                    f"{key}={pixels} must be a multiple of autoencoder.{name}={patch}; "
                    f"take {max(1, round(pixels / patch)) * patch}"
                )
        for part in ("encoder", "decoder") if vit else ():
            width = getattr(model, f"{part}_hidden_size")
            heads = getattr(model, f"{part}_num_attention_heads")
            if width % heads or width % 4:
                raise UserError(
                    f"autoencoder.model.{part}_hidden_size={width} must be a multiple of 4 and of "
                    f"{part}_num_attention_heads={heads}; change one of them"
                )
        if autoencoder.source is None and (self.image_size // patch) % self.diffusion.model.patch_size:
            raise UserError(
                f"the latent grid has {self.image_size // patch} cells a side, which "
                f"diffusion.model.patch_size={self.diffusion.model.patch_size} does not divide"
            )

    def _check_perceptual(self) -> None:
        """Raises for a perceptual distance that is unknown, or that cannot see images so small."""
        judges = {"evaluation.perceptual": (self.evaluation.perceptual, self.image_size)}
        sizes = {"pretraining": self.pretraining_size, "tuning": self.image_size, "baseline": self.image_size}
        for stage in self.autoencoder.stages:
            objective = getattr(self.autoencoder, stage).objective
            if objective.perceptual_weight > 0:
                judges[f"autoencoder.{stage}.objective.perceptual"] = (objective.perceptual, sizes[stage])
        for key, (name, size) in judges.items():
            if name not in SMALLEST:
                raise UserError(
                    f"{key}={name!r} is unknown{nearest(name, SMALLEST)}; known: {', '.join(SMALLEST)}"
                )
            if size < SMALLEST[name]:
                raise UserError(
                    f"{key}={name} needs images of at least {SMALLEST[name]} px, got {size}; take larger "
                    "images or another distance"
                )

    def _check_discriminator(self) -> None:
        """Raises for images too small for a training's discriminator."""
        for part in self.autoencoder.stages:
            stage = getattr(self.autoencoder, part)
            size = self.pretraining_size if part == "pretraining" else self.image_size
            least = smallest_image(stage.discriminator_layers)
            if stage.objective.adversarial_weight > 0 and size < least:
                raise UserError(
                    f"autoencoder.{part}.discriminator_layers={stage.discriminator_layers} needs images of "
                    f"at least {least} px, got {size}; give it fewer"
                )

    def _check_frozen(self) -> None:
        """Raises for terms of the encoder in a tuning that freezes it: they would do nothing."""
        tuning = self.autoencoder.tuning
        for name, weight in tuning.objective.of_encoder.items():
            if weight > 0 and tuning.freeze_encoder and "tuning" in self.autoencoder.stages:
                key = f"autoencoder.tuning.objective.{name}"
                raise UserError(
                    f"{key}={weight} does nothing while autoencoder.tuning.freeze_encoder=true; set it in "
                    "autoencoder.pretraining, or freeze_encoder=false"
                )

    @property
    def pretraining_size(self) -> int:
        """Pixels along an image's side in pre-training."""
        return self.autoencoder.pretraining.image_size or self.image_size


def as_dict(config: Any) -> dict[str, Any]:
    """Returns settings as plain nested types."""
    return dataclasses.asdict(config)
