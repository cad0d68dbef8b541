"""Settings of the diffusion model's shape and of sampling."""

from dataclasses import dataclass

from ldmae.core.bounds import MOST_AT_ONCE, SEEDS, Bounded, number
from ldmae.core.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig(Bounded):
    """The arguments of `LightningDiTTransformer2DModel` that a preset chooses."""

    group = "diffusion.model."

    patch_size: int = number(1, ge=1, le=1024)
    """Latent cells along a token's side."""
    num_layers: int = number(12, ge=1, le=1000)
    """Blocks."""
    num_attention_heads: int = number(12, ge=1, le=4096)
    """Attention heads."""
    attention_head_dim: int = number(64, ge=1, le=4096)
    """Width of a head; the model is heads × head width wide."""
    mlp_ratio: float = number(4.0, gt=0, le=64)
    """Width of a block's hidden layer over the block's width (two thirds of it with SwiGLU)."""
    class_dropout_prob: float = number(0.1, ge=0, lt=1)
    """Share of the training labels replaced by the null class, which guidance needs."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    use_swiglu: bool = True
    """SwiGLU in place of GELU."""
    use_rope: bool = True
    """2-D rotary position embedding in each block."""
    use_rmsnorm: bool = True
    """RMSNorm in place of LayerNorm."""
    label_std: float = number(0.02, gt=0, le=100)
    """Deviation of the class embeddings at the start; in a short training 0.5 tells classes apart sooner."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Bounded):
    """What is generated after training, and how."""

    group = "sampling."

    per_class: int = number(8, ge=1, le=MOST_AT_ONCE)
    """Images of each class in the grid."""
    max_classes: int = number(24, ge=1, le=MOST_AT_ONCE)
    """At most this many classes are drawn into the grid."""
    solver: str = "euler"
    """`euler`, or `heun` (second order, twice the evaluations)."""
    num_inference_steps: int = number(50, ge=1, le=MOST_AT_ONCE)
    """Steps of the solver."""
    guidance_scale: float = number(1.0, ge=-1e4, le=1e4, hint="1 is none")
    """Classifier-free guidance; 1: none."""
    guidance_interval: list[float] = number([0.0, 1.0], ge=0, le=1)
    """Times t between which guidance acts (0 is noise, 1 is data)."""
    guidance_channels: int | None = number(None, ge=1, le=4096)
    """Guide only the first latent channels (3: as the official sampler does); null: all."""
    timestep_shift: float | None = number(1.0, ge=0, le=1e6, hint="0 and 1 turn it off")
    """s of t' = s t / (1 + (s − 1) t): under 1 more steps are spent near the noise; null: the scheduler's."""
    batch_size: int = number(64, ge=1, le=MOST_AT_ONCE)
    """Images generated at once on each process."""
    seed: int = number(0, **SEEDS)
    """Of the noise; each image has its own from it."""

    def __post_init__(self):
        super().__post_init__()
        if self.solver not in ("euler", "heun"):
            raise UserError(f"sampling.solver must be euler or heun, got {self.solver!r}")
        times = self.guidance_interval
        if len(times) != 2 or times[0] > times[1]:
            raise UserError(f"sampling.guidance_interval must be two rising times in [0, 1], got {times}")


TIME_DENSITIES = ("logit_normal", "uniform")


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Bounded):
    """Where on the path from noise to data the training looks."""

    group = "diffusion.flow."

    time_density: str = "logit_normal"
    """`logit_normal`: t = sigmoid(mean + std · N(0, 1)) (arXiv 2403.03206); `uniform`: t ~ U[0, 1)."""
    logit_mean: float = number(0.0, ge=-100, le=100, hint="0 is usual")
    """Mean of the normal inside `logit_normal`; above 0 looks more at nearly clean latents."""
    logit_std: float = number(1.0, gt=0, le=100, hint="1 is usual")
    """Deviation of the normal inside `logit_normal`, above 0."""

    def __post_init__(self):
        super().__post_init__()
        if self.time_density not in TIME_DENSITIES:
            raise UserError(
                f"time_density must be one of {', '.join(TIME_DENSITIES)}, got {self.time_density!r}"
                f"{nearest(str(self.time_density), TIME_DENSITIES)}"
            )
