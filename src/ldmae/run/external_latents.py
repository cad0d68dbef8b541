"""Latents of any images by any autoencoder, without a run of its own."""

from __future__ import annotations

from pathlib import Path

from ldmae.core.errors import UserError
from ldmae.core.files import write_json
from ldmae.core.locks import locked
from ldmae.images.dataset import ImageDataset
from ldmae.images.index import open_all_images
from ldmae.run.external import open_autoencoder
from ldmae.run.latents import encode_into, refuse_other_latents
from ldmae.run.opening import open_accelerator
from ldmae.run.run import latents_fingerprint
from ldmae.run.threads import encoding, settle_alone


def encode_with(source: str, overrides: list[str], folder: Path, allow_code: bool = False) -> int:
    """Encodes all images of `data` with any autoencoder into shards in LightningDiT's layout.

    Args:
        source: the autoencoder: whatever `load_autoencoder` takes.
        overrides: settings as key=value; `data=PATH` is needed.
        folder: where shards and `latents_stats.pt` go.
        allow_code: whether the source, a folder, may name code to run.

    Returns:
        How many images were encoded.
    """
    if any(each.startswith("data.val=") for each in overrides):
        raise UserError("`ldmae encode` takes all images of data and holds none out; omit data.val")
    autoencoder, config, _ = open_autoencoder(source, overrides, allow_code)
    with locked(folder):
        accelerator = open_accelerator(config, folder)
        with accelerator.main_process_first():
            images = open_all_images(config.data, folder / "data", progress=accelerator.is_main_process)
        inputs = {
            "images": images.fingerprint(),
            "encoder": latents_fingerprint(autoencoder, config.image_size),
        }
        refuse_other_latents(folder, config, inputs)
        dataset = ImageDataset(images, config.image_size, config.seed, None)
        autoencoder = autoencoder.to(accelerator.device)
        if accelerator.num_processes == 1:
            work, amount = encoding(autoencoder, config.image_size, config.latents.batch_size)
            settle_alone(work, amount, accelerator.device, config.threads, source)
        encode_into(folder, autoencoder, dataset, config, accelerator, inputs)
        if accelerator.is_main_process:
            made = {"autoencoder": source, "image_size": config.image_size, "classes": images.classes}
            write_json(folder / "latents.json", made)
    return len(images)
