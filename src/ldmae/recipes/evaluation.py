"""The arrows samples → evaluation → report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ldmae.config import Config
from ldmae.contracts import ImageSource, Result
from ldmae.core.autoencoding import reconstruct
from ldmae.core.errors import UserError
from ldmae.core.files import atomic_path, read_json, write_json
from ldmae.core.progress import progress_bar
from ldmae.core.random import generator
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.evaluation.generation import FEWEST_IMAGES, fidelity_results
from ldmae.evaluation.recognition import recognition_result, train_recogniser
from ldmae.evaluation.reconstruction import ReconstructionMetrics, to_uint8
from ldmae.evaluation.settings import EvaluationConfig
from ldmae.images.dataset import ImageDataset
from ldmae.perception.features import FeatureExtractor, load_features
from ldmae.perception.lpips import load_perceptual
from ldmae.recipes.generation import generated_batches
from ldmae.recipes.plan import plan_trainings
from ldmae.recipes.run import Run, run_autoencoder
from ldmae.recipes.settings import plain
from ldmae.report.figures import overview, save_png
from ldmae.report.html import render_report

PAIRS = 12
"""Held-out images shown beside their reconstructions."""


def check_measurable(run: Run) -> None:
    """Checks before a run what would otherwise fail after hours, when it comes to measure.

    Raises:
        UserError: a network is unknown or can't be had, the images are too small for it, or too few.
    """
    config, size = run.config.evaluation, run.config.image_size
    with run.accelerator.main_process_first():  # which fetches weights that do not lie here yet
        load_features(config.features)
        perceptual = load_perceptual(config.perceptual)
    image = torch.zeros(1, 3, size, size)
    ReconstructionMetrics(perceptual).update(image, image)
    bearing = int((np.asarray(run.train.labels) >= 0).sum())
    fewest = min(config.samples, bearing, config.real_images or bearing)
    if fewest < FEWEST_IMAGES:
        raise UserError(
            f"the kernel distance needs at least {FEWEST_IMAGES} images of each kind: evaluation.samples is "
            f"{config.samples}, training images that bear a class are {bearing}, of which "
            f"evaluation.real_images={config.real_images} are taken; give more"
        )


def evaluate(run: Run) -> None:
    """Measures reconstructions of held-out images and the generated images; writes `results.json`."""
    config, folder = run.config.evaluation, run.folder / "results"
    settings = {"evaluation": plain(config), "sampling": plain(run.config.sampling)}
    inputs = {**run.images, "pipeline": run.book.output("pipeline")}
    if not run.needed("evaluation", settings, inputs, run.folder / "results.json"):
        return
    with run.book.running("evaluation", settings, inputs):
        if run.main:
            trained_on = perceptual_teacher(run.config)
            autoencoder = run_autoencoder(run).to(run.accelerator.device)
            size = run.config.image_size
            results = measure_reconstruction(autoencoder, run.held_out, size, config, folder, trained_on)
            write_results(run.folder, "reconstruction", results)
        run.accelerator.wait_for_everyone()
        generation = measure_generation(run, config)
        if run.main:
            write_results(run.folder, "generation", generation)
        run.accelerator.wait_for_everyone()


def report(run: Run) -> Path:
    """Writes `report.html` and `overview.png` of what the run folder holds."""
    if run.main:
        plans = plan_trainings(run.config, num_classes=len(run.train.classes))
        counts = {plan.stage: {"total": plan.parameters, "trainable": plan.trainable} for plan in plans}
        own = {"autoencoder": counts.get("autoencoder.pretraining"), "diffusion": counts["diffusion"]}
        write_json(run.folder / "parameters.json", {name: count for name, count in own.items() if count})
        save_png(overview(run.folder), run.folder / "overview.png")
    with run.book.running("report", {}, {}):
        if run.main:
            render_report(run.folder)
    if run.main:
        render_report(run.folder)  # once more: now the report's own stage is done
    run.accelerator.wait_for_everyone()
    return run.folder / "report.html"


def measure_reconstruction(
    autoencoder: Any,
    source: ImageSource,
    size: int,
    config: EvaluationConfig,
    folder: Path,
    trained_on: str | None = None,
) -> list[Result]:
    """Measures an autoencoder's reconstructions, and keeps some pairs as pictures.

    Args:
        autoencoder: any, on its device.
        source: the images.
        size: pixels along a side.
        config: which perceptual distance, and the batch size.
        folder: where `reconstruction_pairs.npz` goes.
        trained_on: the perceptual distance that the autoencoder was trained on, if any.
    """
    device = next(autoencoder.parameters()).device
    metrics = ReconstructionMetrics(load_perceptual(config.perceptual, device), trained_on)
    shown: dict[str, list[np.ndarray]] = {"originals": [], "reconstructions": []}
    chosen = set(
        np.unique(np.linspace(0, len(source) - 1, min(PAIRS, len(source))).round().astype(int)).tolist()
    )
    with progress_bar("reconstructing", len(source), "images") as advance:
        first = 0
        for images in _batches(source, size, config.batch_size):
            decoded = reconstruct(autoencoder, images.to(device))
            metrics.update(images.to(device), decoded)
            for i in range(len(images)):
                if first + i in chosen:
                    shown["originals"].append(_hwc(images[i]))
                    shown["reconstructions"].append(_hwc(decoded[i]))
            first += len(images)
            advance(len(images), "")
    with atomic_path(folder / "reconstruction_pairs.npz") as temporary:
        arrays: dict[str, Any] = {name: np.stack(pictures) for name, pictures in shown.items()}
        np.savez_compressed(temporary, **arrays)
    return metrics.compute()


def measure_generation(run: Run, config: EvaluationConfig) -> list[Result]:
    """Measures generated images, in the training set's proportion of classes, against training images.

    The processes share the work; the main process returns the figures, the others an empty list.
    """
    labels = np.asarray(run.train.labels)
    bearing = np.flatnonzero(labels >= 0)  # images without a class train the autoencoder only
    order = torch.randperm(len(bearing), generator=generator(config.seed, "evaluation labels")).numpy()
    wanted = np.resize(labels[bearing[order]], config.samples)
    real_images = bearing[order][: config.real_images]
    extractor = load_features(config.features, run.accelerator.device)
    mine, theirs = _share(len(wanted), run), _share(len(real_images), run)
    pipeline = LDMAEPipeline.from_pretrained(run.folder / "pipeline").to(run.accelerator.device)
    sampling = dataclasses.replace(
        run.config.sampling,
        seed=config.seed + 1,  # not the noise of the grid
        guidance_scale=(
            run.config.sampling.guidance_scale if config.guidance_scale is None else config.guidance_scale
        ),
    )
    chosen, kept = wanted[mine].tolist(), []
    features = []
    for images in generated_batches(
        pipeline, chosen, sampling, "generating to measure", mine.start, run.main
    ):
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)  # (b, 3, H, W) uint8
        features.append(extractor(batch).cpu())
        if config.recogniser:
            kept.append(batch)
    with progress_bar(
        "features of real images", theirs.stop - theirs.start, "images", show=run.main
    ) as advance:
        batches = _batches(run.train, run.config.image_size, config.batch_size, real_images[theirs])
        real = _features(extractor, batches, advance)
    gathered = gather_object([{"fake": features, "real": real, "images": kept}])
    if not run.main:
        return []
    fake = torch.cat([piece for share in gathered for piece in share["fake"]])
    results = fidelity_results(
        fake, torch.cat([share["real"] for share in gathered]), extractor, seed=config.seed
    )
    if config.recogniser:
        generated = torch.cat([piece for share in gathered for piece in share["images"]])
        results += _recognition(run, generated, wanted, bearing)
    return results


def _share(count: int, run: Run) -> slice:
    """Returns this process's contiguous share of `count` things."""
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    return slice(rank * count // world, (rank + 1) * count // world)


def write_results(folder: Path, measurement: str, results: list[Result]) -> None:
    """Writes one measurement's file and merges all of them into `results.json`."""
    entries = [{**result.to_dict(), "measurement": measurement} for result in results]
    write_json(folder / "results" / f"{measurement}.json", {"schema": 1, "results": entries})
    merged = []
    for path in sorted((folder / "results").glob("*.json")):
        merged += read_json(path)["results"]
    write_json(folder / "results.json", {"schema": 1, "results": merged})


def _recognition(run: Run, generated: Tensor, wanted: np.ndarray, bearing: np.ndarray) -> list[Result]:
    size, batch = run.config.image_size, run.config.evaluation.batch_size
    held_labels = np.asarray(run.held_out.labels)
    held = np.flatnonzero(held_labels >= 0)
    real = torch.cat([to_uint8(images) for images in _batches(run.train, size, batch, bearing)])
    unseen = torch.cat([to_uint8(images) for images in _batches(run.held_out, size, batch, held)])
    recogniser = train_recogniser(real, np.asarray(run.train.labels)[bearing])
    return recognition_result(recogniser, generated, wanted, unseen, held_labels[held])


def _features(extractor: FeatureExtractor, batches: Iterator[Tensor], advance: Any) -> Tensor:
    pieces = [torch.empty(0, extractor.dimensions)]
    for images in batches:
        pieces.append(extractor(to_uint8(images)).cpu())
        advance(len(images), "")
    return torch.cat(pieces)


def _batches(
    source: ImageSource, size: int, batch: int, indices: np.ndarray | None = None
) -> Iterator[Tensor]:
    """Yields centre-cropped images (B, 3, H, W) in [-1, 1]."""
    dataset = ImageDataset(source, size, 0, None)
    chosen = np.arange(len(source)) if indices is None else indices
    for i in range(0, len(chosen), batch):
        yield torch.stack([dataset[(0, int(index))]["images"] for index in chosen[i : i + batch]])


def _hwc(image: Tensor) -> np.ndarray:
    return to_uint8(image[None].cpu())[0].permute(1, 2, 0).numpy()


def perceptual_teacher(config: Config) -> str | None:
    """Returns the perceptual distance that a run's autoencoder is trained on."""
    autoencoder = config.autoencoder
    if autoencoder.source is not None:
        return None
    last = autoencoder.tuning if autoencoder.tuning.enabled else autoencoder.pretraining
    return last.objective.perceptual if last.objective.perceptual_weight > 0 else None
