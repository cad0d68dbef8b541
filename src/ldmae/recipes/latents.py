"""The arrow images → latents."""

from __future__ import annotations

import json
from pathlib import Path

from ldmae.core.files import fingerprint, write_json
from ldmae.core.progress import progress_bar
from ldmae.latents.encode import encode_images
from ldmae.latents.shards import LatentShards
from ldmae.latents.statistics import latent_statistics, save_statistics
from ldmae.recipes.run import Run, image_dataset, latent_channels, latents_fingerprint, plain, run_autoencoder


def encode(run: Run) -> None:
    """Encodes every training image, and its mirror image, into `latents/`, with statistics."""
    config, folder = run.config, run.folder / "latents"
    autoencoder = run_autoencoder(run).to(run.accelerator.device)
    maker = latents_fingerprint(autoencoder, config.image_size)
    settings = {
        key: value for key, value in plain(config.latents).items() if key not in ("batch_size", "fingerprint")
    }
    inputs = {**run.images, "encoder": maker}
    if not run.book.needed("latents", settings, inputs, folder / "latents_stats.pt"):
        return
    with run.book.running("latents", settings, inputs) as record:
        if run.main:
            _drop_stale_shards(folder, run.accelerator.num_processes)
        run.accelerator.wait_for_everyone()
        images = image_dataset(run, config.image_size, None)
        rank, world = run.accelerator.process_index, run.accelerator.num_processes
        share = (rank + 1) * len(images) // world - rank * len(images) // world
        with progress_bar("encoding", share, "images", show=run.main) as advance:
            encode_images(
                autoencoder,
                images,
                folder,
                config.latents,
                maker,
                rank=rank,
                world=world,
                autocast=lambda: run.accelerator.autocast(),
                advance=advance,
            )
        run.accelerator.wait_for_everyone()
        if run.main:
            shards = LatentShards(folder)
            channels = latent_channels(autoencoder, config.image_size)[0]
            samples = config.latents.statistics_samples
            save_statistics(folder, *latent_statistics(shards, channels, samples, config.seed))
        record.output = fingerprint([maker, json.dumps(settings), *run.images.values()])
        run.accelerator.wait_for_everyone()


def _drop_stale_shards(folder: Path, world: int) -> None:
    """Deletes shards of a run with other processes, whose ranges differ."""
    mark = folder / "processes.json"
    if not mark.exists() or mark.read_text() != str(world):
        for path in folder.glob("*.safetensors"):
            path.unlink()
        write_json(mark, world)
