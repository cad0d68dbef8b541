"""Settings of the latent cache."""

from dataclasses import dataclass

from ldmae.core.bounds import MOST, MOST_AT_ONCE, MOST_PROCESSES, Bounded, number
from ldmae.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LatentsConfig(Bounded):
    """How training images become latents on disk, and how they are read."""

    group = "latents."

    moments: bool = True
    """Keep mean and log variance and draw z afresh each time it is read; false: keep the mean alone."""
    flip: bool = True
    """Encode each image mirrored too; training then reads one or the other, by key."""
    dtype: str = "float32"
    """Number format on disk: `float32`, `float16` or `bfloat16`."""
    batch_size: int = number(64, ge=1, le=MOST_AT_ONCE)
    """Images encoded at once on each process."""
    num_workers: int = number(1, ge=0, le=MOST_PROCESSES)
    """Processes that load images, beside each that encodes; 0: none. More may change a stream's order."""
    shard_size: int = number(10_000, ge=1, le=MOST)
    """Images a shard."""
    statistics_samples: int = number(10_000, ge=1, le=MOST)
    """Random latents (at most) from which the per-channel mean and standard deviation are computed."""
    fingerprint: str = "check"
    """`check` refuses latents of another autoencoder or preprocessing; `skip` takes foreign shards."""

    def __post_init__(self):
        super().__post_init__()
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise UserError(f"latents.dtype must be float32, float16 or bfloat16, got {self.dtype!r}")
        if self.fingerprint not in ("check", "skip"):
            raise UserError(f"latents.fingerprint must be check or skip, got {self.fingerprint!r}")
