"""Several autoencoders on the same image: images, metrics, parameters and time of each."""

# S side of the square image, T side at which an autoencoder computes

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from ldmae.app.explorer import metrics_of
from ldmae.app.uploads import squared
from ldmae.core.autoencoding import decode, encode_moments, setting, size_multiple
from ldmae.core.errors import UserError, check_range, nearest
from ldmae.evaluation.efficiency import count_parameters, seconds_of
from ldmae.evaluation.reconstruction import hwc
from ldmae.images.transforms import center_crop
from ldmae.loading import is_shipped, load_autoencoder, may_be_hub_name
from ldmae.perception.lpips import PerceptualDistance
from ldmae.report.formatting import format_count
from ldmae.report.grids import difference

logger = logging.getLogger(__name__)

FEWEST, MOST = 2, 6
"""Autoencoders in one comparison."""
_SIZES = (32, 48, 64, 96, 128, 192, 256, 512)
"""Pixels along a side that the image may be brought to, usually."""
_MOST_SIZES = 8
"""Sizes to choose from, where the usual ones do not fit."""
_MOST_WORK = {"cpu": 6e12, "": 3e14}
"""Parameters times pixels of one image, by kind of device, with "" for all others. A convolutional
autoencoder of 84 M parameters may take 256 x 256 pixels on a processor, where a pass takes some seconds:
others have their turn only between two passes."""
STRENGTH = 4.0
"""How much differences are amplified."""
_ROUNDS, _FEWEST_ROUNDS, _LONG = 7, 3, 5.0
"""Rounds in which the autoencoders are timed one after the other, so that whatever else the computer does
slows all of them; after so many seconds fewer will do."""


@dataclass(frozen=True)
class _Duration:
    """How long something takes, of several rounds."""

    seconds: float
    """The median."""
    spread: float
    """Between the quickest and the slowest."""


@dataclass(frozen=True)
class Compared:
    """One autoencoder on the image."""

    name: str
    picture: np.ndarray | None = None
    """(S, S, 3) uint8, its reconstruction; None where there is none, and `problem` says why."""
    difference: np.ndarray | None = None
    """(S, S, 3) uint8, |original - reconstruction|, amplified."""
    metrics: dict[str, float] = field(default_factory=dict)
    """`PSNR` in dB, and the perceptual distance under its label."""
    parameters: int = 0
    """Without buffers."""
    latents: tuple[int, ...] = ()
    """(C, h, w)."""
    side: int = 0
    """Pixels along a side of the image that it got, T: S, or the nearest to it that it takes."""
    works: dict[str, Callable[[], object]] = field(default_factory=dict, repr=False)
    """`encode` and `decode` of this one image, to be timed; they hold the autoencoder."""
    timings: dict[str, _Duration] = field(default_factory=dict)
    """Of `works`, once they were timed."""
    problem: str = ""
    """Why it could not be loaded, or could not take the image."""

    @property
    def compression(self) -> float:
        """Numbers of the image over numbers of its latents."""
        return 3 * self.side**2 / math.prod(self.latents)


def check_names(names: Sequence[str], offered: Collection[str], may_name: bool) -> list[str]:
    """Returns the autoencoders that a visitor named, without repetitions, if they may be loaded.

    What the owner offers is allowed as it is. Of other names only a folder that exists, `pretrained:NAME` or
    a Hub name is: these forms read data and run no code (weights as safetensors, or as tensors only; classes
    out of diffusers and this package). `package.module:Name` is refused whatever it is.

    Raises:
        UserError: too few or too many, or one that may not or can't be loaded.
    """
    chosen = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    check_range("the number of autoencoders", len(chosen), FEWEST, MOST, f"choose {FEWEST} to {MOST}")
    for name in chosen:
        if name not in offered:
            _check_form(name, offered, may_name)
    return chosen


def _check_form(name: str, offered: Collection[str], may_name: bool) -> None:
    if not may_name:
        raise UserError(
            f"this page compares only {', '.join(offered)}, not {name}; its owner can offer more with "
            "`ldmae app --compare NAME`"
        )
    drive = re.match(r"[A-Za-z]:[\\/]", name)
    if ":" in name and not is_shipped(name) and not drive:
        raise UserError(
            f"{name}: the page loads only folders and Hub names, nothing that runs code or reads other "
            "files; start it with `ldmae app --compare NAME` for that"
        )
    folder = os.path.isdir(name)  # noqa: PTH112, Path.is_dir raises where it is too long
    if not (is_shipped(name) or folder or may_be_hub_name(name)):
        raise UserError(
            f"there is no folder {name}{nearest(name, offered)}; expected a run folder, an autoencoder's "
            "diffusers folder, or OWNER/NAME on the Hugging Face Hub"
        )


def check_hub(name: str) -> None:
    """Asks the Hub for a model that is not in the cache: loading it would go on trying for a minute.

    Raises:
        UserError: there is no such model, it is not for everybody, or the Hub can't be reached.
    """
    if any(
        isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "vae/config.json")
    ):
        return
    try:
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError as error:
        raise UserError(
            f"there is no model {name} on the Hugging Face Hub, or this computer has no access to it; "
            "expected OWNER/NAME of an autoencoder, or of a pipeline that has one"
        ) from error
    except Exception as error:  # of whichever library speaks to the network
        raise UserError(
            f"{name} is not on this computer, and the Hugging Face Hub can't be reached to download it; "
            "choose another autoencoder, or connect to the internet"
        ) from error


