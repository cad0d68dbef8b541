"""Typed settings of a run: presets, YAML files, dotted overrides, and the checks that join stages."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldmae.autoencoders.masked_objective import MaskedObjectiveConfig
from ldmae.autoencoders.masking import MaskingConfig
from ldmae.autoencoders.settings import VMAEConfig
from ldmae.core.errors import UserError, closest, nearest
from ldmae.core.files import write_text
from ldmae.diffusion.flow import FlowConfig
from ldmae.diffusion.settings import LightningDiTConfig, SamplingConfig
from ldmae.evaluation.settings import EvaluationConfig
from ldmae.images.sources import DataConfig
from ldmae.images.transforms import AugmentConfig
from ldmae.latents.settings import LatentsConfig
from ldmae.perception.lpips import SMALLEST
from ldmae.training.settings import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Masked pre-training of the whole autoencoder."""

    image_size: int | None = None
    """Pixels along an image's side; null: the run's."""
    initial_logvar: float | None = None
    """Log variance of the posterior at the start (its bias); null: 0, as the official code."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and mirror images."""
    objective: MaskedObjectiveConfig = field(default_factory=MaskedObjectiveConfig)
    """Weights of the loss's terms, and the share of masked patches."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batch, optimizer."""


def _unmasked() -> MaskedObjectiveConfig:
    return MaskedObjectiveConfig(masking=MaskingConfig(ratio=0.0), sample_posterior=False)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Decoder tuning at the run's image size: no mask, posterior mean."""

    enabled: bool = True
    """False: the pre-trained autoencoder is the final one."""
    freeze_encoder: bool = True
    """Train the decoder alone, so that the latents stay what they are."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and mirror images."""
    objective: MaskedObjectiveConfig = field(default_factory=_unmasked)
    """Weights of the loss's terms."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batch, optimizer."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The autoencoder: its shape and its two trainings, or where to take it from."""

    source: str | None = None
    """Take this one as it is, train none: a run folder, a diffusers folder or Hub name, `official:FILE`."""
    init: str | None = None
    """Start training from this autoencoder (same forms as `source`)."""
    model: VMAEConfig = field(default_factory=VMAEConfig)
    """Its shape."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """First stage."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Second stage."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The diffusion model: its shape, its objective, its training."""

    model: LightningDiTConfig = field(default_factory=LightningDiTConfig)
    """Its shape."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Flow matching: the density of the times."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batch, optimizer."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    image_size: int = 256
    """Pixels along an image's side, from decoder tuning on."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """First model."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """What lies between the models."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Second model."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """What is generated."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured."""
    seed: int = 0
    """Key of all randomness in training."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    mixed_precision: str = "auto"
    """`no`, `bf16`, `fp16`, or `auto`: bf16 where the device computes in it, else no."""
    deterministic: bool = False
    """Only deterministic kernels: on CUDA a resumed run is bitwise the same with this only (and slower)."""
    tracker: str = "none"
    """`tensorboard`, `wandb` (an extra), or `none`; metrics.jsonl is always written."""

    def __post_init__(self):
        _check_positive(self)
        model, size = self.autoencoder.model, self.image_size
        for name, pixels in (
            ("image_size", size),
            ("autoencoder.pretraining.image_size", self.pretraining_size),
        ):
            if pixels < 1 or (self.autoencoder.source is None and pixels % model.patch_size):
                raise UserError(
                    f"{name}={pixels} must be a multiple of autoencoder.model.patch_size={model.patch_size}; "
                    f"take {max(1, round(pixels / model.patch_size)) * model.patch_size}"
                )
        for part in ("encoder", "decoder"):
            width = getattr(model, f"{part}_hidden_size")
            heads = getattr(model, f"{part}_num_attention_heads")
            if width % heads or width % 4:
                raise UserError(
                    f"autoencoder.model.{part}_hidden_size={width} must be a multiple of 4 and of "
                    f"{part}_num_attention_heads={heads}; change one of them"
                )
        if self.autoencoder.source is None and (size // model.patch_size) % self.diffusion.model.patch_size:
            raise UserError(
                f"the latent grid has {size // model.patch_size} cells a side, which "
                f"diffusion.model.patch_size={self.diffusion.model.patch_size} does not divide"
            )
        self._check_perceptual()
        transformer = self.diffusion.model
        if transformer.attention_head_dim % 4:
            raise UserError(
                "diffusion.model.attention_head_dim must be a multiple of 4 (positions), got "
                f"{transformer.attention_head_dim}; take {transformer.attention_head_dim // 4 * 4 + 4}"
            )
        scales = (self.sampling.guidance_scale, self.evaluation.guidance_scale)
        if transformer.class_dropout_prob == 0 and any(scale not in (None, 1) for scale in scales):
            raise UserError(
                "guidance needs diffusion.model.class_dropout_prob above 0 in training; set that, or "
                "sampling.guidance_scale=1 and evaluation.guidance_scale=1"
            )
        if self.device not in ("auto", "cpu", "cuda", "mps"):
            raise UserError(f"device must be auto, cpu, cuda or mps, got {self.device!r}")
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise UserError(f"mixed_precision must be auto, no, bf16 or fp16, got {self.mixed_precision!r}")
        if self.tracker not in ("none", "tensorboard", "wandb"):
            raise UserError(f"tracker must be tensorboard, wandb or none, got {self.tracker!r}")

    def _check_perceptual(self) -> None:
        """Raises for a perceptual distance that is unknown, or that cannot see images so small."""
        judges = {"evaluation.perceptual": (self.evaluation.perceptual, self.image_size)}
        stages = {"pretraining": self.pretraining_size, "tuning": self.image_size}
        for stage, size in stages.items():
            objective = getattr(self.autoencoder, stage).objective
            if self.autoencoder.source is None and objective.perceptual_weight > 0:
                judges[f"autoencoder.{stage}.objective.perceptual"] = (objective.perceptual, size)
        for key, (name, size) in judges.items():
            if name not in SMALLEST:
                raise UserError(
                    f"{key}={name!r} is unknown{nearest(name, SMALLEST)}; known: {', '.join(SMALLEST)}"
                )
            if size < SMALLEST[name]:
                raise UserError(
                    f"{key}={name} needs images of at least {SMALLEST[name]} px, got {size}; take larger "
                    "images or another distance"
                )

    @property
    def pretraining_size(self) -> int:
        """Pixels along an image's side in pre-training."""
        return self.autoencoder.pretraining.image_size or self.image_size


