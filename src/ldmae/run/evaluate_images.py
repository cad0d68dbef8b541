"""Generated images against real ones: of a pipeline, or of a folder or .npz that anybody made."""

# N images, b of a batch, H W image

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ldmae.config import Config, as_dict, load_config
from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import ImageSource, Metric
from ldmae.core.errors import UserError
from ldmae.core.files import read_json, write_json
from ldmae.core.locks import locked
from ldmae.core.progress import console, progress_bar
from ldmae.evaluation.api import OF_GENERATED, Measured
from ldmae.evaluation.copies import compared_images, measure_copies
from ldmae.evaluation.distances import FEWEST_IMAGES
from ldmae.evaluation.generation import fidelity_metrics, floor_metrics, generation_metrics, mind_metric
from ldmae.evaluation.image_sets import write_samples_npz
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.references import Reference, cached_reference, read_reference, reference_from_images
from ldmae.evaluation.subject import draw, image_keys, read_batches
from ldmae.images.base import Subset
from ldmae.images.index import open_all_images, open_images
from ldmae.images.sources import is_stream
from ldmae.images.transforms import preprocessing_fingerprint
from ldmae.loading import is_run_folder, is_shipped, refuse_code, settings_of
from ldmae.perception.features import FeatureExtractor, Features, load_features
from ldmae.report.run import render_report
from ldmae.run.kept_images import KEPT, Generated, forget_generated, generated_images, given_images
from ldmae.run.kept_stream import open_streamed
from ldmae.run.opening import open_accelerator
from ldmae.run.results import merge_results, read_results, remove_results, write_results

_Trained = tuple[ImageSource, ImageSource] | None
"""The images that a model was trained on, and those held out; None where they are not known."""


def evaluate_samples(
    source: str,
    overrides: list[str],
    folder: Path,
    reference: Path | None = None,
    npz: Path | None = None,
    references: Path | None = None,
    allow_code: bool = False,
) -> list[Metric]:
    """Measures generated images as ADM's evaluator does; writes `results.json` and `report.html`.

    Args:
        source: a run folder, a pipeline's folder or Hub name, `pretrained:NAME`; or images: a folder, or an
            .npz with `arr_0`.
        overrides: settings as key=value: `evaluation.samples=50000`, `sampling.guidance_scale=4`, `data=PATH`
            (the real images, preprocessed as in training; by default those that a run or what ships was
            trained on).
        folder: where the results go.
        reference: real images as they are, in place of `data`: a folder, or an .npz of ADM's (images,
            statistics or both).
        npz: also write the generated images there, for ADM's own evaluator.
        references: where references are cached, by fingerprint; `folder/reference` where None.
        allow_code: whether the source, a folder, may name code to run.

    Returns:
        The metrics, on the main process; an empty list on others.

    Raises:
        UserError: there are no such images, or too few.
    """
    images = Path(source).suffix.lower() == ".npz" or (
        Path(source).is_dir()
        and not is_run_folder(source)
        and not (Path(source) / "model_index.json").is_file()
    )
    made_with = settings_of(source)
    config = load_config({} if made_with is None else made_with, overrides)
    if made_with is not None:
        refuse_code(made_with, load_config(made_with).code, allow_code)
    _check(source, images, config, reference, npz, folder)
    with locked(folder):
        accelerator, kept = open_accelerator(config, folder), folder / KEPT
        extractors = [load_features(name, accelerator.device) for name in config.evaluation.judges]
        made = (
            given_images(source, reference is None)
            if images
            else generated_images(
                source,
                _told_sampling(overrides) if made_with is None else vars(config.sampling),
                config,
                accelerator,
                kept,
                allow_code,
            )
        )
        known: list[Reference] = []
        own: _Trained = None
        if accelerator.is_main_process:
            cache = references or folder / "reference"
            own = None if reference is not None else _trained_on(source, config, folder)
            known = [
                _reference(config, reference, extractor, folder, cache, made.size, own)
                for extractor in extractors
            ]
        features = [_features(made, extractor, accelerator) for extractor in extractors]
        if npz is not None and accelerator.is_main_process:
            write_samples_npz(npz, made.batches(0, made.count), made.labels, count=made.count)
        if not known:
            return []
        features = [of for of in features if of is not None]
        metrics, floor = _judged(features, known, extractors, config.evaluation, _exact(accelerator))
        note = "; ".join(filter(None, [metrics[0].note, made.how, _other_size(made, known[0])]))
        metrics[0] = dataclasses.replace(metrics[0], note=note)
        _write(folder, "samples", Measured(metrics), made)
        _write(folder, "floor", Measured(floor))
        _write_copies(folder, made, own, config)
        sampling = {} if made.sampling is None else as_dict(made.sampling)
        path = folder / "measured.json"
        measured = read_json(path, dict) if path.is_file() else {}  # an autoencoder's may lie there too
        of = {"source": source, "reference": str(reference or config.data.source), "sampling": sampling}
        write_json(path, measured | of)
        render_report(folder)
        forget_generated(kept)
        return metrics


def _write(folder: Path, name: str, measured: Measured, made: Generated | None = None) -> None:
    write_results(folder, name, OF_GENERATED[name], measured, None if made is None else made.record)


