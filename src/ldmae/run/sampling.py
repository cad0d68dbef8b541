"""The stages diffusion model → samples: the pipeline, the class grid, single pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ldmae.config import Config, load_config, plain
from ldmae.config.diffusion import SamplingConfig
from ldmae.core.device import pick_device
from ldmae.core.errors import UserError
from ldmae.core.files import atomic_folder, write_json
from ldmae.core.progress import progress_bar
from ldmae.core.random import generator
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.diffusion.solvers import solver_class, solver_name
from ldmae.loading import load_pipeline, refuse_code, settings_of
from ldmae.report.data import evenly
from ldmae.report.grids import class_grid, save_png
from ldmae.run.run import Run
from ldmae.run.threads import settle_alone, velocity

_MADE = {"images", "grid.png", "samples.json", ".DS_Store"}
"""What may lie in a folder of samples."""


def sample(run: Run) -> None:
    """Generates `samples/`: a class grid, single PNGs, and how they were made."""
    config = run.config.sampling
    if run.main:
        # whose settings are this run's: what they name was typed, or allowed
        pipeline = load_pipeline(str(run.folder), allow_code=True).to(run.accelerator.device)
        classes = _class_choice(known_classes(pipeline), config.max_classes)
        labels = [label for label in classes for _ in range(config.per_class)]
        _save_samples(pipeline, labels, config, run.folder / "samples")


def known_classes(pipeline: LDMAEPipeline) -> list[int]:
    """Returns the classes that a pipeline was trained on: those it has names for, all where it has none."""
    count = pipeline.transformer.config.num_classes
    named = {int(label) for label in cast(Any, pipeline.config).id2label or {}}
    return [label for label in range(count) if label in named] or list(range(count))


def _class_choice(classes: list[int], at_most: int) -> list[int]:
    """Returns the classes of the grid, evenly spread where there are too many."""
    return [classes[place] for place in evenly(len(classes), at_most)]


def _save_samples(pipeline: LDMAEPipeline, labels: list[int], config: SamplingConfig, folder: Path) -> None:
    """Writes `images/*.png`, `grid.png` and `samples.json` into a folder, which replaces an older one."""
    names = pipeline_classes(pipeline)
    with atomic_folder(folder) as temporary:
        images = np.concatenate([*generated_batches(pipeline, labels, config, "sampling")])
        (temporary / "images").mkdir()
        digits = max(4, len(str(len(images) - 1)))  # so that names sort as labels lie
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = re.sub(r"[^\w.-]+", "_", names[label])[:60]
            Image.fromarray(image).save(temporary / "images" / f"{i:0{digits}d}_{name}.png")
        save_png(class_grid(images, labels, names, config.per_class), temporary / "grid.png")
        made = {**plain(_guidable(pipeline, config)), "class_names": names, "labels": labels}
        write_json(temporary / "samples.json", made)


def _guidable(pipeline: LDMAEPipeline, config: SamplingConfig) -> SamplingConfig:
    """Returns the settings that take effect: one class has none to be guided away from."""
    several = cast(Any, pipeline.transformer.config).num_classes > 1
    return config if several else config.replace(guidance_scale=1.0)


def pipeline_classes(pipeline: LDMAEPipeline) -> list[str]:
    """Returns the names of a pipeline's classes, by label; numbers where it has no names."""
    named = dict(cast(Any, pipeline.config).id2label or {})
    count = pipeline.transformer.config.num_classes
    return [str(named.get(i, named.get(str(i), i))) for i in range(count)]


def own_sampling(pipeline: LDMAEPipeline) -> dict[str, Any]:
    """Returns the settings of sampling that a pipeline's scheduler has: its solver and its time shift.

    A shift that depends on the image's size (dynamic shifting) is no number: it is None, the scheduler's own.
    """
    scheduler = pipeline.scheduler
    shift = None if scheduler.config.get("use_dynamic_shifting") else 1 / scheduler.config["shift"]
    return {"solver": solver_name(scheduler), "timestep_shift": shift}


