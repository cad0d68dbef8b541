"""Metrics of a run: its autoencoder in every way, its generated images, and the report."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ldmae.config import Config, load_config
from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import ImageSource, Metric
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, fingerprint_model, fingerprint_tensors, read_json, write_json
from ldmae.core.progress import console, progress_bar
from ldmae.core.provenance import Record
from ldmae.core.random import generator
from ldmae.evaluation.api import MEASUREMENTS, OF_GENERATED, Measured, Measurement, load_measurement
from ldmae.evaluation.distances import FEWEST_IMAGES
from ldmae.evaluation.generation import fidelity_metrics
from ldmae.evaluation.recognition import check_recognisable, recognition_metric, train_recogniser
from ldmae.evaluation.reconstruction import PairMetrics, to_uint8
from ldmae.evaluation.subject import Subject, read_batches
from ldmae.loading import load_pipeline, settings_of
from ldmae.perception.features import FeatureExtractor, load_features
from ldmae.perception.lpips import load_perceptual
from ldmae.report.grids import save_png
from ldmae.report.run import overview, render_report
from ldmae.run.kept_images import KEPT, forget_generated, keep_generated
from ldmae.run.plan import latent_shape, plan_trainings
from ldmae.run.recorded import plain
from ldmae.run.results import merge_results, remove_results, results_record, write_results
from ldmae.run.run import Run, run_autoencoder

# ---- an autoencoder's measurements


def measure(subject: Subject, folder: Path, only: Sequence[Measurement] | None = None) -> None:
    """Measures an autoencoder; what was measured before with the same weights and settings is not redone.

    Writes `results/NAME.json` for each measurement and merges them into `results.json`. Metrics of other
    weights, images or sizes that are there are removed.

    Guaranteed: with the same weights, images, settings, device and number of threads the metrics are the same
    to the bit, but for the times and memory of `efficiency`; whatever the images' files are called and in
    whatever order they come. At another `evaluation.batch_size` they are the same up to the rounding of the
    networks' float32 arithmetic.

    Args:
        subject: the autoencoder and the images.
        folder: where `results/` is.
        only: the measurements to make; None: all of the package.

    Raises:
        UserError: a network or the masks that were asked for are not there, before anything is measured; or
            one of `only` can't be measured. With None it is said, and the others are measured.
    """
    common = _common_record(subject)
    chosen = [load_measurement(name) for name in MEASUREMENTS] if only is None else only
    records = {each.name: _record(each, subject, common) for each in chosen}
    kept = {name: results_record(folder / "results" / f"{name}.json") for name in records}
    wanted = [each for each in chosen if _differs(kept[each.name], records[each.name])]
    for needed in dict.fromkeys(name for each in wanted for name in each.needs):
        getattr(subject, needed)  # what is missing is said before hours of work
    _remove_others(folder, common, fingerprint_tensors(subject.autoencoder.state_dict()))
    for each in wanted:
        remove_results(folder, each.name)
        try:
            measured = each.measure(subject)
        except UserError as error:
            merge_results(folder)
            if only is not None:
                raise
            measured = Measured([], left_out=[f"{each.name}: {error}"])
        for sentence in measured.left_out:
            console.print(f"not measured: {sentence}", markup=False, soft_wrap=True)
        if measured.metrics:
            write_results(folder, each.name, each.title, measured, records[each.name])


def named_measurements(only: Sequence[str] | None, others: Sequence[str] = ()) -> list[Measurement] | None:
    """Returns the measurements of these names, but for `others`; None where none are named.

    Raises:
        UserError: one does not exist.
    """
    if only is None:
        return None
    return [load_measurement(name, others) for name in only if name not in others]


def _common_record(subject: Subject) -> Record:
    """Returns what all metrics of an autoencoder depend on."""
    inputs = {
        "autoencoder": fingerprint_model(subject.autoencoder),
        "held_out": subject.held_out.fingerprint(),
        "train": subject.train.fingerprint(),
    }
    return Record({"image_size": subject.size}, inputs, status="done")


def _record(measurement: Measurement, subject: Subject, common: Record) -> Record:
    settings = {key: value for key, value in plain(subject.config).items() if key in measurement.reads}
    code = "" if measurement.name in MEASUREMENTS else _source(measurement)
    own = {"measurement": fingerprint([measurement.inputs(subject), code])}
    return replace(common, settings=common.settings | settings, inputs=common.inputs | own)


def _differs(kept: Record | None, now: Record) -> bool:
    return kept is None or bool(kept.changes(now.settings, now.inputs))


def _source(measurement: Measurement) -> str:
    """Returns the text of the file that a measurement of one's own is written in: it may be edited."""
    try:
        return Path(inspect.getfile(measurement.measure)).read_text(encoding="utf-8")
    except (OSError, TypeError):
        return ""