def _check_positive(config: Config) -> None:
    """Refuses a model of no layers, heads, channels …, before hours of training come to build it."""
    for name, model in (
        ("autoencoder.model", config.autoencoder.model),
        ("diffusion.model", config.diffusion.model),
    ):
        for key, value in vars(model).items():
            if type(value) in (int, float) and value <= 0 and key != "class_dropout_prob":
                raise UserError(f"{name}.{key} must be above 0, got {value}")


def preset_names() -> list[str]:
    """Returns the names of the presets in the package."""
    folder = resources.files("ldmae") / "presets"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def preset_text(name: str) -> str:
    """Returns the YAML text of a preset, whose first comment line says what it is."""
    return (resources.files("ldmae") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(preset: str | dict[str, Any], overrides: list[str] | None = None) -> Config:
    """Resolves a preset or a YAML file and dotted overrides to checked settings.

    Args:
        preset: the name of a preset, or the path of a YAML file, or what such a file holds. It may name the
            one it builds on as `base`: a preset, or a file beside it.
        overrides: `key=value` each, such as `diffusion.training.steps=2000`; `data=PATH` means
            `data.source=PATH`.

    Raises:
        UserError: an unknown preset or key (with the nearest valid one), a wrong type, an impossible
            combination.
    """
    layers = [*_layers(preset, ()), _override_layer(overrides or [])]
    for layer in layers:
        if layer.get("mixed_precision") is False:  # YAML reads a bare `no` as false
            layer["mixed_precision"] = "no"
        _check_keys(layer, Config, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), *layers)
        config = OmegaConf.to_object(merged)
    except UserError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        where = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{f'setting {where}' if where else 'settings'}: {reason}; see `ldmae run PRESET --dry-run` for "
            "all settings"
        ) from error
    assert isinstance(config, Config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved settings as YAML, which `load_config` reads."""
    write_text(path, yaml.safe_dump(_literal(as_dict(config)), sort_keys=False, allow_unicode=True))


def _literal(value: Any) -> Any:
    """Returns settings whose texts OmegaConf takes as they are: `${` would stand for another setting."""
    if isinstance(value, dict):
        return {key: _literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_literal(entry) for entry in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def as_dict(config: Any) -> dict[str, Any]:
    """Returns settings as plain nested types."""
    return dataclasses.asdict(config)


def _layers(preset: str | dict[str, Any], seen: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns the mappings of a preset, that which it is based on first."""
    name = "these settings" if isinstance(preset, dict) else preset
    if name in seen:
        raise UserError(f"presets are based on each other in a circle: {' -> '.join((*seen, name))}")
    layer = dict(preset) if isinstance(preset, dict) else _read_layer(preset)
    base = layer.pop("base", None)
    if isinstance(layer.get("data"), str):
        layer["data"] = {"source": layer["data"]}
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise UserError(f"{name}: base must be a preset or a YAML file, got {base!r}")
    beside = Path(name).parent / base
    return [*_layers(str(beside.resolve()) if beside.is_file() else base, (*seen, name)), layer]


def _read_layer(preset: str) -> dict[str, Any]:
    names = preset_names()
    try:
        if preset in names:
            text = preset_text(preset)
        elif Path(preset).suffix in (".yaml", ".yml") and Path(preset).is_file():
            text = Path(preset).read_text(encoding="utf-8")
        else:
            raise UserError(
                f"no preset or YAML file {preset!r}{nearest(preset, names)}. Presets: {', '.join(names)}"
            )
        layer = yaml.safe_load(text) or {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{preset} is not YAML: {error}") from error
    if not isinstance(layer, dict):
        raise UserError(f"{preset} must hold a mapping of settings, got {type(layer).__name__}")
    return layer


def _override_layer(overrides: list[str]) -> dict[str, Any]:
    for override in overrides:
        if "=" not in override:
            raise UserError(
                f"an override is key=value, got {override!r}; such as diffusion.training.steps=2000"
            )
    # A path may hold what OmegaConf would take for syntax, so names of paths are set apart.
    plain = [item for item in overrides if item.partition("=")[0] not in _PATHS]
    try:
        layer = OmegaConf.to_container(OmegaConf.from_dotlist(plain))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"cannot read the overrides {plain}: {str(error).splitlines()[0]}") from error
    assert isinstance(layer, dict)
    for item in overrides:
        key, _, value = item.partition("=")
        if key in _PATHS:
            group, name = _PATHS[key]
            settings: Any = layer.setdefault(group, {})
            if isinstance(settings, dict):  # what else it may be is refused with the other layers' slips
                settings[name] = None if group == "autoencoder" and value == "null" else _literal(value)
    return typing.cast(dict[str, Any], layer)


_PATHS = {
    "data": ("data", "source"),
    "data.source": ("data", "source"),
    "data.val": ("data", "val"),
    "autoencoder.source": ("autoencoder", "source"),
    "autoencoder.init": ("autoencoder", "init"),
}


def _check_keys(layer: dict[str, Any], settings: Any, prefix: str) -> None:
    """Raises a UserError for a key that the dataclass has not, naming the nearest that it has."""
    types = typing.get_type_hints(settings)
    for key, value in layer.items():
        if key not in types:
            unknown = f"{prefix}{key}"
            while isinstance(value, dict) and value:
                inner, value = next(iter(value.items()))
                unknown += f".{inner}"
            raise UserError(f"unknown setting {unknown}{_guess(unknown, str(key), prefix, types)}")
        if dataclasses.is_dataclass(types[key]):
            if not isinstance(value, dict):
                raise UserError(
                    f"setting {prefix}{key} is a group, got {value!r}; set one of its keys: "
                    + ", ".join(f"{prefix}{key}.{name}" for name in typing.get_type_hints(types[key]))
                )
            _check_keys(value, types[key], f"{prefix}{key}.")


def _guess(unknown: str, key: str, prefix: str, types: dict[str, Any]) -> str:
    """Returns what was meant: the same last name elsewhere, a slip in this group, or the likest of all."""
    everywhere = _all_keys(Config, "")
    same_name = [name for name in everywhere if name.split(".")[-1] == unknown.split(".")[-1]]
    here = closest(key, types)
    meant = (
        closest(unknown, same_name, cutoff=0) or (here and f"{prefix}{here}") or closest(unknown, everywhere)
    )
    return f"; did you mean {meant!r}?" if meant else "; see --dry-run for all settings"


def _all_keys(settings: Any, prefix: str) -> list[str]:
    keys = []
    for key, kind in typing.get_type_hints(settings).items():
        keys += _all_keys(kind, f"{prefix}{key}.") if dataclasses.is_dataclass(kind) else [f"{prefix}{key}"]
    return keys
