"""Checks the arguments of a call of the pipeline; each returns what is used, or says what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmae.config.diffusion import SHIFTS
from ldmae.core.errors import UserError


def number(name: str, value: Any, usual: str) -> float:
    """Returns a finite number, also from a tensor of one element or of numpy.

    Raises:
        UserError: it is none; `usual` is what the message recommends.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value!r}; {usual}")
    return float(value)


def whole_number(name: str, value: Any, most: int, usual: str) -> int:
    """Returns a whole number from 1 to `most`, also from a float without a fraction.

    Raises:
        UserError: it is none.
    """
    found = number(name, value, usual)
    if found != int(found) or not 1 <= found <= most:
        raise UserError(f"{name} must be a whole number from 1 to {most:,}, got {value!r}; {usual}")
    return int(found)


def guidance_interval(value: Any) -> tuple[float, float]:
    """Returns the two times between which guidance acts; None: all times.

    Raises:
        UserError: they are not two rising times in [0, 1].
    """
    if value is None:
        return (0.0, 1.0)
    usual = "the official one is (0.1, 1.0), None guides at all times"
    times = (
        [number("guidance_interval", time, usual) for time in value]
        if isinstance(value, list | tuple | Tensor | np.ndarray)
        else []
    )
    if len(times) != 2 or not 0 <= times[0] <= times[1] <= 1:
        raise UserError(f"guidance_interval must be two rising times in [0, 1], got {value!r}; {usual}")
    return times[0], times[1]


def timestep_shift(value: Any) -> float | None:
    """Returns the time shift s; None: the scheduler's own.

    Raises:
        UserError: it is negative, or so small or large that no times would be left.
    """
    if value is None:
        return None
    usual = "0.3 is usual; 0 and 1 turn it off"
    shift, (least, most) = number("timestep_shift", value, usual), SHIFTS
    if shift and not least <= shift <= most:
        raise UserError(f"timestep_shift must be 0 or from {least:g} to {most:g}, got {value!r}; {usual}")
    return shift


def generators(value: Any, batch: int) -> torch.Generator | list[torch.Generator] | None:
    """Returns one generator, a list of one for each image, or None.

    Raises:
        UserError: it is something else, such as a seed, or a list of another length.
    """
    if value is None or isinstance(value, torch.Generator):
        return value
    several = list(value) if isinstance(value, list | tuple) else [value]
    for one in several:
        if not isinstance(one, torch.Generator):
            raise UserError(
                f"generator must be a torch.Generator or a list of them, got {one!r}; make one of a seed "
                "with torch.Generator().manual_seed(SEED)"
            )
    if len(several) != batch:
        raise UserError(
            f"a list of generators needs one for each image, got {len(several)} for {batch} class "
            "labels; give as many, or a single generator"
        )
    return several


def check_transformer(transformer: Any) -> None:
    """Raises a UserError where a transformer's config lacks what the pipeline reads of it."""
    needed = ("num_classes", "in_channels", "sample_size", "patch_size")
    lacks = [name for name in needed if name not in (getattr(transformer, "config", None) or ())]
    if lacks:
        raise UserError(
            f"the config of the transformer ({type(transformer).__name__}) has no {', '.join(lacks)}; give a "
            "LightningDiTTransformer2DModel or its like, as in LDMAEPipeline(vae, transformer, scheduler)"
        )


def replaced_latents(returned: Any, latents: Tensor) -> Tensor:
    """Returns the latents that `callback_on_step_end` returned, in float32, or those that it was given.

    Raises:
        UserError: it returned something else than a dictionary, or latents of another shape.
    """
    if returned is None:
        return latents
    found = returned.get("latents", latents) if isinstance(returned, Mapping) else None
    if getattr(found, "shape", None) != latents.shape:
        got = type(returned if found is None else found).__name__
        raise UserError(
            "callback_on_step_end must return a dictionary, whose latents, if any, are a tensor of shape "
            f"{tuple(latents.shape)}; got {got} {tuple(getattr(found, 'shape', ()))}"
        )
    return torch.as_tensor(found).to(latents)


def names_by_number(id2label: Any) -> dict[int, str] | None:
    """Returns the names of the classes by number; JSON turns the numbers into strings.

    Raises:
        UserError: it is no dictionary, or a key is no number.
    """
    if id2label is None:
        return None
    try:
        return dict(sorted((int(key), str(name)) for key, name in id2label.items()))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"id2label must be a dictionary from class numbers to names, {{0: 'cat', …}}, got {id2label!r}"
        ) from error


def flattened(labels: Any) -> Iterator[Any]:
    """Yields the class labels in lists, tuples, tensors and arrays, nested or not."""
    if isinstance(labels, Tensor | np.ndarray):
        labels = labels.tolist()
    if isinstance(labels, list | tuple | range):
        for label in labels:
            yield from flattened(label)
    else:
        yield labels
