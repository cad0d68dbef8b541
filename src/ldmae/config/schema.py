"""The settings of a run, gathered from the components, and the checks that join them."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from ldmae.config.autoencoder import AutoencoderConfig, smallest_image
from ldmae.config.base import NUMBER, Count, Pixels, Seed, Settings
from ldmae.config.data import DataConfig, LatentsConfig
from ldmae.config.diffusion import DiffusionConfig, SamplingConfig
from ldmae.config.evaluation import EvaluationConfig
from ldmae.config.registry import AUTOENCODERS, OneOf
from ldmae.config.variants import VARIANTS
from ldmae.core.imports import is_import_path
from ldmae.perception.names import SMALLEST

ABLATION = [name for name, variant in VARIANTS.items() if variant.group == "ablation"]
_TRAINED = [name for name in AUTOENCODERS if name != "decoder"]
"""Kinds that are trained from nothing, as a comparison does."""


class ComparisonConfig(Settings):
    """What `ldmae compare` compares; a single run ignores it."""

    autoencoders: list[Annotated[str, OneOf(_TRAINED)]] = ["ae", "dae", "vae", "sd-vae", "vmae"]
    """Autoencoders, each with a diffusion model of its own: those of `autoencoder.kind`."""
    seeds: list[Seed] = [0]
    """Each autoencoder is trained and measured once with each."""
    ablation: list[Annotated[str, OneOf(ABLATION, own=False)]] = []
    """Steps on the way to VMAE: `vmae-mse`, `vmae-lm`, `vmae-lm-lreg`, then `vmae` itself. Beyond the paper,
    VMAE with one change: `vmae-noise`, `vmae-no-perceptual`, `vmae-noise-no-perceptual` (all in tuning),
    `vmae-noise-pretraining`, `vmae-interpolation`, `vmae-expansion`, `vmae-expansion-absolute`,
    `vmae-discriminator`, `vmae-wide-head`, `vmae-equivariance`, `vmae-alignment`, `vmae-spectrum`,
    `vmae-long` (more steps); several: `vmae-combined`, `vmae-combined-alignment`. Objectives on VMAE's
    network: `vit-ae`, `vit-dae`, `vit-vae`, `vit-ae-noise`, `vit-vmae-no-mask`, `vit-vmae-no-noise`. On
    convolutions: `conv-vmae-loss`, `sd-vae-no-perceptual`, `sd-vae-no-adversarial`."""
    ablation_seeds: list[Seed] = [0]
    """The seeds of the ablation."""
    match_flops: bool = True
    """Shrink the baselines until encode and decode cost as many operations as the VMAE's; false: as wide as
    `autoencoder.baseline.model.width` says."""
    checkpoints: list[Annotated[float, Field(gt=0, le=1), NUMBER]] = []
    """Shares of the diffusion model's steps after which KID of a few samples is measured, for its curve."""
    checkpoint_samples: Annotated[Count, Field(ge=10)] = 500
    """Generated images, and real ones, for each point of that curve."""
    settings: dict[Annotated[str, OneOf(VARIANTS)], list[str]] = {}
    """Settings of single ones, as key=value, by name, such as
    `sd-vae: [autoencoder.baseline.objective.perceptual_weight=0.5]`."""

    @model_validator(mode="after")
    def _units_are_distinct(self) -> Self:
        for name in ("autoencoders", "seeds", "ablation", "ablation_seeds"):
            listed = getattr(self, name)
            if len(set(listed)) < len(listed):
                raise ValueError(f"{name} holds {max(listed, key=listed.count)} more than once; remove it")
        for name in self.settings:
            if is_import_path(name) and name not in self.autoencoders:
                raise ValueError(f"settings are of {name}, which is not among the autoencoders; add it there")
        if not [*product(self.autoencoders, self.seeds), *product(self.ablation, self.ablation_seeds)]:
            raise ValueError("it compares nothing: give autoencoders with seeds, or an ablation with seeds")
        return self


