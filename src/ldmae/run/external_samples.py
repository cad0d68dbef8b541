"""Generated images against real ones: of a pipeline, or of a folder or .npz that anybody made."""

# N images, b of a batch, H W image

from __future__ import annotations

import dataclasses
from pathlib import Path

from ldmae.config import Config, as_dict, load_config
from ldmae.contracts import Metric
from ldmae.core.errors import UserError, check_enough
from ldmae.core.provenance import Record, read_record, write_record
from ldmae.evaluation.image_sets import write_samples_npz
from ldmae.evaluation.results import read_results
from ldmae.loading import check_source, is_run_folder, refuse_code, settings_of
from ldmae.perception.features import load_features
from ldmae.report.run import render_report
from ldmae.run.folders import writing
from ldmae.run.judging import features_of, judged, mark_taught, write_copies, write_metrics
from ldmae.run.opening import open_accelerator
from ldmae.run.real_images import Trained, other_size, reference_of, trained_images
from ldmae.run.sample_cache import KEPT, forget_generated, generated_images, given_images

MEASURED = "measured.json"
"""The record of what was measured in a folder that is no run's."""


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
        overrides: settings; the real images are those of `data=PATH`, preprocessed as in training, by default
            those that a run or what ships was trained on.
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
    told = [item.partition("=")[0].removeprefix("sampling.") for item in overrides]
    if made_with is not None:
        refuse_code(made_with, load_config(made_with).code, allow_code)
        told = [*vars(config.sampling)]
    _check(source, config, reference, npz, folder)
    with writing(folder):
        accelerator, kept = open_accelerator(config, folder), folder / KEPT
        extractors = [load_features(name, accelerator.device) for name in config.evaluation.judges]
        made = (
            given_images(source, reference is None)
            if images
            else generated_images(source, told, config, accelerator, kept, allow_code)
        )
        check_enough("a measurement of samples", 2, made.count, "generated images", "generate more")
        known = []
        own: Trained = None
        if accelerator.is_main_process:
            cache = references or folder / "reference"
            own = None if reference is not None else trained_images(source, config, folder)
            known = [
                reference_of(config, reference, extractor, folder, cache, made.size, own)
                for extractor in extractors
            ]
        features = [features_of(made, extractor, accelerator) for extractor in extractors]
        if npz is not None and accelerator.is_main_process:
            write_samples_npz(npz, made.batches(0, made.count), made.labels, count=made.count)
        if not known:
            return []
        features = [of for of in features if of is not None]
        metrics, floor = judged(features, known, extractors, config.evaluation, accelerator.device)
        metrics = metrics if made_with is None else mark_taught(metrics, load_config(made_with))
        note = "; ".join(filter(None, [metrics[0].note, made.how, other_size(made, known[0])]))
        metrics[0] = dataclasses.replace(metrics[0], note=note)
        write_metrics(folder, "samples", metrics, made.record)
        write_metrics(folder, "floor", floor)
        write_copies(folder, made, own, config)
        sampling = {} if made.sampling is None else as_dict(made.sampling)
        record = read_record(folder / MEASURED) or Record(status="done")  # an autoencoder's may lie there too
        record.settings |= {"source": source, "reference": str(reference or config.data.source)}
        record.settings["sampling"] = sampling
        write_record(folder / MEASURED, record)
        render_report(folder)
        forget_generated(kept)
        return metrics


def _check(source: str, config: Config, reference: Path | None, npz: Path | None, folder: Path) -> None:
    """Raises a UserError for what would otherwise fail when all is generated."""
    if npz is not None and npz.suffix != ".npz":
        raise UserError(f"--npz {npz} must end in .npz, as numpy and ADM's evaluator require")
    if reference is not None and not reference.exists():
        raise UserError(f"there is no reference {reference}; expected a folder of images or an .npz file")
    check_source(
        source,
        "a run folder, a pipeline's folder or Hub name, pretrained:NAME, a folder of images, or an .npz file",
    )
    if config.evaluation.sample_labels == "training" and not is_run_folder(source):
        raise UserError(
            "evaluation.sample_labels=training takes the classes' proportion from a run folder, which "
            f"{source} is not; choose balanced or random"
        )
    if reference is None and not config.data.source:
        raise UserError("there are no real images to compare with; give data=PATH or --reference PATH")
    read_record(folder / MEASURED)
    for path in (folder / "results").glob("*.json"):
        read_results(path)  # metrics that can't be merged are refused before hours of work
