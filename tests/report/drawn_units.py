"""A comparison's unit folders as `ldmae compare` leaves them: real photographs, plausible figures."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage import data

from ldmae.contracts import RESULTS_SCHEMA, Metric

VARIANTS = {
    "ae": ("AE", "autoencoders", 0.9),
    "dae": ("DAE", "autoencoders", 1.1),
    "vae": ("VAE", "autoencoders", 2.6),
    "sd-vae": ("SD-VAE", "autoencoders", 1.3),
    "vmae": ("VMAE", "autoencoders", 0.7),
    "vmae-mse": ("MSE only", "ablation", 0.9),
    "vmae-lm": ("+ L_M", "ablation", 0.85),
    "vmae-lm-lreg": ("+ L_reg", "ablation", 0.8),
}
"""Title, group, and how many pixels the stand-in for a reconstruction is blurred."""
CLASSES = ["astronaut", "coffee", "chelsea the cat", "rocket"]
EPSILONS = (0, 0.01, 0.05, 0.1, 0.2, 0.3)


@functools.cache
def crops(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Returns uint8 (count, size, size, 3) out of scikit-image's colour photographs."""
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    random = np.random.default_rng(seed)
    images = []
    for i in range(count):
        photo = photos[i % len(photos)][..., :3]
        y, x = (random.integers(0, side - 2 * size) for side in photo.shape[:2])
        crop = Image.fromarray(photo[y : y + 2 * size, x : x + 2 * size])
        images.append(np.asarray(crop.resize((size, size), Image.Resampling.BOX)))
    return np.stack(images)


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    kernel = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(kernel)) for image in images])


def results_of(variant: str, seed: int, features: str = "efficientnet_lite0") -> list[dict]:
    """Returns plausible figures, of which each autoencoder and seed has its own."""
    radius = VARIANTS[variant][2]
    random = np.random.default_rng(zlib.crc32(f"{variant} {seed}".encode()))

    def near(value: float) -> float:
        return float(value * (1 + 0.02 * random.standard_normal()))

    taught = variant in ("sd-vae", "vmae")
    found: list[tuple[str, Metric]] = []

    def add(
        measurement: str, name: str, value: float, better: str, on_it: bool = False, **counts: int
    ) -> None:
        metric = Metric(name=name, value=value, better=better, trained_on_metric=on_it, counts=counts)
        found.append((measurement, metric))

    add("reconstruction", "L1", near(0.02 * radius), "lower", images=500)
    add("reconstruction", "PSNR", near(32 - 3 * radius), "higher", images=500)
    add("reconstruction", "SSIM", near(0.95 - 0.1 * radius), "higher", images=500)
    add("reconstruction", "ST-LPIPS-alex", near(0.1 * radius), "lower", taught, images=500)
    add("reconstruction", f"rKID-{features}", near(0.02 * radius), "lower", images=500)
    for epsilon in EPSILONS:
        add("smoothness", f"PSNR(eps={epsilon:g})", near(32 - 3 * radius - 9 * epsilon), "higher", images=500)
        add("smoothness", f"ST-LPIPS-alex(eps={epsilon:g})", near(0.1 * radius + epsilon), "lower", taught)
        add("smoothness", f"rKID-{features}(eps={epsilon:g})", near(0.02 * radius + 0.3 * epsilon), "lower")
    add("smoothness", "ST-LPIPS-alex-AUC", near(0.1 * radius + 0.15), "lower", taught)
    for level, size in (("part", 0.4), ("pattern", 0.6)):
        add("compression", f"sigma2({level})", near(size - 0.05 * radius), "lower", images=500, groups=4000)
        add("compression", f"rho({level})", near(0.5 - 0.1 * radius * size), "higher", images=500)
    add("probe", "linear-probe-accuracy", near(0.7), "higher", **{"held-out": 500})
    add("efficiency", "parameters", 1_234_567 + len(variant), "lower")
    add("efficiency", "weights", 4 * 1_234_567, "lower")
    add("efficiency", "FLOPs", 151_000_000 + len(variant), "lower")
    for work, rate in (("encode", 900.0), ("decode", 700.0)):
        add("efficiency", f"{work} rate", near(rate), "higher")
        add("efficiency", f"{work} memory", near(30e6), "lower")
    counts = {"generated": 1000, "real": 3000}
    add("samples", f"FD-{features}", near(20 + 20 * radius), "lower", **counts)
    add("samples", f"KID-{features}", near(0.05 * radius), "lower", **counts)
    add("samples", f"sFD-{features}", near(30 + 10 * radius), "lower", **counts)
    add("samples", f"IS-{features}", near(12 - 2 * radius), "higher", generated=1000)
    add("samples", f"precision-{features}", near(0.7 - 0.1 * radius), "higher", **counts)
    add("samples", f"recall-{features}", near(0.5), "higher", **counts)
    return [metric.to_dict() | {"measurement": measurement} for measurement, metric in found]


