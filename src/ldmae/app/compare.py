"""Several autoencoders on the same image: pictures, figures, parameters and time of each."""

# S side of the square image

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from ldmae.app.looking import as_picture, difference, figures_of
from ldmae.app.uploads import squared
from ldmae.core.autoencoding import decode, encode_moments, placement, reconstruct
from ldmae.core.errors import UserError, nearest
from ldmae.evaluation.efficiency import count_parameters, seconds_of
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.evaluation.smoothness import as_saved
from ldmae.loading import is_shipped, load_autoencoder, may_be_hub_name
from ldmae.perception.lpips import PerceptualDistance

FEWEST, MOST = 2, 6
"""Autoencoders in one comparison."""
SIZES = (32, 48, 64, 96, 128, 192, 256, 512)
"""Pixels along a side that the image may be brought to."""
TIMED = 3
"""Turns that are timed, after one that is not; the middle one counts."""


@dataclass(frozen=True)
class Measured:
    """One autoencoder on the image."""

    name: str
    picture: np.ndarray | None = None
    """(S, S, 3) uint8, its reconstruction; None where there is none, and `problem` says why."""
    difference: np.ndarray | None = None
    """(S, S, 3) uint8, |original - reconstruction|, amplified."""
    figures: dict[str, float] = field(default_factory=dict)
    """`PSNR` in dB, and the perceptual distance under its label."""
    parameters: int = 0
    """Trainable ones."""
    latents: tuple[int, ...] = ()
    """(C, h, w)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """`encode` and `decode` of this one image, at the median of a few turns."""
    problem: str = ""
    """Why it could not be loaded, or could not take the image."""

    @property
    def compression(self) -> float:
        """Numbers of the image over numbers of its latents."""
        assert self.picture is not None
        return self.picture.size / math.prod(self.latents)


def check_names(names: Sequence[str], offered: Collection[str], may_name: bool) -> list[str]:
    """Returns the autoencoders that a visitor named, without repetitions, if they may be loaded.

    What the owner offers is allowed as it is. Of other names only a folder that exists, `pretrained:NAME` or
    a Hub name is: these forms read data and run no code (weights as safetensors, or as tensors only; classes
    out of diffusers and this package). `package.module:Name` is refused whatever it is.

    Args:
        names: what was typed.
        offered: what the owner offers, by the names that the page shows.
        may_name: whether visitors may name others.

    Raises:
        UserError: too few or too many, or one that may not or can't be loaded.
    """
    chosen = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not FEWEST <= len(chosen) <= MOST:
        more = "add another" if len(chosen) < FEWEST else "take some out"
        raise UserError(
            f"a comparison is of {FEWEST} to {MOST} different autoencoders, got {len(chosen)}; {more}"
        )
    for name in chosen:
        if name in offered:
            continue
        if not may_name:
            raise UserError(
                f"this page compares {', '.join(offered)} only, not {name}; its owner can offer more with "
                "`ldmae app --compare NAME`"
            )
        _check_form(name, offered)
    return chosen


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name of any length may have been typed
        return False


def _check_form(name: str, offered: Collection[str]) -> None:
    drive = re.match(r"[A-Za-z]:[\\/]", name)
    if ":" in name and not is_shipped(name) and not drive:
        raise UserError(
            f"{name}: only folders and Hub names can be named on the page, nothing that runs code or reads "
            "other files; start it with `ldmae app --compare NAME` for that"
        )
    if not (is_shipped(name) or _is_folder(name) or may_be_hub_name(name)):
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
            f"there is no model {name} on the Hugging Face Hub, or it is not open to this computer's owner; "
            "expected OWNER/NAME of an autoencoder, or of a pipeline that has one"
        ) from error
    except Exception as error:  # of whichever library speaks to the network
        raise UserError(
            f"the Hugging Face Hub can't be reached to fetch {name} ({type(error).__name__}), and no folder "
            "has this name; name a folder, or try again"
        ) from error


def measure(
    name: str,
    image: Image.Image,
    size: int,
    perceptual: PerceptualDistance,
    device: torch.device | str = "cpu",
    strength: float = 4.0,
    load: Callable[[str], Any] = load_autoencoder,
    between: Callable[[], None] = lambda: None,
    aside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Measured:
    """Loads an autoencoder, reconstructs the image, measures, and lets the autoencoder go.

    What goes wrong with this one is told in `problem`, so that the others can be shown.

    Args:
        name: what to load.
        image: RGB; its centred square counts.
        size: pixels that its side is brought to, S.
        perceptual: the perceptual distance, on the CPU.
        device: where to compute.
        strength: how much the difference is amplified.
        load: makes an autoencoder of a name.
        between: called between pieces of work; what it raises ends the measuring.
        aside: a context in which the autoencoder is loaded, which may be a download.
    """
    try:
        between()
        with aside():
            autoencoder = load(name).to(device)
        return _measured(name, autoencoder, image, size, perceptual, strength, between)
    except UserError as error:
        return Measured(name, problem=str(error))
    except torch.OutOfMemoryError:
        return Measured(
            name, problem=f"it does not fit into the memory with an image of {size} px; choose smaller"
        )


@torch.no_grad()
def _measured(
    name: str,
    autoencoder: Any,
    image: Image.Image,
    size: int,
    perceptual: PerceptualDistance,
    strength: float,
    between: Callable[[], None],
) -> Measured:
    images = squared(image, size)
    restored = as_saved(reconstruct(autoencoder, images).cpu(), "a decoded image")
    between()
    original = to_uint8(images)
    latents = encode_moments(autoencoder, images)[0]
    works = {
        "encode": lambda: encode_moments(autoencoder, images),
        "decode": lambda: decode(autoencoder, latents),
    }
    seconds = {}
    for kind, work in works.items():
        turns = []
        for _ in range(TIMED):
            turns.append(seconds_of(work, placement(autoencoder)[0]))
            between()
        seconds[kind] = median(turns)
    picture = as_picture(restored)
    return Measured(
        name,
        picture=picture,
        difference=difference(as_picture(original), picture, strength),
        figures=figures_of(original, restored, perceptual),
        parameters=count_parameters(autoencoder)[0],
        latents=tuple(latents.shape[1:]),
        seconds=seconds,
    )
