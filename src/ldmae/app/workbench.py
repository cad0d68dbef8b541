"""What the page works with: the models, opened once and shared by all visitors, and what visitors may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from ldmae.app.compare import Fit, check_hub, sizes_for
from ldmae.app.explorer import AutoencoderExplorer
from ldmae.app.generate import Generated, most_pictures, saved_images
from ldmae.app.lines import HEAVY, LIGHT, Audience, Line
from ldmae.app.samples import Sample, sample_images
from ldmae.app.uploads import Limits, upload_folder
from ldmae.config import load_config
from ldmae.config.diffusion import SamplingConfig
from ldmae.core.device import pick_device
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint, fingerprint_model
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.evaluation.efficiency import count_parameters, seconds_of
from ldmae.loading import (
    is_run_folder,
    load_autoencoder,
    load_pipeline,
    may_be_hub_name,
    refuse_code,
    settings_of,
)
from ldmae.perception.lpips import PerceptualDistance, load_perceptual
from ldmae.run.sampling import known_classes, own_sampling, picture_size, pipeline_classes
from ldmae.run.threads import settle_alone, velocity

_GUIDANCE, _INTERVAL = 3.0, (0.1, 1.0)
"""What a pipeline without settings of a run starts from: guidance that most class-conditional models like."""

_PICTURES = 8
"""Pictures at once for which the number of threads is chosen."""


@dataclass(frozen=True)
class Workbench:
    """Models and rules of one page. Nothing in it changes while the page is open, but whose turn it is."""

    source: str
    """As the owner named it; never shown to visitors from elsewhere, as it may be a path."""
    run_folder: Path | None
    """The run that the model is of, or None."""
    pipeline: LDMAEPipeline
    """On its device, in evaluation mode."""
    class_names: list[str]
    """By label."""
    defaults: SamplingConfig
    """What the controls begin with."""
    size: int
    """Pixels along a side of generated pictures."""
    samples: list[Sample]
    """Images to pick from."""
    samples_from: str
    """Where they are from, in words."""
    perceptual: PerceptualDistance
    """On the CPU."""
    explorer: AutoencoderExplorer
    """The pipeline's autoencoder."""
    offered: dict[str, str]
    """Other autoencoders that the owner offers for comparing: what the page calls them, and their sources."""
    compared_sizes: list[int]
    """Pixels along a side that images are compared at: what all offered autoencoders take."""
    may_name: bool
    """Whether visitors may name further folders and Hub names; see `serve._may_name_sources`."""
    limits: Limits
    audience: Audience = field(default_factory=Audience)
    """Who listens to the server's answers."""

    @cached_property
    def heavy(self) -> Line:
        """Where requests to generate and to compare wait."""
        return Line(HEAVY, self.audience.heard)

    @cached_property
    def light(self) -> Line:
        """Where all other requests wait."""
        return Line(LIGHT, self.audience.heard)

    @cached_property
    def most_pictures(self) -> int:
        """How many pictures a visitor may have generated at once."""
        transformer: Any = self.pipeline.transformer
        parameters = count_parameters(transformer)[1]
        return most_pictures(self.size, transformer.config["sample_size"] ** 2, parameters, self.device.type)

    @property
    def name(self) -> str:
        """What the page calls the model: the last part of its path or name."""
        return short_name(self.source)

    @property
    def choices(self) -> list[str]:
        """Autoencoders that can be compared without being spelled out; the page's own is first."""
        return [self.name, *self.offered]

    def load(self, name: str) -> Any:
        """Loads an autoencoder by its name in `choices`, or one that a visitor named (see `check_names`).

        Of a visitor's only weights as safetensors are loaded, into known classes, and never code.

        Raises:
            UserError: there is none, it lies where visitors' files lie, its folder names code, or its weights
                are not safetensors.
        """
        if name == self.name:
            return self.pipeline.vae
        if name in self.offered:
            return _load(self.offered[name])
        if Path(name).resolve().is_relative_to(upload_folder()):
            raise UserError(f"{name} is where the page keeps visitors' uploads; choose another folder")
        return _load(name, use_safetensors=True)

    @cached_property
    def pace(self) -> float:
        """Seconds that the diffusion model takes to evaluate one picture once."""
        count = min(_PICTURES, self.most_pictures)
        work = velocity(self.pipeline, count)
        return min(seconds_of(work, self.device) for _ in range(2)) / count  # the first warms up

    @property
    def examples(self) -> list[Generated]:
        """Pictures that lie in the package, where it is this model that has made them."""
        made = saved_images()
        by = {key: made[0].settings[key] for key in ("model", "weights")}
        return made if by["model"] == self.name and by == self.made_by else []

    @cached_property
    def made_by(self) -> dict[str, str]:
        """What the pictures say of the model that made them: its name, and a hash of it."""
        parts = (self.pipeline.transformer, self.pipeline.vae)
        return {"model": self.name, "weights": fingerprint([fingerprint_model(part) for part in parts])}

    @cached_property
    def classes(self) -> list[int]:
        """The classes that the diffusion model was trained on."""
        return known_classes(self.pipeline)

    @property
    def device(self) -> torch.device:
        """Where the models compute."""
        return self.pipeline.device

    @property
    def guidable(self) -> bool:
        """Whether the diffusion model has a null class to be guided away from."""
        return getattr(self.pipeline.transformer, "null_class", None) is not None

    @cached_property
    def facts(self) -> list[str]:
        """What there is to say of the models, a few words each."""
        models = self.pipeline.vae, self.pipeline.transformer
        autoencoder, diffusion = (sum(p.numel() for p in model.parameters()) / 1e6 for model in models)
        classes = len(self.classes)
        return [
            f"{self.size} × {self.size} pixels",
            f"{classes} classes" if classes > 1 else "1 class",
            f"Autoencoder {autoencoder:.3g} M parameters",
            f"Diffusion model {diffusion:.3g} M parameters",
        ]