@dataclass(frozen=True)
class Fit:
    """Which sizes of images an autoencoder takes, as far as it says."""

    fixed: int | None = None
    """The only one, in pixels along a side; None where there are more."""
    multiple: int = 1
    """What a side must be a multiple of."""

    @classmethod
    def of(cls, autoencoder: Any) -> Fit:
        """Returns that of an autoencoder."""
        if type(autoencoder).__name__ == "AutoencoderRAE":
            cells = setting(autoencoder, "encoder_input_size") // setting(autoencoder, "encoder_patch_size")
            return cls(fixed=cells * setting(autoencoder, "patch_size"))
        return cls(multiple=size_multiple(autoencoder) or 1)

    def nearest(self, size: int) -> int:
        """Returns the size nearest to a wanted one."""
        return self.fixed or max(1, round(size / self.multiple)) * self.multiple


def sizes_for(fits: Sequence[Fit], own: int) -> list[int]:
    """Returns the sizes to offer for a comparison: of the usual ones and `own` those that all take.

    Where there are none, others that all take; and where there are none either, the usual ones, instead of
    which each autoencoder gets the nearest that it takes.
    """
    usual = sorted({*_SIZES, own})

    def common(sizes: Iterable[int]) -> list[int]:
        return [size for size in sizes if all(fit.nearest(size) == size for fit in fits)]

    step = math.lcm(*(fit.multiple for fit in fits))
    return common(usual) or common(range(step, _SIZES[-1] + 1, step))[:_MOST_SIZES] or usual


def _most_side(parameters: int, device: str) -> int:
    """Returns how large an image an autoencoder of so many parameters gets, in pixels along a side."""
    return math.isqrt(int(_MOST_WORK.get(device, _MOST_WORK[""]) // max(parameters, 1)))


def measure(
    name: str,
    image: Image.Image,
    size: int,
    perceptual: PerceptualDistance,
    device: torch.device | str = "cpu",
    load: Callable[[str], Any] = load_autoencoder,
    between: Callable[[], None] = lambda: None,
    aside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Compared:
    """Loads an autoencoder, reconstructs the image and measures, all but time (see `timed`).

    What goes wrong with this one is told in `problem`, so that the others can be shown. The image's centred
    square is brought to S = `size`; an autoencoder that does not take it gets the nearest size, and its
    picture is brought back to S. `between` is called between pieces of work, and what it raises ends the
    measuring; `aside` is a context for loading, which may be a download.
    """
    try:
        between()
        with aside():
            autoencoder = load(name).to(device)
        between()
        parameters = count_parameters(autoencoder)
        most, side = _most_side(parameters[1], torch.device(device).type), Fit.of(autoencoder).nearest(size)
        if side > most:
            return Compared(name, problem=_too_much(parameters[1], side, most))
        return _measured(name, autoencoder, image, size, side, perceptual)
    except UserError as error:
        return Compared(name, problem=str(error))
    except torch.OutOfMemoryError:
        return Compared(
            name, problem=f"out of memory with an image of {size} px; choose a smaller image size"
        )


def _too_much(parameters: int, side: int, most: int) -> str:
    move = f"choose at most {most} × {most}" if most >= _SIZES[0] else "compare it with `ldmae evaluate`"
    return (
        f"its {format_count(parameters)} parameters are too much work for this page on an image of "
        f"{side} × {side} pixels; {move}"
    )


@torch.no_grad()
def _measured(
    name: str,
    autoencoder: Any,
    image: Image.Image,
    size: int,
    side: int,
    perceptual: PerceptualDistance,
) -> Compared:
    images = squared(image, side)  # (1, 3, T, T)
    try:
        latents = encode_moments(autoencoder, images)[0]
        restored = decode(autoencoder, latents)
    except UserError as error:
        logger.warning("%s failed on an image of %d px: %s", name, side, error)
        raise UserError(f"it can't take this image at {side} × {side} pixels; choose another size") from error
    if restored.shape[1] != images.shape[1]:
        raise UserError(f"it decodes to {restored.shape[1]} channels, and this page compares RGB images")
    decoded = Image.fromarray(hwc(restored)[0])
    picture = np.array(decoded.resize((size, size), Image.Resampling.BICUBIC))
    original = np.array(center_crop(image, size))
    return Compared(
        name,
        picture=picture,
        difference=difference(original, picture, STRENGTH),
        metrics=metrics_of(original, picture, perceptual),
        parameters=sum(parameter.numel() for parameter in autoencoder.parameters()),
        latents=tuple(latents.shape[1:]),
        side=side,
        works={
            "encode": lambda: encode_moments(autoencoder, images),
            "decode": lambda: decode(autoencoder, latents),
        },
    )


@torch.no_grad()
def timed(
    done: Sequence[Compared],
    device: torch.device | str = "cpu",
    between: Callable[[], None] = lambda: None,
) -> list[Compared]:
    """Times what was measured in turn, and lets the autoencoders go; `between` as in `measure`."""
    taken: list[dict[str, list[float]]] = [{kind: [] for kind in one.works} for one in done]
    began = time.monotonic()
    for number in range(_ROUNDS):
        for one, times in zip(done, taken, strict=True):
            for kind, work in one.works.items():
                times[kind].append(seconds_of(work, device))
                between()
        if number + 1 >= _FEWEST_ROUNDS and time.monotonic() - began > _LONG:
            break
    return [
        replace(
            one,
            works={},
            timings={
                kind: _Duration(median(seconds), max(seconds) - min(seconds))
                for kind, seconds in times.items()
            },
        )
        for one, times in zip(done, taken, strict=True)
    ]