def measured_sampling(config: Config) -> SamplingConfig:
    """Returns how images to be measured are generated: by the evaluation's guidance, from own noise."""
    evaluation, sampling = config.evaluation, config.sampling
    scale = sampling.guidance_scale if evaluation.guidance_scale is None else evaluation.guidance_scale
    return sampling.replace(seed=evaluation.seed + 1, guidance_scale=scale)


def picture_size(pipeline: LDMAEPipeline) -> int:
    """Returns the pixels along a side of a pipeline's pictures, by decoding one."""
    config = pipeline.transformer.config
    side, channels = config["sample_size"], config["in_channels"]
    latents = torch.zeros(1, channels, side, side, device=pipeline.device)
    return pipeline.decode_latents(latents).shape[-1]


def generated_batches(
    pipeline: LDMAEPipeline,
    labels: list[int],
    config: SamplingConfig,
    description: str,
    first: int = 0,
    show: bool = True,
) -> Iterator[np.ndarray]:
    """Generates an image for each label, a batch (b, H, W, 3) uint8 at a time.

    An image's noise depends on the seed and its number alone; `first` is the first image's number.
    `description` is for the progress bar, where this process is to `show` it.
    """
    pipeline.set_progress_bar_config(disable=True)
    solver = solver_class(config.solver)
    if type(pipeline.scheduler) is not solver:
        pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
    start, end = config.guidance_interval
    scale = _guidable(pipeline, config).guidance_scale
    with progress_bar(description, len(labels), "images", show=show) as advance:
        for i in range(0, len(labels), config.batch_size):
            chosen = labels[i : i + config.batch_size]
            noise = [generator(config.seed, "sample", first + i + j) for j in range(len(chosen))]
            output: Any = pipeline(
                chosen,
                guidance_scale=scale,
                guidance_interval=(start, end),
                guidance_channels=config.guidance_channels,
                num_inference_steps=config.num_inference_steps,
                timestep_shift=config.timestep_shift,
                generator=noise,
            )
            yield np.stack([np.asarray(image) for image in output.images])
            advance(len(chosen), "")


def sample_from(
    source: str,
    classes: list[str],
    changes: dict[str, Any],
    folder: Path,
    device: str = "auto",
    allow_code: bool = False,
) -> Path:
    """Generates images with a trained pipeline.

    Args:
        source: a run folder, a pipeline's folder or Hub name, or `pretrained:NAME`.
        classes: names or numbers; empty: all, or an even choice where they are many.
        changes: fields of `SamplingConfig` that differ from the settings it was made with where these are
            known (of a run folder, of what ships), or from the defaults, with the pipeline's own solver and
            time shift.
        folder: where `grid.png`, `images/` and `samples.json` go; older samples there are replaced.
        device: `auto`, or a device's name.
        allow_code: whether the source, a folder, may name code to run.

    Returns:
        The path of the grid.

    Raises:
        UserError: no such pipeline or class, a setting out of range, or a folder that holds something else.
    """
    pipeline = load_pipeline(source, allow_code)
    made_with = settings_of(source)
    if made_with is not None:
        config = load_config(made_with).sampling
        refuse_code(made_with, [config.solver], allow_code)
    else:
        config = SamplingConfig(**own_sampling(pipeline))
    config = config.replace(**changes)
    if changes.get("guidance_scale", 1) != 1 and _guidable(pipeline, config) != config:
        raise UserError(f"{source} has one class, none to be guided away from; leave guidance 1")
    every = _class_choice(known_classes(pipeline), config.max_classes)
    chosen = [*dict.fromkeys(pipeline.class_id(name) for name in classes)] or every
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = there and ("samples.json" not in there or there - _MADE)  # all of it would be replaced
    if foreign or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} holds other files, or is one; name another folder with --out")
    labels = [label for label in chosen for _ in range(config.per_class)]
    pipeline = pipeline.to(pick_device(device))
    amount = min(config.batch_size, len(labels))
    settle_alone(velocity(pipeline, amount), amount, pipeline.device, source=source)
    _save_samples(pipeline, labels, config, folder)
    return folder / "grid.png"
