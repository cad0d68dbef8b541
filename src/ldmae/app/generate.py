"""Generating for a visitor: the request, its progress, and images that carry their settings."""

# n pictures, C latent channels, h w latent grid, H W image

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from torch import Tensor

from ldmae import __version__
from ldmae.config.diffusion import SamplingConfig
from ldmae.config.registry import SOLVERS
from ldmae.core.errors import UserError, check_range, nearest
from ldmae.core.random import generator
from ldmae.diffusion.pipeline_ldmae import IMAGES_DECODED_AT_ONCE, LDMAEPipeline
from ldmae.diffusion.solvers import evaluations, solver_class
from ldmae.evaluation.reconstruction import hwc
from ldmae.run.sampling import known_classes

_MOST_PICTURES, MOST_STEPS, SEEDS = 64, 250, 2**31
GUIDANCE, SHIFTS = (0.0, 10.0), (0.05, 3.0)
"""Smallest and largest guidance scale and time shift."""
_MOST_PIXELS = 64 * 256 * 256
"""Of all pictures of one job together."""
_MOST_WORK = {"cpu": 5e11, "": 5e13}
"""Parameters times latent cells of one step's pictures, by kind of device, with "" for all others: about as
many multiplications, which a processor takes some ten seconds for. Turns change only between steps."""
_SHOWN = 16
"""Pictures that are shown while they come into being."""
_PREVIEW_SHARE = 0.25
"""Share of the time that is spent on showing them."""
_KEY = "ldmae"
"""Name of the PNG's text chunk that holds the settings, as JSON."""
_EXAMPLES = Path(__file__).with_name("examples.zip")
"""Pictures of the shipped model: the ZIP that the page saves at its first settings with seed 0 locked."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a visitor wants generated."""

    label: int | None
    """A class; None: every class in turn."""
    count: int
    """Pictures."""
    sampling: SamplingConfig
    """Solver, steps, guidance, time shift, and the first picture's seed; each further one has the next."""

    def __post_init__(self) -> None:
        if self.sampling.solver not in SOLVERS:  # a visitor's, which would be imported
            solvers = " or ".join(SOLVERS)
            raise UserError(f"the solver must be {solvers} in the web app, got {self.sampling.solver!r}")

    def labels(self, classes: Sequence[int]) -> list[int]:
        """Returns each picture's class, of those that were trained."""
        return [classes[k % len(classes)] if self.label is None else self.label for k in range(self.count)]


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    done: int
    """Evaluations of the network so far."""
    total: int
    seconds: float
    """Since it began, waiting for others included."""
    steps: int
    """Steps of the solver in all; Heun's evaluates the network twice in each but the last."""
    preview: np.ndarray | None = None
    """(n, H, W, 3) uint8: the first few pictures as far as one could tell last; None: not yet."""


@dataclass(frozen=True)
class Generated:
    """A picture, and all that is needed to make it again."""

    image: Image.Image
    settings: dict[str, Any]
    """Class, seed, steps, solver, guidance, …: plain JSON."""

    def png(self) -> bytes:
        """Returns the PNG file, which carries the settings in a text chunk."""
        text = PngInfo()
        text.add_text(_KEY, json.dumps(self.settings))
        text.add_text("Software", f"ldmae {self.settings['ldmae']}")
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG", pnginfo=text, optimize=True)
        return buffer.getvalue()

    @property
    def file_name(self) -> str:
        """A name to save it under."""
        plain = "".join(c if c.isalnum() else "-" for c in str(self.settings["class"]))[:40].strip("-")
        return f"ldmae-{plain or self.settings['label']}-{self.settings['seed']}.png"


