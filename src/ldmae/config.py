"""Reads the settings of a run: presets, YAML files, dotted overrides."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldmae.autoencoders.settings import KINDS, baseline_objective
from ldmae.core.errors import UserError, closest, nearest
from ldmae.core.files import write_text
from ldmae.core.yaml import YAML_FAILURES, check_plain, read_yaml
from ldmae.settings import Config, as_dict

CHEAPEST_FIRST = ("smoke", "emoji", "quick", "digits", "emoji-long", "compare-emoji", "compare-photos")
"""The presets for CPUs, in the order in which they are listed; others follow by name."""


def preset_names() -> list[str]:
    """Returns the names of the presets in the package, cheapest first."""
    folder = resources.files("ldmae") / "presets"
    names = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    order = {name: place for place, name in enumerate(CHEAPEST_FIRST)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


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
    with _setting_errors():
        merged = _merge(layers)
        kind = merged.autoencoder.kind
        if kind in KINDS:  # its objective, where the layers say nothing else
            auto = merged.autoencoder
            vit = auto.baseline.network == "vit"
            factor = auto.model.patch_size if vit else auto.baseline.model.factor
            objective = as_dict(baseline_objective(kind, factor))
            defaults = {"autoencoder": {"baseline": {"objective": objective}}}
            merged = _merge([defaults, *layers])
        config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config


def check_overrides(overrides: list[str]) -> None:
    """Checks dotted overrides by themselves, before it is known which settings they change.

    Raises:
        UserError: an unknown key (with the nearest valid one), or a value of the wrong type.
    """
    with _setting_errors():
        _merge([_override_layer(overrides)])


def _merge(layers: list[dict[str, Any]]) -> Any:
    check_plain(layers)
    for layer in layers:
        if layer.get("mixed_precision") is False:  # YAML reads a bare `no` as false
            layer["mixed_precision"] = "no"
        _check_keys(layer, Config, "")
    return OmegaConf.merge(_defaults(), *layers)  # which copies the first


@cache  # half of the time that settings take
def _defaults() -> Any:
    return OmegaConf.structured(Config)


@contextlib.contextmanager
def _setting_errors() -> Iterator[None]:
    """Turns OmegaConf's errors, and those of impossible values, into a UserError that names the setting."""
    try:
        yield
    except UserError:
        raise
    except (OmegaConfBaseException, *YAML_FAILURES) as error:
        where = getattr(error, "full_key", None)
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{f'setting {where}' if where else 'settings'}: {reason}; see `ldmae run PRESET --dry-run` for "
            "all settings"
        ) from error


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
    return [*_layers(str(beside.resolve()) if _is_file(beside) else base, (*seen, name)), layer]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name that is too long
        return False


def _read_layer(preset: str) -> dict[str, Any]:
    names = preset_names()
    try:
        if preset in names:
            text = preset_text(preset)
        elif Path(preset).suffix in (".yaml", ".yml") and _is_file(Path(preset)):
            text = Path(preset).read_text(encoding="utf-8")
        else:
            raise UserError(
                f"no preset or YAML file {preset!r}{nearest(preset, names)}; presets: {', '.join(names)}"
            )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{preset} is not YAML: {error}") from error
    layer = read_yaml(text, preset) or {}
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
    for item in plain:
        read_yaml(item.partition("=")[2], f"the override {item[:100]!r}")
    try:
        layer = OmegaConf.to_container(OmegaConf.from_dotlist(plain))
    except (OmegaConfBaseException, yaml.YAMLError, *YAML_FAILURES) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read the overrides {plain}: {reason}") from error
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