def write_unit(folder: Path, variant: str, seed: int, size: int = 64, tiles: int = 12) -> Path:
    """Writes one unit and returns its folder."""
    title, group, radius = VARIANTS[variant]
    unit = folder / "units" / variant / f"seed-{seed}"
    unit.mkdir(parents=True)
    seconds = {
        "autoencoder.baseline": 201.5 + seed,
        "latents": 5.0,
        "diffusion": 300.0,
        "measurements": 100.0,
    }
    classes = [{"name": name, "train": 300, "held_out": 30} for name in CLASSES]
    images = {"name": "photos", "licence": "CC0 and others", "train": 1200, "held_out": 120}
    record = {
        "schema": RESULTS_SCHEMA,
        "preset": "compare-photos",
        "variant": variant,
        "title": title,
        "group": group,
        "order": list(VARIANTS).index(variant),
        "seed": seed,
        "command": "ldmae compare compare-photos",
        "image_size": size,
        "steps": {"autoencoder": 700, "diffusion": 1500},
        "width": None if variant.startswith("vmae") else 0.1139,
        "parameters": {"autoencoder": 1_234_567, "diffusion": 4_567_890},
        "seconds": seconds,
        "curves": {"diffusion": {"name": "KID", "points": [[750, 0.2], [1500, 0.18]], "gain": None}},
        "device": "CPU, 2 threads",
        "data": images | {"classes": classes, "unreadable": 0},
        "finished": "2026-11-25T10:20:30+00:00",
        "settings": {"sampling": {"solver": "euler", "num_inference_steps": 50}},
        "results": results_of(variant, seed),
    }
    (unit / "unit.json").write_text(json.dumps(record))
    originals = crops(tiles, size)
    random = np.random.default_rng(seed)
    components = random.integers(0, 255, (tiles, 8, 8, 3), np.uint8).repeat(size // 8, 1).repeat(size // 8, 2)
    interpolation = []
    for first, second in ((originals[0], originals[1]), (originals[-2], originals[-1])):
        between = [first * (1 - t) + second * t for t in (0, 0, 0.25, 0.5, 0.75, 1, 1)]
        interpolation.append(np.stack(between).astype(np.uint8))
    np.savez(
        unit / "images.npz",
        originals=originals,
        reconstructions=blurred(originals, radius),
        components=components,
        interpolation=np.stack(interpolation),
        fractions=np.array([0, 0.25, 0.5, 0.75, 1]),
        samples=blurred(crops(32, size, seed + 1), radius),
        labels=np.arange(32) % len(CLASSES),
    )
    return unit


def edit(path: Path, **changes: object) -> None:
    """Changes fields of a JSON file, or of the record in a unit's folder."""
    path = path / "unit.json" if path.is_dir() else path
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def results_in(unit: Path) -> list[dict]:
    return json.loads((unit / "unit.json").read_text())["results"]


def change_images(unit: Path, **arrays: np.ndarray | None) -> None:
    """Replaces arrays of a unit's images; None removes one."""
    with np.load(unit / "images.npz") as kept:
        changed = dict(kept) | arrays
    np.savez(unit / "images.npz", **{name: array for name, array in changed.items() if array is not None})
