"""Images to pick from on the page, near to what the model was trained on."""

# n images, H W image

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldmae.config.data import DataConfig
from ldmae.config.registry import SOURCES
from ldmae.contracts import ImageSource
from ldmae.core.errors import UserError
from ldmae.images.builtin import open_builtin
from ldmae.images.index import open_images
from ldmae.report.data import read_arrays

_COUNT, _FEWEST = 12, 2
"""Images to pick from, at most and at least: two, for the way from one to another."""
_TRAINED_ON = ("emoji", "digits")
"""Built-in sets that a model with the same classes was trained on."""
_UNSEEN = "not used in training"
_SPREAD = 0.618
"""Place within a class of the picture that is taken: neither its first nor its middle, which are alike."""


@dataclass(frozen=True)
class Sample:
    """An image to pick."""

    name: str
    image: Image.Image
    """RGB."""


def sample_images(
    run_folder: Path | None, class_names: Sequence[str], data: DataConfig | None = None
) -> tuple[list[Sample], str]:
    """Chooses images to look into an autoencoder with.

    A run's held-out images, where its evaluation has left some; else those of the built-in set that the model
    was trained on; else pictures of the built-in set whose classes the model knows; else photographs that lie
    in scikit-image and scikit-learn.

    Returns:
        The images, at least two, and words on where they are from.
    """
    if run_folder is not None:
        held_out = _held_out(run_folder / "results" / "reconstruction.npz")
        if len(held_out) >= _FEWEST:
            return held_out, f"held-out images of the run, {_UNSEEN}"
    if data is not None and data.source in SOURCES:
        with tempfile.TemporaryDirectory() as cache, contextlib.suppress(UserError):  # its data.val is gone
            source = open_images(data, Path(cache), progress=False)[1]
            text = f"held-out {data.source} images, {_UNSEEN} ({source.licence})"
            if len(source) >= _FEWEST:
                return _of_all_classes(source), text
    for name in _TRAINED_ON:
        with contextlib.suppress(UserError):  # its package is not installed
            source = open_builtin(name)
            if source.classes == list(class_names):
                text = f"{name} images, some of them used in training ({source.licence})"
                return _of_all_classes(source), text
    photos = open_builtin("photos")
    return _of_all_classes(photos), f"crops of {photos.licence}"


def _held_out(path: Path) -> list[Sample]:
    originals = read_arrays(path, []).get("originals")
    if originals is None or originals.dtype != np.uint8 or originals.ndim != 4 or originals.shape[-1] != 3:
        return []
    return [Sample(f"held-out {k + 1}", Image.fromarray(image)) for k, image in enumerate(originals[:_COUNT])]


def _of_all_classes(source: ImageSource) -> list[Sample]:
    """Returns a picture of each class, and where these are too few further ones."""
    labels = np.asarray(source.labels)
    chosen: list[int] = []
    for label in range(min(len(source.classes), _COUNT)):
        members = np.flatnonzero(labels == label)
        if len(members):
            chosen.append(int(members[int(_SPREAD * len(members))]))
    further = (index for index in range(len(source)) if index not in chosen)
    chosen += itertools.islice(further, max(0, _FEWEST - len(chosen)))
    names = [source.classes[labels[index]] if labels[index] >= 0 else "no class" for index in chosen]
    return [Sample(name, source.read(index)) for name, index in zip(names, chosen, strict=True)]