def most_pictures(size: int, cells: int, parameters: int, device: str) -> int:
    """Returns how many pictures one job may make, at least 1.

    A picture has `size` pixels along a side and `cells` in its latent grid; the parameters are the diffusion
    model's, the device is of this kind.
    """
    work = _MOST_WORK.get(device, _MOST_WORK[""])
    return max(1, min(_MOST_PICTURES, _MOST_PIXELS // (size * size), int(work // (cells * parameters))))


def check_request(request: GenerationRequest, classes: int, most: int) -> None:
    """Refuses what one visitor should not ask of a computer that others wait for; see `most_pictures`.

    Raises:
        UserError: something is out of range.
    """
    sampling = request.sampling
    check_range("the number of images", request.count, 1, most, "choose fewer")
    check_range("the number of steps", sampling.num_inference_steps, 1, MOST_STEPS, "50 is usual")
    highest = SEEDS - request.count  # so that each picture's own is one, too
    check_range("the seed", sampling.seed, 0, highest, "choose another")
    check_range("guidance", sampling.guidance_scale, *GUIDANCE, "3 is usual")
    if sampling.timestep_shift is not None:
        check_range("the time shift", sampling.timestep_shift, *SHIFTS, "1 = off")
    if request.label is not None:
        check_range("the class", request.label, 0, classes - 1, "choose one of this model's")


def estimate_seconds(request: GenerationRequest, pace: float) -> float:
    """Returns about how long a request takes, without decoding and without waiting for others.

    The pace is in seconds an evaluation of the network for one picture.
    """
    config = request.sampling
    count = evaluations(config.solver, config.num_inference_steps)
    start, end = config.guidance_interval
    guided = end - start if config.guidance_scale != 1 else 0.0  # there without the class, too
    return pace * request.count * count * (1 + guided)


def generate(
    pipeline: LDMAEPipeline,
    request: GenerationRequest,
    class_names: list[str],
    made_by: Mapping[str, str] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Generated]:
    """Generates pictures; the same request gives the same pictures.

    Each picture's noise belongs to its own seed: the picture of seed s is, but for the last digits, the same
    alone and among others, and the first one of `ldmae sample --seed s --class …` with the same settings.

    Several threads may share a pipeline: it is not changed, only its weights are used.

    Args:
        pipeline: on its device.
        request: what to make; see `check_request`.
        class_names: by label.
        made_by: what to say of the model in the settings that the pictures carry, by `model` (its name) and
            `weights`.
        report: called after every evaluation of the network; what it raises ends the job.

    Raises:
        UserError: the request does not fit the model.
    """
    config, began = request.sampling, time.perf_counter()
    own = _own_pipeline(pipeline, config.solver)
    labels = request.labels(known_classes(pipeline))
    preview = _Preview(own)
    shown: np.ndarray | None = None

    def on_step(pipe: LDMAEPipeline, step: int, _: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal shown
        new = preview.after(step, tensors["latents"])
        shown = shown if new is None else new  # told again each time: reports may be skipped
        report(news(step + 1, pipe.num_timesteps))
        return tensors

    def news(done: int, total: int) -> Progress:
        return Progress(done, total, time.perf_counter() - began, config.num_inference_steps, shown)

    latents: Tensor = own(
        labels,
        guidance_scale=config.guidance_scale,
        guidance_interval=(config.guidance_interval[0], config.guidance_interval[1]),
        guidance_channels=config.guidance_channels,
        num_inference_steps=config.num_inference_steps,
        timestep_shift=config.timestep_shift,
        generator=[generator(config.seed + k, "sample", 0) for k in range(request.count)],
        output_type="latent",
        callback_on_step_end=on_step,
    ).images  # type: ignore[union-attr]
    pictures = []
    for piece in latents.split(IMAGES_DECODED_AT_ONCE):
        pictures += list(hwc(own.decode_latents(piece)))
        report(news(own.num_timesteps, own.num_timesteps))
    return [
        Generated(
            Image.fromarray(picture),
            _settings(request, label, class_names[label], config.seed + k) | dict(made_by or {}),
        )
        for k, (picture, label) in enumerate(zip(pictures, labels, strict=True))
    ]


def _own_pipeline(pipeline: LDMAEPipeline, solver: str) -> LDMAEPipeline:
    """Returns a pipeline with the same weights and a solver of its own: a running one keeps its place."""
    config: Any = pipeline.config
    own = LDMAEPipeline(
        vae=pipeline.vae,
        transformer=pipeline.transformer,
        scheduler=solver_class(solver).from_config(pipeline.scheduler.config),
        id2label=config["id2label"],
        latents_mean=config["latents_mean"],
        latents_std=config["latents_std"],
    )
    own.set_progress_bar_config(disable=True)
    return own


class _Preview:
    """Decodes, now and then, where a picture on its way will end if it goes straight on.

    Between two evaluations the velocity is v = (x - x_before) / (σ_before - σ), and the path's end x + σ · v.
    """

    def __init__(self, pipeline: LDMAEPipeline) -> None:
        self._pipeline = pipeline
        self._before: Tensor | None = None
        self._due = 0.0

    def after(self, step: int, latents: Tensor) -> np.ndarray | None:
        """Returns (n, H, W, 3) uint8, or None where the last ones must do for a while."""
        sigmas = self._pipeline.scheduler.sigmas
        latents, now = latents[:_SHOWN], time.perf_counter()
        before, self._before = self._before, latents
        taken = float(sigmas[step] - sigmas[step + 1])  # 0 where Heun's method corrects a step
        if before is None or taken <= 0 or now < self._due:
            return None
        ahead = latents + float(sigmas[step + 1]) * (latents - before) / taken
        pictures = hwc(self._pipeline.decode_latents(ahead))
        cost = time.perf_counter() - now
        self._due = now + max(0.2, cost / _PREVIEW_SHARE)
        return pictures


# ---- settings that travel with a picture


def _settings(request: GenerationRequest, label: int, class_name: str, seed: int) -> dict[str, Any]:
    config = request.sampling
    return {
        "class": class_name,
        "label": label,
        "seed": seed,
        "steps": config.num_inference_steps,
        "solver": config.solver,
        "guidance": config.guidance_scale,
        "guidance_interval": list(config.guidance_interval),
        "guidance_channels": config.guidance_channels,
        "timestep_shift": config.timestep_shift,
        "ldmae": __version__,
    }


def saved_images(path: Path = _EXAMPLES) -> list[Generated]:
    """Returns the pictures in a ZIP that the page has saved, in their order."""
    with zipfile.ZipFile(path) as archive:
        files = [archive.read(name) for name in sorted(archive.namelist())]
    return [Generated(Image.open(io.BytesIO(file)).convert("RGB"), read_settings(file)) for file in files]


def read_settings(content: bytes) -> dict[str, Any]:
    """Returns the settings that a PNG carries; its pixels are not decoded.

    Raises:
        UserError: it is no PNG, or carries none.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        assert isinstance(image, PngImageFile)
        found = image.info.get(_KEY) or _text_behind_pixels(image)
        settings = json.loads(found) if isinstance(found, str) else None
    except Exception as error:  # Pillow and json raise whatever they like on what is none
        raise UserError(
            "this file is not a PNG with ldmae settings; drop an unedited image saved from this page"
        ) from error
    if not isinstance(settings, dict):
        raise UserError(
            "this PNG has no ldmae settings; drop an unedited image saved from this page (editors and "
            "messengers remove the settings)"
        )
    return settings


def _text_behind_pixels(image: PngImageFile) -> Any:
    if image.width * image.height > _MOST_PIXELS or getattr(image, "is_animated", False):
        return None
    return image.text.get(_KEY)  # reads to the file's end, which decodes the pixels


def request_from(settings: dict[str, Any], class_names: list[str], most: int) -> GenerationRequest:
    """Returns the request for exactly the picture that carries settings, which anybody may have written.

    Raises:
        UserError: a setting is missing or out of range, or the model does not know the class.
    """
    try:
        start, stop = settings["guidance_interval"]
        channels, shift = settings["guidance_channels"], settings["timestep_shift"]
        sampling = SamplingConfig(
            solver=str(settings["solver"]),
            num_inference_steps=_whole(settings["steps"]),
            guidance_scale=_number(settings["guidance"]),
            guidance_interval=[_number(start), _number(stop)],
            guidance_channels=None if channels is None else _whole(channels),
            timestep_shift=None if shift is None else _number(shift),
            seed=_whole(settings["seed"]),
        )
        name, label = str(settings["class"]), _whole(settings["label"])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"the settings in this PNG are incomplete or damaged ({type(error).__name__}: {error}); "
            "drop another image"
        ) from error
    if not (0 <= label < len(class_names) and class_names[label] == name):
        if name not in class_names:
            raise UserError(
                f"the image has class {name!r}, which this model does not have"
                f"{nearest(name, class_names)}; open the page with the model that made it"
            )
        label = class_names.index(name)
    request = GenerationRequest(label=label, count=1, sampling=sampling)
    check_request(request, len(class_names), most)
    return request


def _whole(value: Any) -> int:
    if _number(value) != int(value):
        raise ValueError(f"{value!r} is not an integer")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)
