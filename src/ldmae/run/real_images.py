"""The real images that generated ones are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ldmae.config import Config, load_config
from ldmae.contracts import ImageSource
from ldmae.core.progress import progress_bar, tell
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.references import Reference, cached_reference, read_reference, reference_from_images
from ldmae.evaluation.subject import draw, image_keys, read_batches
from ldmae.images.base import Subset
from ldmae.images.index import open_all_images
from ldmae.images.transforms import preprocessing_fingerprint
from ldmae.loading import is_run_folder, settings_of
from ldmae.perception.features import FeatureExtractor
from ldmae.run.opening import open_run_images
from ldmae.run.sample_cache import SampleSet
from ldmae.run.trained_on import open_images_of

Trained = tuple[ImageSource, ImageSource] | None
"""The images that a model was trained on, and those held out; None where they are not known."""


def reference_of(
    config: Config,
    path: Path | None,
    extractor: FeatureExtractor,
    folder: Path,
    cache: Path,
    size: int,
    own: Trained,
) -> Reference:
    """Returns the statistics of the real images: those of `path`, or computed of the settings' images.

    Computed ones are of images of `size` pixels, those that the model was trained on (`own`) where no others
    are named, and are kept in `cache`; `folder` keeps the index of images.
    """
    keep = config.evaluation.real_images or 10_000
    if path is not None:
        tell(f"reading the reference {path}")
        return read_reference(path, extractor, keep=keep)
    real: ImageSource
    real = open_all_images(config.data, folder / "data") if own is None else own[0]
    if config.evaluation.sample_labels == "training":
        real = Subset(real, np.flatnonzero(np.asarray(real.labels) >= 0))

    def compute() -> Reference:
        everything, batch = draw(image_keys(real), None, 0), config.evaluation.batch_size
        read = read_batches(real, everything, size, batch, torch.device("cpu"))
        pixels = (to_uint8(images) for _, images in read)
        with progress_bar("reference", len(real), "images") as advance:
            return reference_from_images(pixels, extractor, keep=keep, advance=advance)

    made_of = {
        "data": real.fingerprint(),
        "preprocessing": preprocessing_fingerprint(size),
        "keep": str(keep),
    }
    return cached_reference(cache, made_of, extractor, compute)


def trained_images(source: str, config: Config, folder: Path) -> Trained:
    """Returns the images that a source was trained on and those held out, where no others are named.

    Raises:
        UserError: they are not those that a run was trained on.
    """
    made_with = settings_of(source)
    if made_with is None or config.data != load_config(made_with).data:
        return None
    if is_run_folder(source):
        return open_images_of(source, config.data)
    return open_run_images(config.data, folder / "data")[1:]


def other_size(made: SampleSet, known: Reference) -> str:
    """Says, also to the console, that the images are of another size than the reference's."""
    size = (made.size, made.width or made.size)
    if known.size in (None, size):
        return ""
    theirs = f"{known.size[0]}x{known.size[1]}"
    told = f"the images are {size[0]}x{size[1]}, those of the reference {theirs}: resize one of them first"
    tell(told)
    return told
