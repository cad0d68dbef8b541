"""Images to be measured, by number: what a pipeline generates, kept as it goes, or what anybody made."""

# b of a batch, H W image

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ldmae.config import Config, plain
from ldmae.config.diffusion import SamplingConfig
from ldmae.core.errors import UserError
from ldmae.core.files import atomic_path, fingerprint, fingerprint_model, fingerprint_tensors, read_json
from ldmae.core.provenance import Record, read_record, write_record
from ldmae.core.random import generator
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.evaluation.image_sets import read_samples
from ldmae.loading import load_pipeline
from ldmae.run.sampling import (
    generated_batches,
    known_classes,
    measured_sampling,
    own_sampling,
    picture_size,
)
from ldmae.run.threads import settle_alone, velocity

KEPT = ".generated"
"""Folder in which batches are kept until they are measured; hidden, as it is deleted without asking."""

_Batches = Callable[[int, int], Iterator[Tensor]]
"""From the first and the last but one image's number to images (b, 3, H, W) in uint8."""


@dataclass(frozen=True)
class SampleSet:
    """Images that some model made."""

    batches: _Batches
    count: int
    size: int
    """Pixels along a side."""
    labels: np.ndarray | None
    how: str
    """Which labels they bear, in words."""
    batch: int = 64
    """Images that are made or read at once."""
    sampling: SamplingConfig | None = None
    """How they were made; None where that is not known."""
    width: int | None = None
    """Pixels along the other side, where the images are oblong."""
    record: Record = field(default_factory=lambda: Record(status="done"))
    """What they were made of, where that is known: settings of sampling, and the `weights` of the decoder
    among the inputs."""

    def share(self, accelerator: Accelerator) -> Iterator[Tensor]:
        """Yields the images that this process is to look at, in whole batches."""
        rank, world = accelerator.process_index, accelerator.num_processes
        whole = -(-self.count // self.batch)
        start, stop = (min(self.count, whole * place // world * self.batch) for place in (rank, rank + 1))
        return self.batches(start, stop)

    def select(self, numbers: np.ndarray) -> Tensor:
        """Returns some images, (n, 3, H, W) in uint8, by their ascending numbers; whole batches are made."""
        chosen = []
        for first in np.unique(numbers // self.batch) * self.batch:
            stop = min(int(first) + self.batch, self.count)
            here = numbers[(numbers >= first) & (numbers < stop)] - first
            chosen.append(torch.cat(list(self.batches(int(first), stop)))[here])
        return torch.cat(chosen)


def given_images(source: str, real_are_cropped: bool) -> SampleSet:
    """Reads images that anybody made, from a folder or an .npz.

    Raises:
        UserError: there are none, or they are oblong where they are compared with squares
            (`real_are_cropped`).
    """
    samples = read_samples(source)
    if real_are_cropped and samples.size[0] != samples.size[1]:
        raise UserError(
            f"the images of {source} are {samples.size[0]}x{samples.size[1]}, which data=… is not prepared "
            "for: real images are cropped to squares. Give prepared ones of that shape with --reference"
        )
    return SampleSet(
        batches=lambda start, stop: samples.batches(SampleSet.batch, start, stop),
        count=len(samples),
        size=samples.size[0],
        width=samples.size[1],
        labels=samples.labels,
        how="images as they were given",
    )


def generated_images(
    source: str,
    told: Collection[str],
    config: Config,
    accelerator: Accelerator,
    folder: Path,
    allow_code: bool = False,
) -> SampleSet:
    """Generates the images of a pipeline: each one's noise and label depend on its number alone.

    `told` names the settings of sampling that were typed; solver and time shift are else the pipeline's own.
    The images are kept in `folder`, see `keep_generated`.
    """
    pipeline = load_pipeline(source, allow_code).to(accelerator.device)
    batch = config.sampling.batch_size
    if accelerator.num_processes == 1:
        settle_alone(velocity(pipeline, batch), batch, pipeline.device, config.threads, source)
    own = {name: value for name, value in own_sampling(pipeline).items() if name not in told}
    sampling, evaluation = measured_sampling(config).replace(**own), config.evaluation
    classes = np.array(known_classes(pipeline))
    labels = classes[np.arange(evaluation.samples) % len(classes)]
    if evaluation.sample_labels == "random":
        random = generator(evaluation.seed, "sample labels")
        labels = classes[torch.randint(len(classes), (evaluation.samples,), generator=random).numpy()]
    elif evaluation.sample_labels == "training":
        labels = _in_proportion(read_json(Path(source) / "data.json", {"classes": list}), evaluation.samples)
    how = f"{evaluation.sample_labels} labels"
    return keep_generated(pipeline, labels, sampling, accelerator, folder, how)


def _in_proportion(data: dict[str, Any], count: int) -> np.ndarray:
    """Returns labels in the proportion of a run's training images, as near as whole numbers come."""
    shares = np.cumsum([entry["train"] for entry in data["classes"]])
    return np.searchsorted(shares / shares[-1], (np.arange(count) + 0.5) / count)


def keep_generated(
    pipeline: LDMAEPipeline,
    labels: np.ndarray,
    sampling: SamplingConfig,
    accelerator: Accelerator,
    folder: Path,
    how: str = "",
) -> SampleSet:
    """Generates an image for each label when it is asked for, and keeps each batch in a folder.

    What was interrupted is resumed, and what is asked for twice is made once, by whichever process. Batches
    of another pipeline, other settings or labels are deleted. `how` says in words which labels these are;
    `forget_generated` removes the folder.
    """
    main, batch, count = accelerator.is_main_process, sampling.batch_size, len(labels)
    record = _made_of(pipeline, sampling, labels)
    if main:
        _keep_only(folder, record)
    accelerator.wait_for_everyone()

    def make(start: int, stop: int) -> Iterator[np.ndarray]:
        chosen = labels[start:stop].tolist()
        return generated_batches(pipeline, chosen, sampling, "generating to measure", start, main)

    def batches(start: int, stop: int) -> Iterator[Tensor]:
        firsts = range(start // batch * batch, stop, batch)
        paths = [folder / f"{first:09d}.npy" for first in firsts]
        sizes = [min(batch, count - first) for first in firsts]
        kept = (_is_kept(path, size) for path, size in zip(paths, sizes, strict=True))
        there = next((i for i, whole in enumerate(kept) if not whole), len(paths))
        made = make(firsts[there], min(firsts[-1] + batch, count)) if there < len(paths) else iter(())
        for i, (first, path) in enumerate(zip(firsts, paths, strict=True)):
            if i < there:
                pictures = np.load(path)
            else:
                pictures = next(made)
                with atomic_path(path) as temporary, temporary.open("wb") as file:
                    np.save(file, pictures)
            wanted = pictures[max(start - first, 0) : stop - first]
            yield torch.from_numpy(wanted).permute(0, 3, 1, 2).contiguous()

    return SampleSet(batches, count, picture_size(pipeline), labels, how, batch, sampling, record=record)


def forget_generated(folder: Path) -> None:
    """Removes the batches that `keep_generated` kept."""
    shutil.rmtree(folder, ignore_errors=True)


def _is_kept(path: Path, count: int) -> bool:
    """Says whether a file holds `count` images."""
    try:
        pictures = np.load(path, mmap_mode="r", allow_pickle=False)
        return pictures.dtype == np.uint8 and pictures.ndim == 4 and len(pictures) == count
    except (OSError, ValueError, EOFError):
        return False


def _made_of(pipeline: Any, sampling: SamplingConfig, labels: np.ndarray) -> Record:
    """Returns what tells apart images of other weights, settings or labels."""
    statistics = {name: pipeline.config[name] for name in ("latents_mean", "latents_std")}
    scheduler = {k: v for k, v in dict(pipeline.scheduler.config).items() if not k.startswith("_")}
    told = json.dumps([statistics, scheduler], sort_keys=True, default=str)
    inputs = {name: fingerprint_model(getattr(pipeline, name)) for name in ("vae", "transformer")}
    inputs |= {"pipeline": fingerprint([told]), "labels": fingerprint([labels.tobytes()])}
    inputs["weights"] = fingerprint_tensors(pipeline.vae.state_dict())
    return Record(plain(sampling), inputs, status="done")


def _keep_only(folder: Path, made_of: Record) -> None:
    """Deletes what a folder keeps, unless it is of the same weights, settings and labels."""
    path = folder / "made_of.json"
    with contextlib.suppress(UserError):  # damaged: all is made again
        before = read_record(path)
        if before is not None and not before.changes(made_of.settings, made_of.inputs):
            return
    shutil.rmtree(folder, ignore_errors=True)
    write_record(path, made_of)
