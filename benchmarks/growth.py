"""How time and memory grow with tokens, batch, images and latents: fitted exponents and plots.

Every point is measured in a process of its own and kept in OUT/growth.json: what is there is not measured
again. All points are drawn in OUT/growth.png. Synthetic files go to a temporary folder (TMPDIR), or to --data
where they are to be kept: 7 GB for a million images, 2 GB for a million latents.

Usage: python benchmarks/growth.py [step memory images latents] [--most 1000000] [--data FOLDER]
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _timing import machine

TOKENS = (64, 256, 1024, 4096)
BATCHES = (1, 4, 16, 64)
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
PER_CLASS = 1_000
"""Images of a class folder or a tar shard, latents of a shard."""
IMAGE_SIDE = 48
CHANNELS, GRID = 4, 8
READS = 4_096
BATCH = 64

LABELS = {
    "VMAE step": "seconds per training step of one image, by tokens: VMAE f8d16",
    "DiT step": "seconds per training step of one image, by tokens: 2 blocks of LightningDiT-B/1",
    "VMAE step memory": "bytes of a training step, by batch: VMAE f8d16, 256 tokens",
    "DiT step memory": "bytes of a training step, by batch: 2 blocks of LightningDiT-B/1, 256 tokens",
    "folder index": "CPU seconds of the first start, by images: folder",
    "shards index": "CPU seconds of the first start, by images: tar shards",
    "folder index memory": "bytes of the first start, by images: folder",
    "shards index memory": "bytes of the first start, by images: tar shards",
    "folder start": "CPU seconds of a later start up to the first batch, by images: folder",
    "shards start": "CPU seconds of a later start up to the first batch, by images: tar shards",
    "latents open": "seconds to open, by latents",
    "latents read": "seconds per read, by latents",
}
POINTS = {
    "step": ("VMAE step", "DiT step"),
    "memory": ("VMAE step memory", "DiT step memory"),
    "index:folder": ("folder index", "folder index memory"),
    "start:folder": ("folder start",),
    "index:shards": ("shards index", "shards index memory"),
    "start:shards": ("shards start",),
    "latents": ("latents open", "latents read"),
}
"""What one process measures, and what its figures are called."""
PARTS = {
    "step": (("step",), TOKENS),
    "memory": (("memory",), BATCHES),
    "images": (("index:folder", "start:folder", "index:shards", "start:shards"), COUNTS),
    "latents": (("latents",), COUNTS),
}
PANELS = {
    "seconds by tokens": POINTS["step"],
    "bytes by batch": POINTS["memory"],
    "CPU seconds by images": ("folder index", "shards index", "folder start", "shards start"),
    "bytes by images": ("folder index memory", "shards index memory"),
    "seconds by latents": POINTS["latents"],
}


# ---- what is measured, each in a process of its own


def objectives(tokens: int, batch: int) -> dict[str, Any]:
    """Returns a training step of each model on so many tokens."""
    import torch
    from models import training_step

    from ldmae.autoencoders.masked_objective import MaskedObjective
    from ldmae.autoencoders.vmae import AutoencoderVMAE
    from ldmae.config.autoencoder import MaskedObjectiveConfig
    from ldmae.config.diffusion import FlowConfig
    from ldmae.core.device import resolve_precision, reuse_freed_memory
    from ldmae.diffusion.flow import FlowMatchingObjective
    from ldmae.diffusion.lightningdit import LightningDiTTransformer2DModel

    reuse_freed_memory()
    dtype = torch.bfloat16 if resolve_precision("auto", "cpu") == "bf16" else None
    side = round(tokens**0.5)
    vae = AutoencoderVMAE(sample_size=8 * side, use_mask_token=True)
    dit = LightningDiTTransformer2DModel(sample_size=side, in_channels=16, num_classes=10, num_layers=2)
    images = {"images": torch.rand(batch, 3, 8 * side, 8 * side) * 2 - 1}
    latents = {"latents": torch.randn(batch, 16, side, side), "labels": torch.arange(batch) % 10}
    masked = MaskedObjective(vae, MaskedObjectiveConfig(perceptual_weight=0.0))
    return {
        "VMAE": training_step(masked, images, "cpu", dtype),
        "DiT": training_step(FlowMatchingObjective(dit, FlowConfig()), latents, "cpu", dtype),
    }


def step(tokens: int, _: Path) -> dict[str, float]:
    from _timing import side_by_side

    turns, warmup = (1, 0) if tokens > 1024 else (5, 1)
    return {
        f"{name} step": side_by_side({name: work}, turns, warmup)[name]
        for name, work in objectives(tokens, batch=1).items()
    }


def memory(batch: int, _: Path) -> dict[str, float]:
    import torch

    from ldmae.evaluation.efficiency import peak_memory

    cpu, figures = torch.device("cpu"), {}
    single, whole = objectives(256, 1), objectives(256, batch)
    for name, work in whole.items():
        single[name]()  # what the first step of a process sets up
        figures[f"{name} step memory"] = peak_memory(work, cpu)[0]
    return figures


def index(count: int, folder: Path, kind: str) -> dict[str, float]:
    """Times the first start on so many images, in which each is looked at."""
    from ldmae.config.data import DataConfig
    from ldmae.evaluation.efficiency import high_water
    from ldmae.images.index import open_images

    config = DataConfig(source=str(part_of(folder / kind, count)))
    before, began = high_water(), time.process_time()
    open_images(config, folder / f"cache-{kind}-{count}", progress=False)
    return {
        f"{kind} index": time.process_time() - began,
        f"{kind} index memory": high_water() - before,
    }


def start(count: int, folder: Path, kind: str) -> dict[str, float]:
    """Times a later start, up to the first batch."""
    import torch

    from ldmae.config.data import AugmentConfig, DataConfig
    from ldmae.images.dataset import ImageDataset
    from ldmae.images.index import open_images
    from ldmae.training.data import KeyedBatches, keyed_loader

    torch.set_num_threads(1)
    config, cache = DataConfig(source=str(part_of(folder / kind, count))), folder / f"cache-{kind}-{count}"
    if not cache.exists():
        open_images(config, cache, progress=False)
    began = time.process_time()
    train, _ = open_images(config, cache, progress=False)
    dataset = ImageDataset(train, 32, 0, AugmentConfig())
    batches = KeyedBatches(len(train), BATCH, [range(BATCH)], 0, 1, 0)
    next(iter(keyed_loader(dataset, batches, 0, torch.device("cpu"))))
    return {f"{kind} start": time.process_time() - began}


def latents(count: int, folder: Path) -> dict[str, float]:
    import torch

    from ldmae.latents.shards import LatentDataset, LatentShards

    torch.set_num_threads(1)
    zero, one = torch.zeros(CHANNELS, 1, 1), torch.ones(CHANNELS, 1, 1)
    began = time.perf_counter()
    dataset = LatentDataset(LatentShards(part_of(folder / "latents", count)), CHANNELS, zero, one, seed=0)
    opened = time.perf_counter()
    for place in np.random.default_rng(0).integers(len(dataset), size=READS):
        dataset[(0, int(place))]
    return {"latents open": opened - began, "latents read": (time.perf_counter() - opened) / READS}


MEASURES = {"step": step, "memory": memory, "index": index, "start": start, "latents": latents}


def in_own_process(name: str, n: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--point", name, str(n), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- synthetic files


def part_of(folder: Path, count: int) -> Path:
    """Returns a folder of links to as many of the parts as hold `count` items."""
    linked = folder.with_name(f"{folder.name}-{count}")
    if not linked.exists():
        linked.mkdir()
        for entry in sorted(folder.iterdir())[: count // PER_CLASS]:
            (linked / entry.name).symlink_to(entry)
    return linked


def write_images(folder: Path, most: int) -> None:
    """Writes small JPEGs of smooth noise as class folders and as tar shards; every hundredth is a copy."""
    import torch
    from torchvision.io import encode_jpeg

    source = torch.Generator()
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    for part in range(most // PER_CLASS):
        name = f"{part:04d}"
        shard = folder / "shards" / f"{name}.tar"
        if shard.exists():
            continue
        source.manual_seed(part)
        (folder / "folder" / name).mkdir(parents=True, exist_ok=True)
        noise = torch.randint(256, (PER_CLASS, 3, 6, 6), dtype=torch.uint8, generator=source)
        noise[99::100] = noise[98::100]
        pictures = torch.nn.functional.interpolate(noise, size=(IMAGE_SIDE, IMAGE_SIDE), mode="bilinear")
        unfinished = folder / "unfinished"
        with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
            for k, picture in enumerate(pictures):
                # the copy is the picture before it, saved again in another quality
                content = encode_jpeg(picture, quality=60 if k % 100 == 99 else 80).numpy().tobytes()
                (folder / "folder" / name / f"{k:04d}.jpg").write_bytes(content)
                for ending, told in (("jpg", content), ("cls", str(part).encode())):
                    member = tarfile.TarInfo(f"{name}{k:04d}.{ending}")
                    member.size = len(told)
                    tar.addfile(member, io.BytesIO(told))
        unfinished.rename(shard)


def write_latents(folder: Path, most: int) -> None:
    import torch
    from safetensors.torch import save_file

    (folder / "latents").mkdir(parents=True, exist_ok=True)
    tensors = {
        "latents": torch.randn(PER_CLASS, 2 * CHANNELS, GRID, GRID),
        "labels": torch.zeros(PER_CLASS, dtype=torch.long),
    }
    for shard in range(most // PER_CLASS):
        save_file(tensors, folder / "latents" / f"latents_rank00_shard{shard:03d}.safetensors")


WRITERS = {"images": write_images, "latents": write_latents}


# ---- figures


def exponent(points: dict[int, float]) -> float:
    """Returns the exponent of a power law fitted to the points, of three or more without the smallest.

    There fixed costs dominate. Not a number for a single point.
    """
    xs = sorted(points)[len(points) > 2 :]
    if len(xs) < 2:
        return float("nan")
    return float(np.polyfit(np.log(xs), np.log([max(points[x], 1e-9) for x in xs]), 1)[0])


def table(results: dict[str, dict[int, float]]) -> str:
    lines = []
    for names in PANELS.values():
        known = [name for name in names if name in results]
        xs = sorted({x for name in known for x in results[name]})
        if known:
            lines += [f"\n| what | {' | '.join(f'{x:,}' for x in xs)} | exponent |"]
            lines += ["| --- |" + " --- |" * (len(xs) + 1)]
        for name in known:
            cells = [f"{results[name][x]:.3g}" if x in results[name] else "" for x in xs]
            lines.append(f"| {LABELS[name]} | {' | '.join(cells)} | {exponent(results[name]):.2f} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    known = {title: [name for name in names if name in results] for title, names in PANELS.items()}
    known = {title: names for title, names in known.items() if names}
    for k, (title, names) in enumerate(known.items()):
        axes = figure.add_subplot(2, 3, k + 1)
        for name in names:
            xs = sorted(results[name])
            axes.plot(
                xs, [results[name][x] for x in xs], "o-", label=f"{name}: {exponent(results[name]):.2f}"
            )
        axes.set(title=title, xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", title="exponent", title_fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    if sys.argv[1:2] == ["--point"]:
        name, n, folder = sys.argv[2:]
        name, _, kind = name.partition(":")
        print(json.dumps(MEASURES[name](int(n), Path(folder), *[kind] if kind else [])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="by default all")
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="images and latents at most")
    parser.add_argument("--data", type=Path, help="keep the synthetic files in this folder")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    arguments = parser.parse_args()
    kept = arguments.out / "growth.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts or PARTS:
        names, sizes = PARTS[part]
        wanted = [(n, name) for n in sizes if n <= arguments.most for name in names]
        wanted = [(n, name) for n, name in wanted if n not in read(kept).get(POINTS[name][0], {})]
        with tempfile.TemporaryDirectory() as temporary:
            place = arguments.data or Path(temporary)
            if part in WRITERS and wanted:
                WRITERS[part](place, wanted[-1][0])
            for n, name in wanted:
                points = in_own_process(name, n, place)
                results = read(kept)
                for what, value in points.items():
                    results.setdefault(what, {})[n] = value
                    print(f"{LABELS[what]}, {n:,}: {value:.4g}", file=sys.stderr, flush=True)
                kept.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    results = read(kept)
    draw(results, arguments.out / "growth.png")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{machine()}; threads: {threads}\n{table(results)}")


def read(kept: Path) -> dict[str, dict[int, float]]:
    """Returns the points measured so far."""
    stored = json.loads(kept.read_text()) if kept.exists() else {}
    return {what: {int(n): value for n, value in points.items()} for what, points in stored.items()}


if __name__ == "__main__":
    main()
