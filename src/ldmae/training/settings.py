"""Settings of the training loop."""

import math
from dataclasses import dataclass, field

from ldmae.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its rate over the steps."""

    learning_rate: float = 1e-4
    """Peak rate, absolute (a paper's base rate times effective batch / 256)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay; biases, norms and embeddings have none."""
    schedule: str = "constant"
    """`constant`, or `cosine`: a half cycle down to 0 after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""
    schedule_steps: int | None = None
    """Step at which the half cosine reaches 0: `steps` or later, after the warm-up; null: the last step."""
    gradient_clip: float | None = None
    """Largest norm of the whole gradient, and of an adversary's; null: none."""
    adversary_learning_rate: float | None = None
    """Peak rate of the adversary, where there is one, on the same schedule; null: the model's."""
    adversary_betas: list[float] = field(default_factory=lambda: [0.5, 0.9])
    """The adversary's decay rates of the first and second moment; its weights do not decay."""

    def __post_init__(self):
        if self.schedule not in ("constant", "cosine"):
            raise UserError(f"optimizer.schedule must be constant or cosine, got {self.schedule!r}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"optimizer.learning_rate must be above 0, got {self.learning_rate}")
        for name in ("weight_decay", "warmup_steps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("betas", "adversary_betas"):
            betas = getattr(self, name)
            if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
                raise UserError(f"optimizer.{name} must be two numbers in [0, 1), got {betas}")
        if self.adversary_learning_rate is not None and not 0 < self.adversary_learning_rate < math.inf:
            raise UserError(
                "optimizer.adversary_learning_rate must be above 0 or null, "
                f"got {self.adversary_learning_rate}"
            )
        if self.schedule_steps is not None and self.schedule_steps < 1:
            raise UserError(f"optimizer.schedule_steps must be at least 1 or null, got {self.schedule_steps}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise UserError(f"optimizer.gradient_clip must be above 0 or null, got {self.gradient_clip}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When training states are written, and which are kept."""

    every_steps: int = 1000
    """A training state is written after this many steps, and at the end."""
    keep_every: int | None = None
    """States of steps that are multiples of this are kept for good; the last 2 always are."""

    def __post_init__(self):
        if self.every_steps < 1:
            raise UserError(f"checkpoint.every_steps must be at least 1, got {self.every_steps}")
        if self.keep_every is not None and self.keep_every < 1:
            raise UserError(f"checkpoint.keep_every must be at least 1 or null, got {self.keep_every}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One training: its length, batch, optimizer and cadence."""

    steps: int = 1000
    """Optimizer steps. More steps extend a finished training."""
    batch_size: int = 32
    """Images in a whole step, over all processes."""
    micro_batch_size: int | None = None
    """Images that fit one device at once; null: the device's whole share. Accumulation follows from it."""
    ema_decay: float | None = None
    """Decay a step of the averaged weights, which are then the ones saved; null: no averaging."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its rate."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When training states are written."""
    compile: bool = False
    """Compile the model's blocks with torch.compile: seconds to minutes at the start, then faster steps."""
    num_workers: int = 1
    """Processes that load data, for each training process; 0: the training process itself."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl; each holds means over these steps."""
    validate_every: int = 0
    """Steps between losses on held-out images; 0: never."""
    validation_images: int = 256
    """How many held-out images (at the most) a validation takes."""

    def __post_init__(self):
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("log_every", 1),
            ("num_workers", 0),
            ("validate_every", 0),
            ("validation_images", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"training.{name} must be at least {least}, got {getattr(self, name)}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(
                f"training.micro_batch_size must be at least 1 or null, got {self.micro_batch_size}"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay must lie in [0, 1) or be null, got {self.ema_decay}")
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
