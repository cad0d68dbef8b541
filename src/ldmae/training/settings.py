"""Settings of the training loop."""

from dataclasses import dataclass, field

from ldmae.core.bounds import MOST, MOST_AT_ONCE, MOST_PROCESSES, Bounded, number
from ldmae.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Bounded):
    """The optimizer and its rate over the steps."""

    group = "optimizer."

    name: str = "adamw"
    """`adamw`, or `muon`: orthogonalised momentum for the matrices of the model's transformer blocks, AdamW
    for everything else. Muon needs fewer steps, each a little slower."""
    learning_rate: float = number(1e-4, gt=0, le=1e30)
    """Peak rate, absolute (a paper's base rate times effective batch / 256)."""
    betas: list[float] = number([0.9, 0.95], ge=0, lt=1)
    """Decay rates of the first and second moment."""
    weight_decay: float = number(0.0, ge=0, le=1000)
    """Decoupled weight decay; biases, norms and embeddings have none."""
    schedule: str = "constant"
    """`constant`, or `cosine`: a half cycle down to 0 after the warm-up."""
    warmup_steps: int = number(0, ge=0, le=MOST)
    """Steps of linear warm-up from 0."""
    schedule_steps: int | None = number(None, ge=1, le=MOST)
    """Step at which the half cosine reaches 0: `steps` or later, after the warm-up; null: the last step."""
    muon_learning_rate: float = number(0.02, gt=0, le=1e30)
    """Peak rate of the matrices under `muon`, on the same schedule."""
    muon_momentum: float = number(0.95, ge=0, lt=1)
    """Decay rate of the matrices' momentum under `muon`."""
    gradient_clip: float | None = number(None, gt=0, le=1e9)
    """Largest norm of the whole gradient, and of a discriminator's; null: none."""
    adversary_learning_rate: float | None = number(None, gt=0, le=1e30)
    """Peak learning rate of the discriminator, if any, on the same schedule; null: the model's."""
    adversary_betas: list[float] = number([0.5, 0.9], ge=0, lt=1)
    """The discriminator's decay rates of the first and second moment; its weights do not decay."""

    def __post_init__(self):
        super().__post_init__()
        if self.name not in ("adamw", "muon"):
            raise UserError(f"optimizer.name must be adamw or muon, got {self.name!r}")
        if self.schedule not in ("constant", "cosine"):
            raise UserError(f"optimizer.schedule must be constant or cosine, got {self.schedule!r}")
        for name in ("betas", "adversary_betas"):
            betas = getattr(self, name)
            if len(betas) != 2:
                raise UserError(f"optimizer.{name} must be two numbers in [0, 1), got {betas}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Bounded):
    """When training states are written, and which are kept."""

    group = "checkpoint."

    every_steps: int = number(1000, ge=1, le=MOST)
    """A training state is written after this many steps, and at the end."""
    keep_every: int | None = number(None, ge=1, le=MOST)
    """States of steps that are multiples of this are kept for good; the last 2 always are."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Bounded):
    """One training: its length, batch, optimizer and cadence."""

    group = "training."

    steps: int = number(1000, ge=1, le=MOST)
    """Optimizer steps. More steps extend a finished training."""
    batch_size: int = number(32, ge=1, le=MOST_AT_ONCE)
    """Images in a whole step, over all processes."""
    micro_batch_size: int | None = number(None, ge=1, le=MOST_AT_ONCE)
    """Images that fit one device at once; null: the device's whole share. Accumulation follows from it."""
    ema_decay: float | None = number(None, ge=0, lt=1)
    """Decay a step of the averaged weights, which are then the ones saved; null: no averaging."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its rate."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When training states are written."""
    compile: bool = False
    """Compile the model's blocks with torch.compile: seconds to minutes at the start, then faster steps."""
    num_workers: int = number(1, ge=0, le=MOST_PROCESSES)
    """Processes that load data, for each training process; 0: the training process itself."""
    log_every: int = number(20, ge=1, le=MOST)
    """Steps between lines of metrics.jsonl; each holds means over these steps."""
    validate_every: int = number(0, ge=0, le=MOST)
    """Steps between losses on held-out images; 0: never."""
    validation_images: int = number(256, ge=1, le=MOST)
    """How many held-out images (at the most) a validation takes."""

    def __post_init__(self):
        super().__post_init__()
        end, warmup = self.optimizer.schedule_steps, self.optimizer.warmup_steps
        if self.optimizer.schedule == "cosine" and end is not None and (end < self.steps or end <= warmup):
            # beyond its end the rate is 0: nothing would be learned, and nothing would be said
            raise UserError(
                f"training.optimizer.schedule_steps must be at least training.steps={self.steps} and above "
                f"training.optimizer.warmup_steps={warmup}, got {end}; set it so, or to null, which lets the "
                "cosine end with the training"
            )


CHANGES_NO_WEIGHT = {
    "steps",
    "micro_batch_size",
    "checkpoint",
    "compile",
    "num_workers",
    "log_every",
    "validate_every",
    "validation_images",
}
"""Keys of TrainingConfig that may change between a stop and a resume."""