def open_workbench(
    source: str,
    *,
    device: str = "auto",
    perceptual: str = "st-lpips-alex",
    offered: tuple[str, ...] = (),
    may_name: bool = False,
    limits: Limits | None = None,
) -> Workbench:
    """Opens the models of a page.

    Args:
        source: a run folder, a pipeline's folder or Hub name, or `pretrained:NAME`.
        device: `auto`, or a device's name.
        perceptual: name of the perceptual distance, as in `evaluation.perceptual`.
        offered: other autoencoders to compare with, in any form that `ldmae evaluate` takes: they are the
            owner's choice, so that `package.module:Name` is allowed.
        may_name: whether visitors may name further ones.
        limits: of uploads.

    Raises:
        UserError: there is no such pipeline, device, distance or offered autoencoder.
    """
    if Path(source).name == "pipeline" and is_run_folder(str(Path(source).parent)):
        source = str(Path(source).parent)  # a run's own: its settings, images and report are at hand
    pipeline = load_pipeline(source).to(pick_device(device))
    names = pipeline_classes(pipeline)
    run = Path(source) if is_run_folder(source) else None
    size = picture_size(pipeline)
    settle_alone(velocity(pipeline, _PICTURES), _PICTURES, pipeline.device, source=source)
    made_with = settings_of(source)
    settings = None if made_with is None else load_config(made_with)
    if settings is not None:  # the page uses these two; it runs nobody's code
        refuse_code(str(made_with), [settings.sampling.solver, settings.data.val], allow_code=False)
    samples, samples_from = sample_images(run, names, None if settings is None else settings.data)
    distance = load_perceptual(perceptual)
    images = [sample.image for sample in samples]
    # a mistake is told before the page opens; each is loaded again when it is asked for
    fits = [Fit.of(pipeline.vae), *(Fit.of(_load(other)) for other in offered)]
    return Workbench(
        source=source,
        run_folder=run,
        pipeline=pipeline,
        class_names=names,
        defaults=_defaults(pipeline) if settings is None else settings.sampling,
        size=size,
        samples=samples,
        samples_from=samples_from,
        perceptual=distance,
        explorer=AutoencoderExplorer(pipeline.vae, size, images, distance, _deviation(pipeline)),
        offered=_named(offered, short_name(source)),
        compared_sizes=sizes_for(fits, size),
        may_name=may_name,
        limits=limits or Limits(),
    )


def _load(source: str, **options: Any) -> Any:
    if may_be_hub_name(source) and not Path(source).exists():
        check_hub(source)
    return load_autoencoder(source, **options)


def short_name(source: str) -> str:
    """Returns the last part of a path or of a Hub name, or what stands behind `pretrained:`."""
    if Path(source).exists():
        return Path(source).resolve().name
    return source.removeprefix("pretrained:").rpartition("/")[2]


def _named(sources: tuple[str, ...], own: str) -> dict[str, str]:
    """Returns sources by short names, numbered where two, or one and the page's own, have the same."""
    named: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        name, number = short_name(source), 2
        while name in named or name == own:
            name, number = f"{short_name(source)} ({number})", number + 1
        named[name] = source
    return named


def runs_nearby(source: str, *others: str) -> list[str]:
    """Returns run folders with a trained autoencoder beside a source and in `runs/`, without those named."""
    beside = [Path(source).parent] if Path(source).exists() else []
    parents = {parent.resolve(): parent for parent in (Path("runs"), *beside)}.values()
    found = [path for parent in parents for path in sorted(parent.glob("*/autoencoder/config.json"))[:20]]
    known = {Path(one).resolve() for one in (source, *others)}
    return [str(path.parents[1]) for path in found if path.parents[1].resolve() not in known]


def _defaults(pipeline: LDMAEPipeline) -> SamplingConfig:
    """Returns usual settings of sampling, with the pipeline's own solver and time shift."""
    guided = getattr(pipeline.transformer, "null_class", None) is not None
    return SamplingConfig(
        guidance_scale=_GUIDANCE if guided else 1.0,
        guidance_interval=list(_INTERVAL),
        **own_sampling(pipeline),
    )


def _deviation(pipeline: LDMAEPipeline) -> list[float] | None:
    """Returns the deviation of the raw latents that the diffusion model was trained on, where it is told."""
    own = cast(Any, pipeline.config)["latents_std"]
    return own or pipeline.vae.config.get("latents_std")
