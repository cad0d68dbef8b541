"""The arrow images → latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, read_json, write_json
from ldmae.core.progress import console, progress_bar
from ldmae.images.dataset import ImageDataset, StreamDataset
from ldmae.latents.encode import encode_images, encode_stream
from ldmae.latents.shards import LatentShards
from ldmae.latents.statistics import FILE_NAME, latent_statistics, save_statistics
from ldmae.recipes.run import (
    Run,
    image_dataset,
    latent_channels,
    latents_fingerprint,
    other_latents,
    run_autoencoder,
)
from ldmae.recipes.settings import latents_settings
from ldmae.settings import Config
from ldmae.stages import changed_settings


def encode(run: Run) -> None:
    """Encodes every training image, and its mirror image, into `latents/`, with statistics."""
    config, folder = run.config, run.folder / "latents"
    foreign = config.latents.fingerprint == "skip" and "latents" not in run.book.records
    if foreign and any(folder.glob("*.safetensors")):
        return  # shards that others made are used as they are
    autoencoder = run_autoencoder(run).to(run.accelerator.device)
    maker = latents_fingerprint(autoencoder, config.image_size)
    settings, inputs = latents_settings(config), {**run.images, "encoder": maker}
    if not run.needed("latents", settings, inputs, folder / FILE_NAME):
        return
    output = fingerprint([maker, json.dumps(settings), *run.images.values()])
    begun = run.book.records.get("diffusion")
    if begun is not None and begun.inputs != {"latents": output}:
        before = run.book.records["latents"].inputs if "latents" in run.book.records else {}
        raise other_latents(changed_settings(before, inputs))
    with run.book.running("latents", settings, inputs) as record:
        images = image_dataset(run, config.image_size, None)
        encode_into(folder, autoencoder, images, config, run.accelerator, inputs)
        record.output = output


def encode_into(
    folder: Path,
    autoencoder: Any,
    images: ImageDataset | StreamDataset,
    config: Config,
    accelerator: Accelerator,
    inputs: dict[str, str],
) -> None:
    """Writes shards and their statistics into a folder; goes on where it was interrupted.

    Args:
        folder: where they go.
        autoencoder: any, on its device.
        images: all are encoded, in their order; a stream's in the order in which they come.
        config: image size, format, number of samples for the statistics.
        accelerator: each process writes a contiguous range.
        inputs: what the shards are made of, `encoder` among it; shards of anything else are deleted.
    """
    world = accelerator.num_processes
    if accelerator.is_main_process:
        mark = {"processes": world, "precision": accelerator.mixed_precision}
        _drop_stale_shards(folder, {**mark, "settings": latents_settings(config), "inputs": inputs})
    accelerator.wait_for_everyone()
    if isinstance(images, StreamDataset):
        _encode_streamed(folder, autoencoder, images, config, accelerator, inputs["encoder"])
    else:
        _encode_indexed(folder, autoencoder, images, config, accelerator, inputs["encoder"])
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        channels = latent_channels(autoencoder, config.image_size)[0]
        shards = LatentShards(folder)
        samples = min(config.latents.statistics_samples, len(shards))
        with progress_bar("statistics", samples, "latents") as advance:
            statistics = latent_statistics(shards, channels, samples, config.seed, advance)
        save_statistics(folder, *statistics)
    accelerator.wait_for_everyone()


def _encode_indexed(
    folder: Path, autoencoder: Any, images: ImageDataset, config: Config, accelerator: Accelerator, maker: str
) -> None:
    rank, world = accelerator.process_index, accelerator.num_processes
    share = (rank + 1) * len(images) // world - rank * len(images) // world
    with progress_bar("encoding", share, "images", show=accelerator.is_main_process) as advance:
        encode_images(
            autoencoder,
            images,
            folder,
            config.latents,
            maker,
            rank=rank,
            world=world,
            autocast=lambda: accelerator.autocast(),
            advance=advance,
        )


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
            console.print(f"encoding: {done + n} images of the stream by this process")
        done += n

    if accelerator.is_main_process:  # a stream is encoded from its beginning
        for stale in folder.glob("*.safetensors"):
            stale.unlink()
    accelerator.wait_for_everyone()
    encode_stream(
        autoencoder,
        images,
        folder,
        config.latents,
        maker,
        rank=accelerator.process_index,
        autocast=lambda: accelerator.autocast(),
        advance=advance,
    )


def _drop_stale_shards(folder: Path, mark: dict[str, Any]) -> None:
    """Deletes shards that other images, settings or numbers of processes made, and says what follows.

    Raises:
        UserError: the folder holds shards that were not made here.
    """
    path, shards = folder / "made_of.json", sorted(folder.glob("*.safetensors"))
    if shards and not path.exists():
        raise UserError(
            f"{folder} holds {len(shards)} .safetensors files that were not made here; use shards of others "
            "with latents.fingerprint=skip, or move them away to encode into this folder"
        )
    if not path.exists() or read_json(path) != mark:
        for stale in [*shards, folder / FILE_NAME]:
            stale.unlink(missing_ok=True)
        write_json(path, mark)
