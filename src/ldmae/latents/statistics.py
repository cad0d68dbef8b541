"""Per-channel mean and deviation of the latents, as the diffusion model's data are normalised."""

# C latent channels, h w latent grid

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ldmae.core.errors import UserError
from ldmae.core.files import atomic_path
from ldmae.core.random import generator
from ldmae.latents.shards import LatentShards, draw_latent

FILE_NAME = "latents_stats.pt"


def latent_statistics(
    shards: LatentShards,
    channels: int,
    samples: int,
    seed: int,
    advance: Callable[[int, str], None] = lambda n, note: None,
) -> tuple[Tensor, Tensor]:
    """Computes each channel's mean and standard deviation over random latents, drawn from their posteriors.

    At most `samples` latents are taken; the seed is that of the choice and the draws. `advance` is called
    with the number of latents done.

    Returns:
        Mean and standard deviation, (C,) each, float32; a channel that is constant gets deviation 1.

    Raises:
        UserError: the latents hold NaN or infinity.
    """
    chosen = torch.randperm(len(shards), generator=generator(seed, "statistics"))[:samples].sort().values
    count, total = 0, torch.zeros(channels, dtype=torch.float64)
    square = torch.zeros(channels, dtype=torch.float64)
    for index in chosen.tolist():
        source = generator(seed, "statistics", index)
        flip = shards.has_flips and torch.rand((), generator=source).item() < 0.5
        latent = draw_latent(shards.read(index, flip), channels, source).double()  # (C, h, w)
        count += latent[0].numel()
        total += latent.sum(dim=(1, 2))
        square += latent.square().sum(dim=(1, 2))
        advance(1, "")
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    if not (mean.isfinite() & std.isfinite()).all():
        raise UserError(
            f"the latents in {shards.folder} hold NaN or infinity; delete them and encode again, with an "
            "autoencoder that has valid weights"
        )
    return mean.float(), torch.where(std > 1e-6, std, 1.0).float()


def save_statistics(folder: Path, mean: Tensor, std: Tensor) -> None:
    """Writes `latents_stats.pt` as LightningDiT's loader expects it: mean and std of shape (1, C, 1, 1)."""
    with atomic_path(folder / FILE_NAME) as temporary:
        torch.save({"mean": mean.reshape(1, -1, 1, 1), "std": std.reshape(1, -1, 1, 1)}, temporary)


def load_statistics(folder: Path) -> tuple[Tensor, Tensor]:
    """Reads the (C, 1, 1) mean and deviation beside the shards.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise UserError(f"{path} does not exist; make it with `ldmae encode`")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        mean, std = (stored[name].reshape(-1, 1, 1).float() for name in ("mean", "std"))
        if len(mean) != len(std) or not (mean.isfinite() & std.isfinite() & (std > 0)).all():
            raise ValueError("not numbers, or standard deviations of 0")
    except Exception as error:  # unpickling raises whatever it likes
        raise UserError(
            f"{path} holds no mean and std ({type(error).__name__}); delete it and encode again"
        ) from error
    return mean, std


def latents_config(folder: Path) -> dict[str, list[float]]:
    """Returns the statistics beside the shards as the config of an autoencoder or a pipeline has them.

    Raises:
        UserError: as `load_statistics`.
    """
    mean, std = load_statistics(folder)
    return {"latents_mean": mean.flatten().tolist(), "latents_std": std.flatten().tolist()}