def _remove_others(folder: Path, common: Record, weights: str) -> None:
    """Removes metrics that are not of this autoencoder and these images, or can't be read, and says so."""
    removed = []
    for path in sorted((folder / "results").glob("*.json")):
        kept = results_record(path)
        if kept is None:
            own = False
        elif path.stem in OF_GENERATED:  # images that were given name no weights
            own = kept.inputs.get("weights", weights) == weights
        else:
            same = all(kept.inputs.get(name) == value for name, value in common.inputs.items())
            own = same and kept.settings.get("image_size") == common.settings["image_size"]
        if not own:
            remove_results(folder, path.stem)
            removed.append(path.stem)
    if removed:
        console.print(
            "removed, because they are damaged or of other weights, images, sizes or versions: "
            + ", ".join(removed),
            soft_wrap=True,
        )


# ---- a run


def check_measurable(run: Run) -> None:
    """Checks before a run what would otherwise fail after hours, when it comes to measure.

    Raises:
        UserError: a network is unknown or can't be had, the images are too small for it, or too few.
    """
    config, size = run.config.evaluation, run.config.image_size
    with run.accelerator.main_process_first():  # which fetches weights that do not lie here yet
        for name in config.judges:
            load_features(name)
        perceptual = load_perceptual(config.perceptual)
    image = torch.zeros(1, 3, size, size)
    PairMetrics(perceptual=perceptual).update(image, image)
    bearing = int((np.asarray(run.train.labels) >= 0).sum())
    fewest = min(config.samples, bearing, config.real_images or bearing)
    if fewest < FEWEST_IMAGES:
        raise UserError(
            f"the kernel distance needs at least {FEWEST_IMAGES} images of each kind: evaluation.samples is "
            f"{config.samples}, training images that have a class are {bearing}, of which "
            f"evaluation.real_images={config.real_images} are taken; give more"
        )
    if config.recogniser:
        labels = np.asarray(run.train.labels)
        check_recognisable(labels[labels >= 0], size, int((np.asarray(run.held_out.labels) >= 0).sum()))


def evaluate(run: Run) -> dict[str, str]:
    """Measures reconstructions of held-out images and the generated images; writes `results.json`."""
    if run.main:
        measure(_subject_of(run), run.folder, [load_measurement("reconstruction")])
    run.accelerator.wait_for_everyone()
    metrics, record = measure_generation(run, run.config.evaluation)
    if run.main:
        write_results(run.folder, "generation", OF_GENERATED["generation"], Measured(metrics), record)
        forget_generated(run.folder / KEPT)
    run.accelerator.wait_for_everyone()
    return {}


def _subject_of(run: Run) -> Subject:
    """Returns a run's autoencoder and images, to measure."""
    return Subject(
        autoencoder=run_autoencoder(run).to(run.accelerator.device).requires_grad_(False),
        held_out=run.held_out,
        train=run.train,
        size=run.config.image_size,
        config=run.config.evaluation,
        trained_on=perceptual_teachers(run.config),
    )


def measure_autoencoder(run: Run, only: Sequence[Measurement] | None = None) -> None:
    """Measures a run's autoencoder in all ways of the package, or the measurements named."""
    if run.main:
        measure(_subject_of(run), run.folder, only)
    run.accelerator.wait_for_everyone()


def report(run: Run) -> dict[str, str]:
    """Writes `report.html`, `overview.png` and `parameters.json` of what the run folder holds."""
    if run.main:
        shape = latent_shape(
            read_json(run.folder / "diffusion" / "config.json", {"in_channels": int, "sample_size": int})
        )
        plans = plan_trainings(run.config, num_classes=len(run.train.classes), latent_shape=shape)
        counts = {plan.stage: {"total": plan.parameters, "trainable": plan.trainable} for plan in plans}
        own = {"autoencoder": counts[plans[0].stage], "diffusion": counts["diffusion"]}
        if run.config.autoencoder.source is not None:
            del own["autoencoder"]
        write_json(run.folder / "parameters.json", own)
        save_png(overview(run.folder), run.folder / "overview.png")
        render_report(run.folder)
    run.accelerator.wait_for_everyone()
    return {}


