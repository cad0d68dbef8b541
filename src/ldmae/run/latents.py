"""The stage images → latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ldmae.config import Config
from ldmae.core.errors import UserError
from ldmae.core.files import content_digests, fingerprint, fingerprint_tensors
from ldmae.core.progress import progress_bar, tell
from ldmae.core.provenance import Record, read_record, refuse_others, write_record
from ldmae.diffusion.backbones import build_backbone
from ldmae.images.dataset import ImageDataset, StreamDataset
from ldmae.latents.encode import encode_images, encode_stream
from ldmae.latents.shards import LatentShards
from ldmae.latents.statistics import FILE_NAME, latent_statistics, load_statistics, save_statistics
from ldmae.run.run import Run, image_dataset, latent_channels, run_autoencoder
from ldmae.run.threads import settle_for_encoding
from ldmae.run.trainings import latents_settings

_RECORD = "made_of.json"


def encode(run: Run) -> dict[str, str]:
    """Encodes every training image, and its mirror image, into `latents/`, with statistics."""
    config, folder, record = run.config, run.folder / "latents", run.records.stages["latents"]
    autoencoder = run_autoencoder(run).to(run.accelerator.device)
    if run.takes_autoencoder:  # a grid that its patches don't divide is said before all is encoded
        channels, grid = latent_channels(autoencoder, config.image_size)
        with torch.device("meta"):
            build_backbone(config.diffusion, grid, channels, 2)
    settle_for_encoding(run, autoencoder)
    images = image_dataset(run, config.image_size, None)
    encode_into(folder, autoencoder, images, config, run.accelerator, record.inputs)
    return {"latents": record.made_of}


def all_encoded(run: Run) -> bool:
    """Says whether there are as many latents as images; of a stream, whether there are any.

    Raises:
        UserError: a shard is damaged.
    """
    folder = run.folder / "latents"
    if not any(folder.glob("*.safetensors")):
        return False
    return run.stream is not None or len(LatentShards(folder)) == len(run.train)


def _is_adopted(run: Run, what: str = "*.safetensors") -> bool:
    """Says whether `latents/` holds shards that others made, and the settings allow them."""
    if run.config.latents.fingerprint != "skip" or "latents" in run.records.stages:
        return False
    return broadcast_object_list([any((run.folder / "latents").glob(what))])[0]  # as the main process sees it


def adopt_latents(run: Run) -> bool:
    """Takes shards that others made as they are, with their statistics; returns whether there are any."""
    folder = run.folder / "latents"
    if not _is_adopted(run):
        return False
    if run.main and not (folder / FILE_NAME).exists():
        channels, _ = latent_channels(run_autoencoder(run), run.config.image_size)
        _save_statistics(folder, channels, run.config)
    return True


def adopted_latents(run: Run) -> str | None:
    """Returns a fingerprint of shards that others made, with their statistics; None where there are none."""
    folder = run.folder / "latents"
    if not _is_adopted(run) or not _is_adopted(run, FILE_NAME):
        return None
    mean, std = load_statistics(folder)
    paths = LatentShards(folder).paths
    digests: list[str] = content_digests(paths, run.folder / "data" / "latents.json") if run.main else []
    (digests,) = broadcast_object_list([digests])
    return fingerprint([*digests, fingerprint_tensors({"mean": mean, "std": std})])


def encode_into(
    folder: Path,
    autoencoder: Any,
    images: ImageDataset | StreamDataset,
    config: Config,
    accelerator: Accelerator,
    inputs: dict[str, str],
) -> None:
    """Writes shards and their statistics into a folder; resumes where it was interrupted.

    What is there is kept where it is whole, however many processes made it. Part of it made by another number
    of them is made again. Images of a stream are encoded in the order in which they come. Each process writes
    a contiguous range. Shards made of other `inputs` (`encoder` among them) are deleted.
    """
    count = None if isinstance(images, StreamDataset) else len(images)
    whole, maker = False, inputs["encoder"]
    if accelerator.is_main_process:
        whole = _make_room(folder, _made_of(config, inputs, accelerator.num_processes), count)
    (whole,) = broadcast_object_list([whole])
    if isinstance(images, StreamDataset):
        _encode_streamed(folder, autoencoder, images, config, accelerator, maker)
    elif not whole:
        rank, world = accelerator.process_index, accelerator.num_processes
        share = (rank + 1) * len(images) // world - rank * len(images) // world
        with progress_bar("encoding", share, "images", show=accelerator.is_main_process) as advance:
            encode_images(
                autoencoder, images, folder, config.latents, maker, rank=rank, world=world, advance=advance
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _save_statistics(folder, latent_channels(autoencoder, config.image_size)[0], config)
    accelerator.wait_for_everyone()


def _save_statistics(folder: Path, channels: int, config: Config) -> None:
    shards = LatentShards(folder)
    samples = min(config.latents.statistics_samples, len(shards))
    with progress_bar("statistics", samples, "latents") as advance:
        statistics = latent_statistics(shards, channels, samples, config.seed, advance)
    save_statistics(folder, *statistics)


def _encode_streamed(
    folder: Path,
    autoencoder: Any,
    images: StreamDataset,
    config: Config,
    accelerator: Accelerator,
    maker: str,
) -> None:
    done = 0

    def advance(n: int, note: str) -> None:
        nonlocal done
        if (done + n) // 10_000 > done // 10_000 and accelerator.is_main_process:
            tell(f"encoding: {done + n} images of the stream by this process")
        done += n

    if accelerator.is_main_process:  # a stream is encoded from its beginning
        for stale in folder.glob("*.safetensors"):
            stale.unlink()
    accelerator.wait_for_everyone()
    encode_stream(
        autoencoder, images, folder, config.latents, maker, rank=accelerator.process_index, advance=advance
    )


def _made_of(config: Config, inputs: dict[str, str], processes: int) -> Record:
    """Returns what shards are made of, as `made_of.json` beside them has it."""
    settings = latents_settings(config)
    del settings["statistics_samples"]  # of shards that are there
    return Record(settings, inputs, processes=processes)


def refuse_other_latents(folder: Path, config: Config, inputs: dict[str, str]) -> None:
    """Raises for a folder that holds latents of another autoencoder, of other images or settings.

    Raises:
        UserError: it does; they may have taken days.
    """
    before = read_record(folder / _RECORD)
    if before is None or not any(folder.glob("*.safetensors")):
        return
    now = _made_of(config, inputs, before.processes)
    refuse_others(folder, "latents", before.changes(now.settings, now.inputs))


def _make_room(folder: Path, now: Record, count: int | None) -> bool:
    """Deletes shards that do not belong to what is to be made, and says so; returns whether all is there.

    Raises:
        UserError: the folder holds shards that were not made here.
    """
    shards, before = sorted(folder.glob("*.safetensors")), read_record(folder / _RECORD)
    if shards and before is None:
        raise UserError(
            f"{folder} holds {len(shards)} .safetensors files that were not made here; use shards of others "
            "with latents.fingerprint=skip, or move them away to encode into this folder"
        )
    if shards and before is not None:
        changes = before.changes(now.settings, now.inputs)
        if not changes and len(LatentShards(folder)) == count:
            return True
        if not changes and before.processes == now.processes:
            return False
        if before.processes != now.processes:
            changes.append(f"processes: {before.processes} -> {now.processes}")
        tell(f"encoding all again: {'; '.join(changes)}")
    for stale in [*shards, folder / FILE_NAME]:
        stale.unlink(missing_ok=True)
    write_record(folder / _RECORD, now)
    return False
