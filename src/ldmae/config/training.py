"""Settings of the training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ldmae.config.base import (
    NUMBER,
    Batch,
    Count,
    CountOrZero,
    Pair,
    Processes,
    Settings,
    ShareBelowOne,
)

_Rate = Annotated[float, Field(gt=0, le=1e30), NUMBER]


class OptimizerConfig(Settings):
    """The optimizer and its rate over the steps."""

    name: Literal["adamw", "muon"] = "adamw"
    """`adamw`, or `muon`: orthogonalised momentum for the matrices of the model's transformer blocks, AdamW
    for everything else. Muon needs fewer steps, each a little slower."""
    learning_rate: _Rate = 1e-4
    """Peak rate, absolute (a paper's base rate times effective batch / 256)."""
    betas: Pair[ShareBelowOne] = [0.9, 0.95]
    """Decay rates of the first and second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=1000), NUMBER] = 0.0
    """Decoupled weight decay; biases, norms and embeddings have none."""
    schedule: Literal["constant", "cosine"] = "constant"
    """`constant`, or `cosine`: a half cycle down to 0 after the warm-up."""
    warmup_steps: CountOrZero = 0
    """Steps of linear warm-up from 0."""
    schedule_steps: Count | None = None
    """Step at which the half cosine reaches 0: `steps` or later, after the warm-up; null: the last step."""
    muon_learning_rate: _Rate = 0.02
    """Peak rate of the matrices under `muon`, on the same schedule."""
    muon_momentum: ShareBelowOne = 0.95
    """Decay rate of the matrices' momentum under `muon`."""
    gradient_clip: Annotated[float, Field(gt=0, le=1e9), NUMBER] | None = None
    """Largest norm of the whole gradient, and of a discriminator's; null: none."""
    discriminator_learning_rate: _Rate | None = None
    """Peak learning rate of the discriminator, if any, on the same schedule; null: the model's."""
    discriminator_betas: Pair[ShareBelowOne] = [0.5, 0.9]
    """The discriminator's decay rates of the first and second moment; its weights do not decay."""


class CheckpointConfig(Settings):
    """When training states are written, and which are kept."""

    every_steps: Count = 1000
    """A training state is written after this many steps, and at the end."""
    keep_every: Count | None = None
    """States of steps that are multiples of this are kept for good; the last 2 always are."""


class TrainingConfig(Settings):
    """One training: its length, batch, optimizer and cadence."""

    steps: Count = 1000
    """Optimizer steps. More steps extend a finished training."""
    batch_size: Batch = 32
    """Images in a whole step, over all processes."""
    micro_batch_size: Batch | None = None
    """Images that fit one device at once; null: the device's whole share. Accumulation follows from it."""
    ema_decay: ShareBelowOne | None = None
    """Decay a step of the averaged weights, which are then the ones saved; null: no averaging."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its rate."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When training states are written."""
    compile: bool = False
    """Compile the model's blocks with torch.compile: seconds to minutes at the start, then faster steps."""
    num_workers: Processes = 1
    """Processes that load data, for each training process; 0: the training process itself."""
    log_every: Count = 20
    """Steps between lines of metrics.jsonl; each holds means over these steps."""
    validate_every: CountOrZero = 0
    """Steps between losses on held-out images; 0: never."""
    validation_images: Count = 256
    """How many held-out images (at the most) a validation takes."""

    @model_validator(mode="after")
    def _cosine_outlasts_the_training(self) -> Self:
        end, warmup = self.optimizer.schedule_steps, self.optimizer.warmup_steps
        if self.optimizer.schedule == "cosine" and end is not None and (end < self.steps or end <= warmup):
            # beyond its end the rate is 0: nothing would be learned, and nothing would be said
            raise ValueError(
                f"optimizer.schedule_steps must be at least training.steps={self.steps} and above "
                f"training.optimizer.warmup_steps={warmup}, got {end}; set it so, or to null, which lets the "
                "cosine end with the training"
            )
        return self


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
