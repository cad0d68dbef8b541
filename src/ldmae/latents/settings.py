"""Settings of the latent cache."""

from dataclasses import dataclass

from ldmae.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """How training images become latents on disk, and how they are read."""

    moments: bool = True
    """Keep mean and log variance and draw z afresh each time it is read; false: keep the mean alone."""
    flip: bool = True
    """Encode each image mirrored too; training then reads one or the other, by key."""
    dtype: str = "float32"
    """Number format on disk: `float32`, `float16` or `bfloat16`."""
    batch_size: int = 64
    """Images encoded at once on each process."""
    num_workers: int = 1
    """Processes that load images, beside each that encodes; 0: none. More may change a stream's order."""
    shard_size: int = 10_000
    """Images a shard."""
    statistics_samples: int = 10_000
    """Random latents (at most) from which the per-channel mean and deviation are computed."""
    fingerprint: str = "check"
    """`check` refuses latents of another autoencoder or preprocessing; `skip` takes foreign shards."""

    def __post_init__(self):
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise UserError(f"latents.dtype must be float32, float16 or bfloat16, got {self.dtype!r}")
        if self.fingerprint not in ("check", "skip"):
            raise UserError(f"latents.fingerprint must be check or skip, got {self.fingerprint!r}")
        for name, least in (
            ("batch_size", 1),
            ("num_workers", 0),
            ("shard_size", 1),
            ("statistics_samples", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"latents.{name} must be at least {least}, got {getattr(self, name)}")
