"""Measurements of an autoencoder: what one is, and the list of all.

A measurement is one file: a function from a `Subject` (an autoencoder with images) to `Measured`, wrapped in
a `Measurement`. Those of the package are listed in `MEASUREMENTS`; one's own is named `package.module:Name`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ldmae.config.evaluation import EvaluationConfig
from ldmae.contracts import Metric
from ldmae.core.errors import UserError, check_known, reason_of
from ldmae.core.imports import import_object, is_import_path
from ldmae.evaluation.subject import Subject

MEASUREMENTS = {
    "reconstruction": "ldmae.evaluation.reconstruction:RECONSTRUCTION",
    "smoothness": "ldmae.evaluation.smoothness:SMOOTHNESS",
    "interpolation": "ldmae.evaluation.interpolation:INTERPOLATION",
    "ifid": "ldmae.evaluation.ifid:IFID",
    "compression": "ldmae.evaluation.compression:COMPRESSION",
    "probe": "ldmae.evaluation.probe:PROBE",
    "components": "ldmae.evaluation.components:COMPONENTS",
    "efficiency": "ldmae.evaluation.efficiency:EFFICIENCY",
}
"""The package's measurements, by name, in the order in which reports show them: where each is defined."""

OF_GENERATED = {
    "generation": "Generation",
    "samples": "Generated images, measured as by ADM's evaluator",
    "floor": "Floor: one half of the real images against the other",
    "copies": "Copies of training images",
}
"""Titles of the measurements of generated images, which whole runs and `evaluate-samples` make."""


@dataclass(frozen=True)
class Measured:
    """What a measurement found."""

    metrics: list[Metric]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays for the report, kept in `results/NAME.npz`; images are uint8 (..., H, W, 3)."""
    left_out: list[str] = field(default_factory=list)
    """A sentence for each metric that could not be measured, printed."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One way to measure an autoencoder."""

    name: str
    """Of its results file, and for `--only`: letters, digits, `-`, `.` and `_`."""
    title: str
    """In reports."""
    measure: Callable[[Subject], Measured]
    reads: frozenset[str] = frozenset()
    """The settings under `evaluation` that its metrics depend on: others do not make it stale."""
    needs: tuple[str, ...] = ()
    """Attributes of the subject that may fail (weights, masks): opened before anything is measured."""
    inputs: Callable[[Subject], str] = lambda subject: ""
    """What else its metrics depend on beside model, images and settings, as text."""


def load_measurement(name: str, others: Sequence[str] = ()) -> Measurement:
    """Returns a measurement of the package by its name, or one's own by `package.module:Name`.

    Raises:
        UserError: there is none (`others` would have been accepted too), or the name leads to something else.
    """
    path = MEASUREMENTS.get(name, name)
    if not is_import_path(path):
        check_known("measurement", name, [*MEASUREMENTS, *others, "package.module:Name of your own"])
    found = import_object(path)
    if not isinstance(found, Measurement):
        raise UserError(
            f"{path} is of type {type(found).__name__}; expected a Measurement (ldmae.evaluation.api)"
        )
    if path == name and found.name.casefold() in {*MEASUREMENTS, *OF_GENERATED}:
        raise UserError(f"{path} is called {found.name!r}, as one of the package is; give it another name")
    if not re.fullmatch(r"\w[\w.-]*", found.name):
        raise UserError(f"{path} is called {found.name!r}; take letters, digits and hyphens")
    for need in found.needs:
        has = (name for name in (*Subject.__annotations__, *dir(Subject)) if name[0] != "_")
        check_known("attribute", need, has, f"the Subject, of which {path} needs it,")
    for setting in found.reads:
        check_known("setting", setting, EvaluationConfig.model_fields, f"evaluation, which {path} reads,")
    return found


def checked(measured: Any, name: str) -> Measured:
    """Returns what a measurement of one's own found, its numbers as Python's own.

    Raises:
        UserError: it is no `Measured` of `Metric`s, or a number in them is none.
    """
    try:
        metrics = [_plain_metric(metric) for metric in measured.metrics]
        pictures = {str(key): np.asarray(array) for key, array in measured.pictures.items()}
        if "file" in pictures or any(array.dtype == object for array in pictures.values()):
            raise ValueError("a picture must be an array of numbers, and can't be called 'file'")
        twice = [name for name, count in Counter(metric.name for metric in metrics).items() if count > 1]
        if twice or not (metrics or measured.left_out):
            raise ValueError(f"two metrics are called {twice[0]!r}" if twice else "it holds no metric")
        return Measured(metrics, pictures, [*map(str, measured.left_out)])
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"the measurement {name} must return a Measured of Metrics with finite numbers "
            f"(ldmae.evaluation.api): {reason_of(error)}"
        ) from error


def _plain_metric(metric: Metric) -> Metric:
    def finite(number: Any) -> float:
        if not math.isfinite(plain := float(number)):
            raise ValueError(f"{metric.name} is {plain}")
        return plain

    if not all(isinstance(text, str) for text in (metric.name, metric.unit, metric.note)):
        raise ValueError(f"{metric.name}: its name, unit and note must be texts")
    counts = {kind: int(count) for kind, count in metric.counts.items()}
    if metric.better not in ("higher", "lower", "") or min(counts.values(), default=0) < 0:
        raise ValueError(f"{metric.name}: better={metric.better!r}, counts={counts}")
    return replace(
        metric,
        value=finite(metric.value),
        counts=counts,
        spread={kind: finite(number) for kind, number in metric.spread.items()},
        reference={kind: finite(number) for kind, number in metric.reference.items()},
        trained_on_metric=bool(metric.trained_on_metric),
    )
