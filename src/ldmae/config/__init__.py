"""The settings of a run: what can be set, and how presets, YAML files and overrides are read."""

from ldmae.config.base import as_dict, plain
from ldmae.config.load import (
    check_overrides,
    json_schema,
    load_config,
    preset_names,
    preset_text,
    save_config,
    to_yaml,
    typed_settings,
)
from ldmae.config.schema import Config

__all__ = [
    "Config",
    "as_dict",
    "check_overrides",
    "json_schema",
    "load_config",
    "plain",
    "preset_names",
    "preset_text",
    "save_config",
    "to_yaml",
    "typed_settings",
]
