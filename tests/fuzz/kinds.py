"""What is damaged, and what then reads it as a user's command would."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from ldmae.config import load_config, save_config
from ldmae.config.data import DataConfig
from ldmae.contracts import Metric
from ldmae.conversion import load_official_vmae
from ldmae.conversion.vmae import to_official_checkpoint
from ldmae.core.files import read_json, write_json
from ldmae.core.provenance import Record, Records
from ldmae.evaluation.api import Measured
from ldmae.evaluation.image_sets import read_samples
from ldmae.evaluation.results import merge_results, write_results
from ldmae.images.index import open_all_images
from ldmae.latents.shards import LatentDataset, LatentShards
from ldmae.latents.statistics import latent_statistics, load_statistics, save_statistics
from ldmae.loading import load_autoencoder, load_pipeline
from ldmae.report.run import render_report

from ..pictures import encoded, tarred
from ..tiny import tiny_pipeline, tiny_vmae
from .mutations import damage_file, damaged_bytes, damaged_value, odd

Case = Callable[[Path, Random], None]
"""Makes something damaged in an empty folder, and reads it."""


KEPT = TemporaryDirectory(prefix="fuzz-")
"""What is made once and damaged in copies."""

# ---- settings

KEYS = (
    "seed",
    "image_size",
    "diffusion.training.steps",
    "data",
    "autoencoder.model",
    "sampling",
    "latents.dtype",
)
TEXTS = (
    "!!int x",
    "!!timestamp x",
    "[=",
    "9" * 5000,
    "0x" + "f" * 5000,
    "{}",
    "&a [*a]",
    "[" * 1000,
    "${oc.env:HOME}",
    "${seed}${seed}${seed}",
    "!!python/object/apply:os.getcwd []",
    "'\\ud800'",
    "{<<: 1}",
    "? [a]\n: b",
)
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


def settings(folder: Path, random: Random) -> None:
    """A YAML file, and an override."""
    value = yaml.safe_load(yaml.safe_dump(_plain_settings()))
    for _ in range(random.choice((0, 1, 2))):
        value = damaged_value(value, random)
    text = yaml.safe_dump(value, allow_unicode=True) if random.random() < 0.9 else LAUGHS
    if random.random() < 0.3:
        text = damaged_bytes(text.encode(errors="surrogatepass"), random).decode(errors="replace")
    if random.random() < 0.3:
        text += f"\n{random.choice(KEYS).partition('.')[0]}: {random.choice(TEXTS)}\n"
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    overrides = [f"{random.choice(KEYS)}={random.choice((*TEXTS, odd(random)))}"]
    config = load_config(str(path), overrides[: random.randrange(2)])
    save_config(config, folder / "again.yaml")
    assert load_config(str(folder / "again.yaml")) == config


@cache
def _plain_settings() -> dict[str, Any]:
    text = (Path(__file__).parents[2] / "src" / "ldmae" / "config" / "presets" / "smoke.yaml").read_text()
    return yaml.safe_load(text)


# ---- images


@cache
def _pictures() -> list[tuple[str, bytes]]:
    made = []
    for number, ending in enumerate(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PNG", "TIFF")):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 14, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image = image.convert("P") if number == 6 else image.convert("I;16") if number == 7 else image
        made.append((f"{number}.{ending.lower()}", encoded(image, ending)))
    return made


def images(folder: Path, random: Random) -> None:
    """A folder of pictures, as training data and as samples."""
    place = folder / "pictures"
    place.mkdir()
    pictures = _pictures() * 2
    broken = random.randrange(len(pictures))
    for number, (name, content) in enumerate(pictures):
        damaged = damaged_bytes(content, random) if number == broken else content
        (place / f"{number}-{name}").write_bytes(damaged)
    _read_all(place, folder / "cache", random)


def _read_all(source: Path, cache: Path, random: Random) -> None:
    config = DataConfig(source=str(source), max_unreadable=random.choice((0.0, 1.0)))
    found = open_all_images(config, cache)
    for index in range(min(3, len(found))):
        found.read(index)
    if random.random() < 0.3:  # what is kept of them is made again where it is damaged
        damage_file(random.choice(sorted(cache.iterdir())), random)
        assert open_all_images(config, cache).fingerprint() == found.fingerprint()
    if source.is_dir() and random.random() < 0.5:
        list(read_samples(source).batches(4))


def shards(folder: Path, random: Random) -> None:
    """A tar shard with labels."""
    members = {}
    for number, (name, picture) in enumerate(_pictures()[:4]):
        label = str(random.choice((number % 2, number % 2, odd(random)))).encode(errors="replace")[:200]
        members |= {f"{number}{Path(name).suffix}": picture, f"{number}.cls": label}
    content = tarred(members)
    path = folder / "shard.tar"
    path.write_bytes(damaged_bytes(content, random) if random.random() < 0.7 else content)
    _read_all(path, folder / "cache", random)


def tables(folder: Path, random: Random) -> None:
    """A parquet file of pictures and labels."""
    labels: list[Any] = [number % 2 for number in range(4)]
    if random.random() < 0.5:
        wrong = odd(random)
        if isinstance(wrong, str):
            wrong = wrong.encode(errors="replace").decode()
        labels = [wrong if isinstance(wrong, str | float | bool) else 0] * 4
        labels = [
            label.encode(errors="replace").decode() if isinstance(label, str) else label for label in labels
        ]
    pictures = [{"bytes": content, "path": name} for name, content in _pictures()[:4]]
    if random.random() < 0.3:
        pictures[0]["bytes"] = damaged_bytes(pictures[0]["bytes"], random)  # pyright: ignore
    path = folder / "table.parquet"
    pq.write_table(pa.table({"image": pictures, "label": labels}), path)
    if random.random() < 0.6:
        path.write_bytes(damaged_bytes(path.read_bytes(), random))
    _read_all(path, folder / "cache", random)


# ---- latents, samples, checkpoints


@cache
def _latents() -> Path:
    folder = Path(KEPT.name, "latents")
    folder.mkdir()
    torch.manual_seed(0)
    for number in range(2):
        tensors = {"latents": torch.randn(3, 4, 2, 2), "labels": torch.arange(3)}
        save_file(tensors, folder / f"latents_rank00_shard{number:03d}.safetensors", {"fingerprint": "x"})
    save_statistics(folder, *latent_statistics(LatentShards(folder), 4, 6, 0))
    return folder


def latents(folder: Path, random: Random) -> None:
    """Shards and their statistics."""
    place = Path(shutil.copytree(_latents(), folder / "latents"))
    path = random.choice(sorted(place.iterdir()))
    if path.suffix == ".safetensors" and random.random() < 0.5:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        head = damaged_bytes(content[8 : 8 + length], random)
        path.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
    elif path.suffix == ".pt" and random.random() < 0.5:
        stored = odd(random) if random.random() < 0.5 else {"mean": odd(random), "std": torch.ones(4)}
        torch.save(stored, path)
    else:
        damage_file(path, random)
    found = LatentShards(place)
    found.labels()
    dataset = LatentDataset(found, 4, *load_statistics(place), 0)
    for index in range(len(dataset)):
        dataset[(0, index)]


def samples(folder: Path, random: Random) -> None:
    """An .npz of images and labels."""
    path = folder / "samples.npz"
    arrays: list[Any] = [np.zeros((3, 4, 5, 3), np.uint8), np.arange(3)]
    if random.random() < 0.3:
        wrong = odd(random)
        arrays[random.randrange(2)] = np.array(str(wrong)[:50] if isinstance(wrong, dict | list) else wrong)
    random.choice((np.savez, np.savez_compressed))(path, *arrays)
    path.write_bytes(damaged_bytes(path.read_bytes(), random))
    list(read_samples(path).batches(2))


@cache
def _checkpoint() -> dict[str, Any]:
    return to_official_checkpoint(tiny_vmae())


def checkpoints(folder: Path, random: Random) -> None:
    """An official checkpoint of a VMAE."""
    checkpoint = {**_checkpoint(), "model": dict(_checkpoint()["model"])}
    path = folder / "vmae.pth"
    if random.random() < 0.7:
        weights = checkpoint["model"]
        key = random.choice(sorted(weights))
        kind = random.random()
        if kind < 0.2:
            checkpoint = damaged_value(checkpoint, random)
        elif kind < 0.4:
            weights[key] = random.choice(
                (torch.full_like(weights[key], torch.nan), weights[key].to(torch.int8))
            )
        elif kind < 0.6:
            shape = [random.choice((0, 1, 3, 16)) for _ in range(random.randrange(5))]
            weights[key] = torch.zeros(shape)
        elif kind < 0.8:
            weights[random.choice(("blocks.999999999.norm1.weight", "blocks.x.y", "extra"))] = weights.pop(
                key
            )
        else:
            checkpoint["ldmae"] = damaged_value(checkpoint["ldmae"], random)
        torch.save(checkpoint, path)
    else:
        torch.save(checkpoint, path)
        damage_file(path, random)
    load_official_vmae(path)


# ---- run folders


@cache
def _run() -> Path:
    folder = Path(KEPT.name, "run")
    folder.mkdir()
    pipeline = tiny_pipeline(id2label={0: "a", 1: "b"})
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.vae.save_pretrained(folder / "autoencoder")
    save_config(load_config("smoke"), folder / "config.yaml")
    records = Records(folder)
    records.stages = {name: Record(status="done", seconds=1.0) for name in ("latents", "samples")}
    records.tick("latents", 2.0)
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    measured = Measured(
        [Metric(name="PSNR", value=30.0, counts={"images": 4})],
        {"originals": pixels, "reconstructions": pixels},
    )
    write_results(folder, "reconstruction", "Reconstruction", measured)
    write_json(
        folder / "data.json", {"name": "x", "train": 4, "held_out": 1, "classes": [{"name": "a", "train": 4}]}
    )
    write_json(folder / "parameters.json", {"diffusion": {"total": 10, "trainable": 9}})
    write_json(folder / "run.json", {"command": ["ldmae", "run", "smoke"]})
    line = '{"stage": "diffusion", "step": 1, "loss": 0.5, "terms": {}, "seconds": 1.0}\n'
    (folder / "metrics.jsonl").write_text(line * 3)
    (folder / "samples" / "images").mkdir(parents=True)
    (folder / "samples" / "grid.png").write_bytes(_pictures()[0][1])
    for number in range(2):
        (folder / "samples" / "images" / f"{number:04d}.png").write_bytes(_pictures()[0][1])
    write_json(
        folder / "samples" / "samples.json", {"labels": [0, 1], "class_names": ["a", "b"], "solver": "euler"}
    )
    return folder


def run_folders(folder: Path, random: Random) -> None:
    """A file of a finished run: settings, records, figures, models, pictures."""
    run = Path(shutil.copytree(_run(), folder / "run"))
    path = random.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    damage_file(path, random)
    inside = path.relative_to(run).parts
    if inside[0] == "pipeline":
        load_pipeline(str(run))
    elif inside[0] == "autoencoder":
        load_autoencoder(str(run))
    elif inside[0] == "config.yaml":
        load_config(str(path))
    elif inside[0] == "stages.json":
        Records(run)
    elif inside[0] == "results":
        merge_results(run)
    elif path.suffix == ".json" and path.exists():
        read_json(path, dict)
    render_report(run)


KINDS: dict[str, Case] = {
    case.__name__: case
    for case in (settings, images, shards, tables, latents, samples, checkpoints, run_folders)
}
