"""Reads the settings of a run: presets, YAML files, dotted overrides."""

from __future__ import annotations

import contextlib
import typing
import warnings
from collections.abc import Iterator
from functools import cache, reduce
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from ldmae.config.autoencoder import KINDS, AutoencoderConfig
from ldmae.config.base import Settings, as_dict, explain, group_of
from ldmae.config.baselines import baseline_objective
from ldmae.config.schema import Config
from ldmae.config.yaml import YAML_FAILURES, check_plain, read_yaml
from ldmae.core.errors import UserError, nearest, reason_of
from ldmae.core.files import write_text

_CHEAPEST_FIRST = (
    "smoke",
    "finetune",
    "digits",
    "emoji",
    "quick",
    "emoji-long",
    "emoji-three",
    "compare-emoji",
    "compare-photos",
)
"""The presets for CPUs, in the order in which they are listed; others follow by name."""


def preset_names() -> list[str]:
    """Returns the names of the presets in the package, cheapest first."""
    folder = resources.files("ldmae.config") / "presets"
    names = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    order = {name: place for place, name in enumerate(_CHEAPEST_FIRST)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def preset_text(name: str) -> str:
    """Returns the YAML text of a preset, whose first comment line says what it is."""
    return (resources.files("ldmae.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(preset: str | dict[str, Any], overrides: list[str] | None = None) -> Config:
    """Resolves a preset or a YAML file and dotted overrides to checked settings.

    Args:
        preset: the name of a preset, or the path of a YAML file, or what such a file holds. It may name the
            one it builds on as `base`: a preset, or a file beside it.
        overrides: `key=value` each, such as `diffusion.training.steps=2000`; `data=PATH` means
            `data.source=PATH`, and `against=PATH` means `data.against=PATH`.

    Raises:
        UserError: an unknown preset or key (with the nearest valid one), a wrong type, an impossible
            combination.
    """
    layers = [*_layers(preset, ()), _override_layer(overrides or [])]
    values = _merge(layers)
    try:
        auto = AutoencoderConfig.model_validate(values["autoencoder"])
        if auto.kind in KINDS:  # its objective, where the layers say nothing else
            objective = as_dict(baseline_objective(auto.kind, auto.patch_size))
            values = _merge([{"autoencoder": {"baseline": {"objective": objective}}}, *layers])
        return Config.model_validate(values)
    except ValidationError:
        pass  # told of all settings together
    return Config(**values)


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of what a YAML file of settings may hold."""
    schema = Config.model_json_schema()
    fields = schema["properties"]
    base = {"type": "string", "description": "The preset, or the file beside this one, that this builds on."}
    fields["data"]["anyOf"] = [{"type": "string"}, {"$ref": fields["data"].pop("$ref")}]
    schema["properties"] = {"base": base, **fields}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def typed_settings(preset: str | None, overrides: list[str] | None = None) -> dict[str, Any]:
    """Returns the settings that a user wrote: in a YAML file of theirs, which may be based on others, and as
    overrides.

    Raises:
        UserError: as `load_config`.
    """
    layer = {} if preset is None or preset in preset_names() else _read_layer(preset)
    own = {key: value for key, value in layer.items() if key != "base"}
    return _joined(own, _override_layer(overrides or []))


def check_overrides(overrides: list[str]) -> None:
    """Checks dotted overrides by themselves, before it is known which settings they change.

    Raises:
        UserError: an unknown key (with the nearest valid one), or a value of the wrong type.
    """
    values = _merge([_override_layer(overrides)])
    try:
        Config.model_validate(values)
    except ValidationError as error:
        slips = [slip for slip in error.errors() if slip["type"] != "value_error"]  # one of several settings
        if slips:
            raise UserError(explain(slips, Config)) from error


def _merge(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns all settings, defaults first, with references to other settings resolved."""
    with _setting_errors():
        check_plain(layers)
        for layer in layers:
            _rename(layer)
            _require_groups(layer, Config)
        # OmegaConf's own merge checks and copies every node at every layer, which takes several times as long
        joined = OmegaConf.create(reduce(_joined, layers, _defaults()))
        return typing.cast(dict[str, Any], OmegaConf.to_container(joined, resolve=True))


@cache
def _defaults() -> dict[str, Any]:
    return _literal(as_dict(Config()))


def _joined(below: Any, above: Any) -> Any:
    """Returns two layers as one; where both set a value, the upper one's holds."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {name: _joined(below.get(name), value) for name, value in above.items()}


_RENAMED = {
    ("optimizer", "adversary_learning_rate"): "discriminator_learning_rate",
    ("optimizer", "adversary_betas"): "discriminator_betas",
}
"""Settings of version 0.1 by group and name, which work until version 0.3: their names now."""


def _rename(layer: dict[str, Any], path: tuple[str, ...] = ("",)) -> None:
    """Gives settings their present names, with a warning."""
    for name, value in [*layer.items()]:
        if isinstance(value, dict):
            _rename(value, (*path, name))
        now = _RENAMED.get((path[-1], name))
        if now is not None:
            was, key = ".".join((*path[1:], name)), ".".join((*path[1:], now))
            warnings.warn(
                f"setting {was} is now {key}; the old name works until 0.3", FutureWarning, stacklevel=2
            )
            layer.setdefault(now, layer.pop(name))


def _require_groups(layer: dict[str, Any], kind: type[Settings], prefix: str = "") -> None:
    """Raises a UserError for a value in place of a group, which a later layer would hide."""
    for name, field in kind.model_fields.items():
        group = group_of(field)
        if group is None or name not in layer:
            continue
        if not isinstance(layer[name], dict):
            keys = ", ".join(f"{prefix}{name}.{key}" for key in group.model_fields)
            raise UserError(
                f"setting {prefix}{name} is a group, got {layer[name]!r}; set one of its keys: {keys}"
            )
        _require_groups(layer[name], group, f"{prefix}{name}.")


@contextlib.contextmanager
def _setting_errors() -> Iterator[None]:
    """Turns OmegaConf's errors, and those of impossible values, into a UserError that names the setting."""
    try:
        yield
    except UserError:
        raise
    except (OmegaConfBaseException, *YAML_FAILURES) as error:
        where = getattr(error, "full_key", None)
        raise UserError(
            f"{f'setting {where}' if where else 'settings'}: {reason_of(error).rstrip('.')}; see `ldmae run "
            "PRESET --dry-run` for all settings"
        ) from error


def to_yaml(config: Config) -> str:
    """Returns the resolved settings as YAML, which `load_config` reads."""
    return yaml.safe_dump(_literal(as_dict(config)), sort_keys=False, allow_unicode=True)


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved settings as a YAML file."""
    write_text(path, to_yaml(config))


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
        raise UserError(f"cannot read the overrides {plain}: {reason_of(error)}") from error
    assert isinstance(layer, dict)
    for item in overrides:
        key, _, value = item.partition("=")
        if key in _PATHS:
            group, name = _PATHS[key]
            settings: Any = layer.setdefault(group, {})
            if isinstance(settings, dict):  # what else it may be is refused with the other layers' slips
                optional = group != "data" or name == "against"
                settings[name] = None if optional and value == "null" else _literal(value)
    return typing.cast(dict[str, Any], layer)


_PATHS = {
    "data": ("data", "source"),
    "data.source": ("data", "source"),
    "data.val": ("data", "val"),
    "data.against": ("data", "against"),
    "against": ("data", "against"),
    "autoencoder.source": ("autoencoder", "source"),
    "autoencoder.init": ("autoencoder", "init"),
    "diffusion.init": ("diffusion", "init"),
    "evaluation.masks": ("evaluation", "masks"),
}