def measure_generation(run: Run, config: EvaluationConfig) -> tuple[list[Metric], Record]:
    """Measures generated images, in the training set's proportion of classes, against training images.

    The processes share the work; the main process returns the metrics, the others an empty list, and all
    what they are made of.
    """
    labels = np.asarray(run.train.labels)
    bearing = np.flatnonzero(labels >= 0)  # images without a class train the autoencoder only
    order = torch.randperm(len(bearing), generator=generator(config.seed, "evaluation labels")).numpy()
    wanted = np.resize(labels[bearing[order]], config.samples)
    real_images = bearing[order][: config.real_images]
    extractor = load_features(config.features, run.accelerator.device)
    theirs = _share(len(real_images), run)
    # whose settings are this run's: what they name was typed, or allowed
    pipeline = load_pipeline(str(run.folder), allow_code=True).to(run.accelerator.device)
    sampling = run.config.sampling.replace(
        seed=config.seed + 1,  # not the noise of the grid
        guidance_scale=(
            run.config.sampling.guidance_scale if config.guidance_scale is None else config.guidance_scale
        ),
    )
    made = keep_generated(pipeline, wanted, sampling, run.accelerator, run.folder / KEPT)
    features = [extractor(batch).cpu() for batch in made.share(run.accelerator)]
    with progress_bar(
        "features of real images", theirs.stop - theirs.start, "images", show=run.main
    ) as advance:
        real = _features(extractor, _batches(run.train, run, real_images[theirs]), advance)
    gathered = gather_object([{"fake": features, "real": real}])
    if not run.main:
        return [], made.record
    fake = torch.cat([piece for share in gathered for piece in share["fake"]])
    metrics = fidelity_metrics(
        fake,
        torch.cat([share["real"] for share in gathered]),
        extractor,
        seed=config.seed,
        shrink=config.shrink_covariance,
    )
    if config.recogniser:
        generated = torch.cat(list(made.batches(0, made.count)))
        metrics.append(_recognition(run, generated, wanted, bearing))
    return metrics, made.record


def _share(count: int, run: Run) -> slice:
    """Returns this process's contiguous share of `count` things."""
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    return slice(rank * count // world, (rank + 1) * count // world)


def _recognition(run: Run, generated: Tensor, wanted: np.ndarray, bearing: np.ndarray) -> Metric:
    held_labels = np.asarray(run.held_out.labels)
    held = np.flatnonzero(held_labels >= 0)
    real = torch.cat([to_uint8(images).cpu() for images in _batches(run.train, run, bearing)])
    unseen = torch.cat([to_uint8(images).cpu() for images in _batches(run.held_out, run, held)])
    recogniser = train_recogniser(real, np.asarray(run.train.labels)[bearing])
    return recognition_metric(recogniser, generated, wanted, unseen, held_labels[held])


def _features(extractor: FeatureExtractor, batches: Iterator[Tensor], advance: Any) -> Tensor:
    pieces = [torch.empty(0, extractor.dimensions)]
    for images in batches:
        pieces.append(extractor(to_uint8(images)).cpu())
        advance(len(images), "")
    return torch.cat(pieces)


def _batches(source: ImageSource, run: Run, indices: np.ndarray) -> Iterator[Tensor]:
    """Yields images (B, 3, H, W) in [-1, 1] on the run's device."""
    size, batch = run.config.image_size, run.config.evaluation.batch_size
    for _, images in read_batches(source, indices, size, batch, run.accelerator.device):
        yield images


def perceptual_teachers(config: Config) -> set[str]:
    """Returns the perceptual distances that a run's autoencoder is trained on, in whatever stage.

    Those of the autoencoder that it takes, or starts from, are among them where its settings are known.
    """
    auto = config.autoencoder
    before = auto.source or auto.init
    made_with = None if before is None else settings_of(before)
    teachers = set() if made_with is None else perceptual_teachers(load_config(made_with))
    for part in auto.stages:
        objective = getattr(auto, part).objective
        if objective.perceptual_weight > 0 and (part != "tuning" or auto.tuning.enabled):
            teachers.add(objective.perceptual)
    return teachers