def _judged(
    features: list[Features],
    known: list[Reference],
    extractors: list[FeatureExtractor],
    config: EvaluationConfig,
    device: torch.device,
) -> tuple[list[Metric], list[Metric]]:
    """Returns all metrics on the first network's features, KID (and FD) on the second's, and the floors."""
    seed, shrink = config.seed, config.shrink_covariance
    metrics = generation_metrics(features[0], known[0], shrink=shrink, seed=seed, device=device)
    floor: list[Metric] = []
    for number, (made, reference, extractor) in enumerate(zip(features, known, extractors, strict=True)):
        real = reference.images
        if real is None or min(len(made), len(real)) < FEWEST_IMAGES:
            continue
        if number > 0:
            metrics += fidelity_metrics(made.pooled, real.pooled, extractor, seed=seed, shrink=shrink)
        if min(len(made), len(real) // 2) < FEWEST_IMAGES:
            continue
        floor += floor_metrics(real.pooled, len(made), extractor.labels, seed, device)
        if number == 0:
            metrics.append(mind_metric(made.pooled, real.pooled, extractor.labels.mind, seed))
    return metrics, floor


def _told_sampling(overrides: list[str]) -> list[str]:
    """Returns the names of the settings of sampling among overrides."""
    keys = (item.partition("=")[0] for item in overrides)
    return [key.removeprefix("sampling.") for key in keys if key.startswith("sampling.")]


def _check(
    source: str, images: bool, config: Config, reference: Path | None, npz: Path | None, folder: Path
) -> None:
    """Raises a UserError for what would otherwise fail when all is generated."""
    if npz is not None and npz.suffix != ".npz":
        raise UserError(f"--npz {npz} must end in .npz, as numpy and ADM's evaluator require")
    if reference is not None and not reference.exists():
        raise UserError(f"there is no reference {reference}; expected a folder of images or an .npz file")
    if not images and not Path(source).exists() and "/" not in source and not is_shipped(source):
        raise UserError(
            f"there is no {source}; expected a run folder, a pipeline's folder or Hub name, pretrained:NAME, "
            "a folder of images, or an .npz file"
        )
    if config.evaluation.sample_labels == "training" and not is_run_folder(source):
        raise UserError(
            "evaluation.sample_labels=training takes the classes' proportion from a run folder, which "
            f"{source} is not; choose balanced or random"
        )
    if reference is None and not config.data.source:
        raise UserError("there are no real images to compare with; give data=PATH or --reference PATH")
    for path in (folder / "results").glob("*.json"):
        read_results(path)  # metrics that can't be merged are refused before hours of work


def _reference(
    config: Config,
    path: Path | None,
    extractor: FeatureExtractor,
    folder: Path,
    cache: Path,
    size: int,
    own: _Trained,
) -> Reference:
    keep = config.evaluation.real_images or 10_000
    if path is not None:
        console.print(f"reading the reference {path}", markup=False, soft_wrap=True)
        return read_reference(path, extractor, keep=keep)
    real: ImageSource
    real = open_all_images(config.data, folder / "data") if own is None else own[0]
    if config.evaluation.sample_labels == "training":
        real = Subset(real, np.flatnonzero(np.asarray(real.labels) >= 0))

    def batches() -> Iterator[Tensor]:
        batch = config.evaluation.batch_size
        everything = draw(image_keys(real), None, 0)
        for _, images in read_batches(real, everything, size, batch, torch.device("cpu")):
            yield to_uint8(images)

    def compute() -> Reference:
        with progress_bar("reference", len(real), "images") as advance:
            return reference_from_images(batches(), extractor, keep=keep, advance=advance)

    made_of = {
        "data": real.fingerprint(),
        "preprocessing": preprocessing_fingerprint(size),
        "keep": str(keep),
    }
    return cached_reference(cache, made_of, extractor, compute)


def _other_size(made: Generated, known: Reference) -> str:
    """Says, also to the console, that the images are of another size than the reference's."""
    size = (made.size, made.width or made.size)
    if known.size in (None, size):
        return ""
    theirs = f"{known.size[0]}x{known.size[1]}"
    told = f"the images are {size[0]}x{size[1]}, those of the reference {theirs}: resize one of them first"
    console.print(told, soft_wrap=True)
    return told


def _write_copies(folder: Path, made: Generated, own: _Trained, config: Config) -> None:
    """Compares some generated images with those the model was trained on, where these are known."""
    if own is None:  # what may be there is of other images
        remove_results(folder, "copies")
        merge_results(folder)
        return
    seed = config.evaluation.seed
    copies = measure_copies(
        made.select(compared_images(made.count, made.labels, seed)),
        *own,
        size=made.size,
        mirrored=config.latents.flip,
        batch_size=config.evaluation.batch_size,
        seed=seed,
    )
    _write(folder, "copies", copies, made)


def _trained_on(source: str, config: Config, folder: Path) -> _Trained:
    """Returns the images that a source was trained on and those held out, where no others are named."""
    made_with = settings_of(source)
    if made_with is None or config.data != load_config(made_with).data:
        return None
    cache = (Path(source) if is_run_folder(source) else folder) / "data"
    if is_stream(config.data):  # what is kept of it
        return open_streamed(config.data, cache)[1:]
    return open_images(config.data, cache)


def _features(made: Generated, extractor: FeatureExtractor, accelerator: Accelerator) -> Features | None:
    """Returns the features of all generated images, on the main process: each makes a share of them."""
    mine = [extractor.none(), *(extractor.measure(images).cpu() for images in made.share(accelerator))]
    gathered = gather_object([Features.join(mine)])
    return Features.join(gathered) if accelerator.is_main_process else None


def _exact(accelerator: Accelerator) -> torch.device:
    """Returns where distances are computed: MPS knows no float64."""
    return torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device
