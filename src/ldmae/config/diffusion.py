"""Settings of the diffusion model, its training and sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ldmae.config.base import (
    NUMBER,
    Batch,
    Cells,
    Channels,
    Count,
    CountOrZero,
    Factor,
    Guidance,
    Layers,
    Range,
    Seed,
    Settings,
    Share,
    ShareBelowOne,
    Weight,
)
from ldmae.config.registry import DIFFUSION, SOLVERS, OneOf
from ldmae.config.training import TrainingConfig


class LightningDiTConfig(Settings):
    """The arguments of `LightningDiTTransformer2DModel` that a preset chooses."""

    patch_size: Cells = 1
    """Latent cells along a token's side."""
    num_layers: Layers = 12
    """Blocks."""
    num_attention_heads: Channels = 12
    """Attention heads."""
    attention_head_dim: Channels = 64
    """Width of a head; the model is heads × head width wide."""
    mlp_ratio: Factor = 4.0
    """Width of a block's hidden layer over the block's width (two thirds of it with SwiGLU)."""
    class_dropout_prob: ShareBelowOne = 0.1
    """Share of the training labels replaced by the null class, which guidance needs."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    use_swiglu: bool = True
    """SwiGLU in place of GELU."""
    use_rope: bool = True
    """2-D rotary position embedding in each block."""
    use_rmsnorm: bool = True
    """RMSNorm in place of LayerNorm."""
    label_std: Annotated[float, Field(gt=0, le=100), NUMBER] = 0.02
    """Standard deviation of the class embeddings at the start; in a short training 0.5 tells classes apart
    sooner."""

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        head, heads = self.attention_head_dim, self.num_attention_heads
        if self.use_rope and head % 4:
            raise ValueError(
                f"attention_head_dim must be a multiple of 4 (rotary positions), got {head}; "
                f"take {head // 4 * 4 + 4}, or set use_rope=false"
            )
        if heads * head % 4:
            raise ValueError(
                f"num_attention_heads={heads} times attention_head_dim={head} must be a multiple of 4 (sine-"
                "cosine positions); change one of them"
            )
        hidden = int(heads * head * self.mlp_ratio)
        if (int(2 / 3 * hidden) if self.use_swiglu else hidden) < 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} must leave hidden units; 4 is usual")
        return self


class FlowConfig(Settings):
    """Where on the path from noise to data the training looks."""

    time_density: Literal["logit_normal", "uniform"] = "logit_normal"
    """`logit_normal`: t = sigmoid(mean + std · N(0, 1)) (arXiv 2403.03206); `uniform`: t ~ U[0, 1)."""
    logit_mean: Annotated[float, Field(ge=-100, le=100), NUMBER] = 0.0
    """Mean of the normal inside `logit_normal`, usually 0; above 0 looks more at nearly clean latents."""
    logit_std: Annotated[float, Field(gt=0, le=100), NUMBER] = 1.0
    """Standard deviation of the normal inside `logit_normal`, usually 1."""


class LoraConfig(Settings):
    """LoRA: small matrices are trained beside the frozen weights of `init`; needs the extra `lora`."""

    rank: CountOrZero = 0
    """Rank of the matrices, 4 to 64 as a rule; 0: the whole model is trained."""
    alpha: Count | None = None
    """The matrices' product counts alpha / rank times; null: as the rank, so once."""
    targets: Annotated[list[str], Field(min_length=1)] = ["attn.qkv", "attn.proj"]
    """Linear layers that get them: `attn.qkv`, `attn.proj`, `mlp.w12`, `mlp.w3` (`mlp.fc1`, `mlp.fc2` without
    SwiGLU), `adaLN_modulation.1`."""


class DiffusionConfig(Settings):
    """The diffusion model: its shape, its objective, its training."""

    kind: Annotated[str, OneOf(DIFFUSION)] = "lightningdit"
    """`lightningdit`, or `package.module:Name`, a class of yours."""
    options: dict[str, Any] = {}
    """Settings of another kind than `lightningdit`: its constructor's arguments or its `Config`'s fields."""
    model: LightningDiTConfig = LightningDiTConfig()
    """The shape of a LightningDiT; with `init` that of the source."""
    init: str | None = None
    """Weights that training starts from: a run folder, a pipeline's folder or Hub name, `pretrained:NAME`,
    `official:FILE` (a LightningDiT's). Classes are matched by name; null: from nothing."""
    lora: LoraConfig = LoraConfig()
    """Train adapters of `init` in place of the whole model."""
    flow: FlowConfig = FlowConfig()
    """Flow matching: the density of the times."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch, optimizer."""

    @model_validator(mode="after")
    def _starts_from_what_it_can(self) -> Self:
        if self.training.validate_every:
            raise ValueError(
                "training.validate_every is for autoencoders; leave it 0: nothing is held out here"
            )
        if self.options and self.other_kind is None:
            raise ValueError(f"options are for a class of yours; kind={self.kind} reads diffusion.model")
        if self.lora.rank and self.init is None:
            raise ValueError(
                "lora.rank adapts weights that exist; set diffusion.init, or diffusion.lora.rank=0"
            )
        if self.init is not None and self.other_kind is not None:
            raise ValueError(f"init is for a LightningDiT, not for kind={self.kind}; omit one of the two")
        return self

    @property
    def other_kind(self) -> str | None:
        """What is trained in place of a LightningDiT, with `options` as its settings; None for that."""
        return None if self.kind == "lightningdit" else self.kind


SHIFTS = (1e-6, 1e6)  # outside of them all times are the same in float32; 0 is no shift


class SamplingConfig(Settings):
    """What is generated after training, and how."""

    per_class: Batch = 8
    """Images of each class in the grid."""
    max_classes: Batch = 24
    """At most this many classes are drawn into the grid."""
    solver: Annotated[str, OneOf(SOLVERS)] = "euler"
    """`euler`, `heun` (second order, twice the evaluations), or `package.module:Name`, a scheduler of yours
    that extends `FlowMatchEulerDiscreteScheduler`."""
    num_inference_steps: Batch = 50
    """Steps of the solver."""
    guidance_scale: Guidance = 1.0
    """Classifier-free guidance; 1: none."""
    guidance_interval: Range[Share] = [0.0, 1.0]
    """Two times t, between which guidance acts (0 is noise, 1 is data)."""
    guidance_channels: Channels | None = None
    """Guide only the first latent channels (3: as the official sampler does); null: all."""
    timestep_shift: Weight | None = 1.0
    """s of t' = s t / (1 + (s − 1) t): under 1 more steps are spent near the noise; 0 and 1 turn it
    off; null: the scheduler's."""
    batch_size: Batch = 64
    """Images generated at once on each process."""
    seed: Seed = 0
    """Of the noise; each image has its own from it."""

    @model_validator(mode="after")
    def _shift_leaves_times(self) -> Self:
        if self.timestep_shift and self.timestep_shift < SHIFTS[0]:  # Weight has the upper bound
            raise ValueError(f"timestep_shift must be 0 or at least {SHIFTS[0]:g}, got {self.timestep_shift}")
        return self

    @property
    def own_solver(self) -> str | None:
        """The class that `solver` names, which saved pipelines don't contain; None for the package's."""
        return None if self.solver in SOLVERS else self.solver