class Config(Settings):
    """All settings of a run."""

    data: DataConfig = DataConfig()
    """The images."""
    image_size: Pixels = 256
    """Pixels along an image's side, from decoder tuning on."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """First model."""
    latents: LatentsConfig = LatentsConfig()
    """What lies between the models."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Second model."""
    sampling: SamplingConfig = SamplingConfig()
    """What is generated."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured."""
    comparison: ComparisonConfig = ComparisonConfig()
    """What `ldmae compare` compares."""
    seed: Seed = 0
    """Key of all randomness in training."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: Annotated[str, Field(pattern=r"^(auto|0*[1-9][0-9]{0,3})$")] = "auto"
    """CPU threads of each process: a number, or `auto`: 1 or more, whichever is faster in the first steps. A
    run keeps the number when it is resumed."""
    mixed_precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"],
        BeforeValidator(lambda value: "no" if value is False else value),  # YAML reads a bare `no` as false
    ] = "auto"
    """`no`, `bf16`, `fp16`, or `auto`: bf16 where the device computes in it, else fp16 on
    CUDA and no elsewhere."""
    deterministic: bool = False
    """Only deterministic kernels: on CUDA a resumed run is bitwise the same with this only (and slower)."""
    tracker: Literal["tensorboard", "wandb", "none"] = "none"
    """`tensorboard`, `wandb` (an extra), or `none`; metrics.jsonl is always written."""

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> Self:
        if self.autoencoder.init is None:
            self.check_sizes()
        elif self.autoencoder.source is not None:
            raise ValueError(
                "autoencoder.source is taken as it is, and nothing then starts from autoencoder.init; set "
                "one to null"
            )
        self._check_networks()
        self._check_frozen()
        scales = (self.sampling.guidance_scale, self.evaluation.guidance_scale)
        guided = any(scale not in (None, 1) for scale in scales)
        if self.diffusion.other_kind is None and self.diffusion.model.class_dropout_prob == 0 and guided:
            raise ValueError(
                "guidance needs diffusion.model.class_dropout_prob above 0 in training; set that, or "
                "sampling.guidance_scale=1 and evaluation.guidance_scale=1"
            )
        return self

    def check_sizes(self) -> None:
        """Checks an autoencoder's sizes, which with `autoencoder.init` are known once that is opened.

        Raises:
            ValueError: they do not fit the images or the diffusion model.
        """
        autoencoder = self.autoencoder
        if not autoencoder.has_shape:
            return
        name = "model.patch_size" if autoencoder.is_vit else "baseline.model.factor"
        patch, cells = autoencoder.patch_size, self.diffusion.model.patch_size
        given = "" if autoencoder.init is None else f", that of autoencoder.init={autoencoder.init}"
        unit = patch if self.diffusion.other_kind is not None else patch * cells
        sizes = {
            "image_size": (self.image_size, unit),
            "autoencoder.pretraining.image_size": (self.pretraining_size, patch),
        }
        for key, (pixels, multiple) in sizes.items():
            take = f"take {key}={max(1, round(pixels / multiple)) * multiple}"
            if pixels % patch:
                raise ValueError(
                    f"{key}={pixels} must be a multiple of autoencoder.{name}={patch}{given}; {take}"
                )
            if pixels % multiple:
                raise ValueError(
                    f"the latent grid has {pixels // patch} cells a side, which diffusion.model.patch_size="
                    f"{cells} does not divide; {take}"
                )

    def _check_networks(self) -> None:
        """Raises for images too small for a perceptual distance, or for a training's discriminator."""
        judges = {"evaluation.perceptual": (self.evaluation.perceptual, self.image_size)}
        for part in self.autoencoder.stages:
            stage = getattr(self.autoencoder, part)
            size = self.pretraining_size if part == "pretraining" else self.image_size
            if stage.objective.perceptual_weight > 0:
                judges[f"autoencoder.{part}.objective.perceptual"] = (stage.objective.perceptual, size)
            least = smallest_image(stage.discriminator_layers)
            if stage.objective.adversarial_weight > 0 and size < least:
                raise ValueError(
                    f"autoencoder.{part}.discriminator_layers={stage.discriminator_layers} needs images of "
                    f"at least {least} px, got {size}; give it fewer"
                )
        for key, (name, size) in judges.items():
            if size < SMALLEST[name]:
                raise ValueError(
                    f"{key}={name} needs images of at least {SMALLEST[name]} px, got {size}; take larger "
                    "images or another distance"
                )

    def _check_frozen(self) -> None:
        """Raises for terms of the encoder in a tuning that freezes it: they would do nothing."""
        tuning = self.autoencoder.tuning
        for name in ("expansion_weight", "alignment_weight", "spectrum_weight"):
            weight = getattr(tuning.objective, name)
            if weight > 0 and tuning.freeze_encoder and "tuning" in self.autoencoder.stages:
                key = f"autoencoder.tuning.objective.{name}"
                raise ValueError(
                    f"{key}={weight} does nothing while autoencoder.tuning.freeze_encoder=true; set it in "
                    "autoencoder.pretraining, or freeze_encoder=false"
                )

    @property
    def code(self) -> list[str]:
        """What these settings name as `package.module:Name`, whose import runs code."""
        every = (
            self.autoencoder.source,
            self.autoencoder.init,
            self.autoencoder.kind,
            self.data.source,
            self.data.val,
            self.diffusion.kind,
            self.sampling.solver,
            *self.comparison.autoencoders,
        )
        return [name for name in every if name is not None and is_import_path(name)]

    @property
    def pretraining_size(self) -> int:
        """Pixels along an image's side in pre-training."""
        return self.autoencoder.pretraining.image_size or self.image_size
