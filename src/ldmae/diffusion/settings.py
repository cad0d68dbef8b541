"""Settings of the diffusion model's shape and of sampling."""

import math
from dataclasses import dataclass, field

from ldmae.core.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig:
    """The arguments of `LightningDiTTransformer2DModel` that a preset chooses."""

    patch_size: int = 1
    """Latent cells along a token's side."""
    num_layers: int = 12
    """Blocks."""
    num_attention_heads: int = 12
    """Attention heads."""
    attention_head_dim: int = 64
    """Width of a head; the model is heads × head width wide."""
    mlp_ratio: float = 4.0
    """Width of a block's hidden layer over the block's width (two thirds of it with SwiGLU)."""
    class_dropout_prob: float = 0.1
    """Share of the training labels replaced by the null class, which guidance needs."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    use_swiglu: bool = True
    """SwiGLU in place of GELU."""
    use_rope: bool = True
    """2-D rotary position embedding in each block."""
    use_rmsnorm: bool = True
    """RMSNorm in place of LayerNorm."""
    label_std: float = 0.02
    """Deviation of the class embeddings at the start; in a short training 0.5 tells classes apart sooner."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What is generated after training, and how."""

    per_class: int = 8
    """Images of each class in the grid."""
    max_classes: int = 24
    """At most this many classes are drawn into the grid."""
    solver: str = "euler"
    """`euler`, or `heun` (second order, twice the evaluations)."""
    num_inference_steps: int = 50
    """Steps of the solver."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1: none."""
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Times t between which guidance acts (0 is noise, 1 is data)."""
    guidance_channels: int | None = None
    """Guide only the first latent channels (3: as the official sampler does); null: all."""
    timestep_shift: float = 1.0
    """s of t' = s t / (1 + (s − 1) t): under 1 more steps are spent near the noise."""
    batch_size: int = 64
    """Images generated at once on each process."""
    seed: int = 0
    """Of the noise; each image has its own from it."""

    def __post_init__(self):
        if self.solver not in ("euler", "heun"):
            raise UserError(f"sampling.solver must be euler or heun, got {self.solver!r}")
        times = self.guidance_interval
        if len(times) != 2 or not 0 <= times[0] <= times[1] <= 1:
            raise UserError(
                f"sampling.guidance_interval must be two times in [0, 1], got {self.guidance_interval}"
            )
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"sampling.guidance_scale must be a number, got {self.guidance_scale}; 1: none")
        if not 0 <= self.timestep_shift < math.inf:
            raise UserError(
                f"sampling.timestep_shift must be 0 or more, got {self.timestep_shift}; 0 and 1: none"
            )
        if self.guidance_channels is not None and self.guidance_channels < 1:
            raise UserError(
                f"sampling.guidance_channels must be at least 1 or null, got {self.guidance_channels}"
            )
        for name in ("per_class", "max_classes", "num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"sampling.{name} must be at least 1, got {getattr(self, name)}")


TIME_DENSITIES = ("logit_normal", "uniform")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Where on the path from noise to data the training looks."""

    time_density: str = "logit_normal"
    """`logit_normal`: t = sigmoid(mean + std · N(0, 1)) (arXiv 2403.03206); `uniform`: t ~ U[0, 1)."""
    logit_mean: float = 0.0
    """Mean of the normal inside `logit_normal`; above 0 looks more at nearly clean latents."""
    logit_std: float = 1.0
    """Deviation of the normal inside `logit_normal`, above 0."""

    def __post_init__(self):
        if self.time_density not in TIME_DENSITIES:
            raise UserError(
                f"time_density must be one of {', '.join(TIME_DENSITIES)}, got {self.time_density!r}"
                f"{nearest(str(self.time_density), TIME_DENSITIES)}"
            )
        if not 0 < self.logit_std < math.inf:
            raise UserError(f"logit_std must be above 0, got {self.logit_std}; 1.0 is usual")
        if not math.isfinite(self.logit_mean):
            raise UserError(f"logit_mean must be a number, got {self.logit_mean}; 0.0 is usual")
