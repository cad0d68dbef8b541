"""The arrow images → latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ldmae.config import Config
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
from ldmae.recipes.threads import settle_for_encoding
from ldmae.stages import changed_settings

_MADE_OF = {"settings": dict, "inputs": dict}
"""The shape of `made_of.json` beside shards."""


def encode(run: Run) -> None:
    """Encodes every training image, and its mirror image, into `latents/`, with statistics."""
    config, folder = run.config, run.folder / "latents"
    foreign = config.latents.fingerprint == "skip" and "latents" not in run.book.records
    if foreign and any(folder.glob("*.safetensors")):  # shards that others made are used as they are
        if run.main and not (folder / FILE_NAME).exists():
            _save_statistics(folder, latent_channels(run_autoencoder(run), config.image_size)[0], config)
        run.accelerator.wait_for_everyone()
        return
    autoencoder = run_autoencoder(run).to(run.accelerator.device)
    maker = latents_fingerprint(autoencoder, config.image_size)
    settings, inputs = latents_settings(config), {**run.images, "encoder": maker}
    count = None if run.stream is not None else len(run.train)
    (there,) = broadcast_object_list([_all_there(folder, count)])
    if not run.needed("latents", settings, inputs, folder / FILE_NAME) and there:
        return
    output = fingerprint([maker, json.dumps(settings), *run.images.values()])
    begun = run.book.records.get("diffusion")
    if begun is not None and begun.inputs != {"latents": output}:
        before = run.book.records["latents"].inputs if "latents" in run.book.records else {}
        raise other_latents(changed_settings(before, inputs))
    with run.book.running("latents", settings, inputs) as record:
        settle_for_encoding(run, autoencoder)
        images = image_dataset(run, config.image_size, None)
        encode_into(folder, autoencoder, images, config, run.accelerator, inputs)
        record.output = output


def _all_there(folder: Path, count: int | None) -> bool:
    """Says whether a folder holds as many latents as there are images; of a stream, None, whether any.

    Raises:
        UserError: a shard is damaged.
    """
    if not any(folder.glob("*.safetensors")):
        return False
    return count in (None, len(LatentShards(folder)))


def encode_into(
    folder: Path,
    autoencoder: Any,
    images: ImageDataset | StreamDataset,
    config: Config,
    accelerator: Accelerator,
    inputs: dict[str, str],
) -> None:
    """Writes shards and their statistics into a folder; goes on where it was interrupted.

    What is there is kept where it is whole, however many processes made it. Part of it made by another number
    of them is made anew.

    Args:
        folder: where they go.
        autoencoder: any, on its device.
        images: all are encoded, in their order; a stream's in the order in which they come.
        config: image size, format, number of samples for the statistics.
        accelerator: each process writes a contiguous range.
        inputs: what the shards are made of, `encoder` among it; shards of anything else are deleted.
    """
    count = None if isinstance(images, StreamDataset) else len(images)
    whole = False
    if accelerator.is_main_process:
        whole = _make_room(folder, _mark(config, inputs), accelerator.num_processes, count)
    (whole,) = broadcast_object_list([whole])
    if isinstance(images, StreamDataset):
        _encode_streamed(folder, autoencoder, images, config, accelerator, inputs["encoder"])
    elif not whole:
        _encode_indexed(folder, autoencoder, images, config, accelerator, inputs["encoder"])
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
        advance=advance,
    )


def _mark(config: Config, inputs: dict[str, str]) -> dict[str, Any]:
    """Returns what shards are made of, as `made_of.json` beside them has it."""
    settings = latents_settings(config)
    del settings["statistics_samples"]  # of shards that are there
    return {"settings": settings, "inputs": inputs}


def refuse_other_latents(folder: Path, config: Config, inputs: dict[str, str]) -> None:
    """Raises for a folder that holds latents of another autoencoder, of other images or settings.

    Raises:
        UserError: it does; they may have taken days.
    """
    path = folder / "made_of.json"
    if not path.exists() or not any(folder.glob("*.safetensors")):
        return
    before = {name: read_json(path, _MADE_OF)[name] for name in _MADE_OF}
    before["settings"].pop("statistics_samples", None)  # as an older version wrote it
    changed = changed_settings(before, _mark(config, inputs))
    if changed:
        raise UserError(
            f"{folder} holds latents of something else: {'; '.join(changed)}. Name another folder with "
            "--out, or remove that one"
        )


def _make_room(folder: Path, mark: dict[str, Any], processes: int, count: int | None) -> bool:
    """Deletes shards that do not belong to what is to be made, and says so; returns whether all is there.

    Raises:
        UserError: the folder holds shards that were not made here.
    """
    path, shards = folder / "made_of.json", sorted(folder.glob("*.safetensors"))
    if shards and not path.exists():
        raise UserError(
            f"{folder} holds {len(shards)} .safetensors files that were not made here; use shards of others "
            "with latents.fingerprint=skip, or move them away to encode into this folder"
        )
    before = read_json(path, _MADE_OF) if path.exists() else {}
    if shards and {**before, "processes": 0} == {**mark, "processes": 0}:
        if len(LatentShards(folder)) == count:
            return True
        if before.get("processes") == processes:
            return False
    if shards:
        changed = changed_settings(before, {**mark, "processes": processes})
        console.print(f"encoding all again: {'; '.join(changed)}", markup=False, soft_wrap=True)
    for stale in [*shards, folder / FILE_NAME]:
        stale.unlink(missing_ok=True)
    write_json(path, {**mark, "processes": processes})
    return False
