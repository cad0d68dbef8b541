"""Draw the three properties of an autoencoder, from a finished and evaluated run.

python examples/draw_three_properties.py runs/emoji --out docs/pictures
"""

# N images, C latent channels, h w latent grid, H W image, p patch size

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ldmae import AutoencoderVMAE
from ldmae.autoencoders.masking import random_visible_indices
from ldmae.cli.output import run_app
from ldmae.config import load_config
from ldmae.contracts import BatchKeys
from ldmae.core.autoencoding import decode, encode_moments, reconstruct
from ldmae.evaluation.reconstruction import hwc
from ldmae.evaluation.smoothness import SmoothnessMetrics, latent_noise, noisy_decodings, perturbed
from ldmae.evaluation.subject import Subject
from ldmae.images.index import open_images
from ldmae.loading import load_autoencoder
from ldmae.perception.lpips import load_perceptual
from ldmae.report.grids import Grid

EPSILONS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
VISIBLE = (0.75, 0.5, 0.25)
WIDTH = 1200
"""No picture is wider, in pixels."""


class Pictures:
    """A run's autoencoder and some of its held-out images."""

    def __init__(self, run: Path, count: int) -> None:
        self.run, config = run, load_config(str(run / "config.yaml"))
        train, held_out = open_images(config.data, run / "data", progress=False)
        self.subject = Subject(
            autoencoder=load_autoencoder(str(run)).requires_grad_(False),
            held_out=held_out,
            train=train,
            size=config.image_size,
            config=config.evaluation,
        )
        chosen = self.subject.shown[np.linspace(0, len(self.subject.shown) - 1, count).round().astype(int)]
        self.rows = self.subject.chosen[chosen]
        self.images = self.subject.images(self.rows)  # (N, 3, H, W) in [-1, 1]
        self.latents = encode_moments(self.subject.autoencoder, self.images)[0]  # (N, C, h, w)

    def smoothness(self) -> Image.Image:
        """Images decoded from latents with noise of growing size."""
        keys = [self.subject.keys[row] for row in self.rows]
        noise = latent_noise(keys, tuple(self.latents.shape[1:]))
        columns = [self.images] + [
            decode(self.subject.autoencoder, perturbed(self.latents, self.subject.latent_std, noise, epsilon))
            for epsilon in EPSILONS
        ]
        return grid(columns, ["image", *(f"ε = {epsilon:g}" for epsilon in EPSILONS)])

    def curve(self) -> Figure:
        """PSNR and perceptual distance to the original over the size of the noise."""
        subject, perceptual = self.subject, load_perceptual("st-lpips-alex")
        metrics = SmoothnessMetrics(EPSILONS, perceptual)
        for rows, images in subject.batches("smoothness"):
            keys = [subject.keys[row] for row in rows]
            latents = encode_moments(subject.autoencoder, images)[0]
            metrics.update(
                images,
                noisy_decodings(subject.autoencoder, keys, latents, subject.latent_std, EPSILONS),
            )
        values = {metric.name: metric.value for metric in metrics.compute()}
        figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
        for axis, name, unit in zip(axes, ("PSNR", perceptual.label), (" (dB)", ""), strict=True):
            axis.plot(EPSILONS, [values[f"{name}(eps={e:g})"] for e in EPSILONS], marker="o", color="#00695c")
            axis.set_xlabel("latent noise ε (in standard deviations)")
            axis.set_ylabel(name + unit)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        return figure

    def interpolation(self) -> Image.Image:
        """Images decoded between the latents of two images."""
        first, second = self.latents[::2], self.latents[1::2]
        first, second = first[: len(second)], second
        fractions = (0.0, 0.25, 0.5, 0.75, 1.0)
        between = [decode(self.subject.autoencoder, torch.lerp(first, second, t)) for t in fractions]
        ends = self.images[::2][: len(first)], self.images[1::2]
        return grid([ends[0], *between, ends[1]], ["image", *(f"t = {t:g}" for t in fractions), "image"])

    def compression(self) -> Image.Image:
        """Images and the groups of their latent cells."""
        originals = list(hwc(self.images))
        columns, names = [originals], ["image"]
        for level, find in self.subject.groups.items():
            maps = [find(int(row), pixels) for row, pixels in zip(self.rows, originals, strict=True)]
            columns.append([coloured(labels) for labels in maps])
            names.append(level)
        return grid(columns, names)

    def reconstruction(self) -> Image.Image:
        """Images, reconstructions, and four times the difference."""
        restored = reconstruct(self.subject.autoencoder, self.images)
        difference = (restored - self.images).abs() * 4 - 1
        rows = [image for images in (self.images, restored, difference) for image in hwc(images)]
        return Grid(rows, len(self.images), ["image", "decoded", "4 × error"], scale=scale_of(rows)).draw()

    def masking(self) -> Image.Image:
        """The task of masked pre-training: the whole image from some of its patches."""
        folder = self.run / "checkpoints" / "autoencoder.pretraining" / "model"
        model: AutoencoderVMAE = AutoencoderVMAE.from_pretrained(folder).eval().requires_grad_(False)
        p, (count, _, height, width) = model.config.patch_size, self.images.shape
        cells = (height // p, width // p)
        columns, names = [self.images], ["image"]
        for share in VISIBLE:
            keys = BatchKeys(0, 0, range(count), count)
            seen = random_visible_indices(keys, cells[0] * cells[1], 1 - share)  # (N, V)
            latents = model.encode(self.images, visible_indices=seen).latent_dist.mode()
            restored = model.decode(latents, visible_indices=seen, grid=cells).sample
            shown = torch.zeros(count, cells[0] * cells[1]).scatter(1, seen, 1.0)
            shown = shown.view(count, 1, *cells).repeat_interleave(p, 2).repeat_interleave(p, 3)
            columns.append(torch.where(shown > 0, self.images, torch.full_like(self.images, 0.5)))
            columns.append(restored.clamp(-1, 1))
            names += [f"{share:.0%} visible", "decoded"]
        return grid(columns, names)


def coloured(labels: np.ndarray) -> np.ndarray:
    """Returns a map of groups (H, W) as colours; what belongs to no group is white."""
    palette = (plt.get_cmap("tab20")(np.arange(20))[:, :3] * 255).astype(np.uint8)
    numbers = np.unique(labels, return_inverse=True)[1]
    colours = palette[numbers.reshape(labels.shape) % 20]
    return np.where((labels < 0)[..., None], np.uint8(255), colours)


def grid(columns: list[Any], names: list[str]) -> Image.Image:
    """Lays columns of images side by side, a row an image."""
    shown = [[hwc(x) if isinstance(x, Tensor) else x for x in column] for column in columns]
    rows = [column[i] for i in range(len(shown[0])) for column in shown]
    return Grid(rows, len(shown), column_labels=names, scale=scale_of(rows)).draw()


def scale_of(images: list[np.ndarray]) -> float | None:
    """Returns the factor that makes tiles about 100 px wide; None leaves it to the grid."""
    return 2.0 if 40 <= images[0].shape[0] < 96 else None


def save_small(picture: Image.Image | Figure, path: Path) -> None:
    """Writes a PNG of 256 colours."""
    if isinstance(picture, Figure):
        picture.savefig(path, dpi=130)
        plt.close(picture)
        picture = Image.open(path).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, picture.height * WIDTH // picture.width), Image.Resampling.LANCZOS)
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def figures_of(run: Path) -> dict[str, float]:
    """Returns what was measured of a run, by name; also σ² of random groups."""
    figures = {}
    for metric in json.loads((run / "results.json").read_text(encoding="utf-8"))["results"]:
        figures[metric["name"]] = round(metric["value"], 6)
        for kind, value in metric["reference"].items():
            if kind.startswith("random"):
                figures[f"{metric['name']} at random"] = round(value, 6)
    return figures


def main(arguments: list[str] | None = None) -> list[Path]:
    """Draws all pictures; returns their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run folder, of a VMAE trained in two stages")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--images", type=int, default=5, help="how many are shown")
    options = parser.parse_args(arguments)
    if options.images < 2:
        parser.error(f"--images {options.images}: it mixes pairs; take at least 2")
    for needed in ("results.json", "checkpoints/autoencoder.pretraining/model"):
        if not (options.run / needed).exists():
            parser.error(
                f"{options.run} has no {needed}; name a finished run that trained a VMAE in two stages"
            )
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"{options.out} is a file; name another folder with --out")
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(options.run, options.images)
    drawings: dict[str, Callable[[], Image.Image | Figure]] = {
        "smoothness": pictures.smoothness,
        "smoothness-curve": pictures.curve,
        "interpolation": pictures.interpolation,
        "compression": pictures.compression,
        "reconstruction": pictures.reconstruction,
        "masking": pictures.masking,
    }
    for name, draw in drawings.items():
        save_small(draw(), options.out / f"{name}.png")
    text = json.dumps(figures_of(options.run), indent=2, ensure_ascii=False)
    (options.out / "figures.json").write_text(text + "\n", encoding="utf-8")
    return [options.out / f"{name}.png" for name in drawings]


if __name__ == "__main__":
    sys.exit(run_app(main))
