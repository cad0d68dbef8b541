"""Components by name: what a setting such as `sampling.solver` may name, and where it is.

A component inside the package is one file and one line here. One's own needs no line: it is named as
`package.module:Name`. Names are resolved when a component is needed, so that settings load without torch.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import PydanticUserError, ValidationError, create_model
from pydantic_core import PydanticCustomError, core_schema

from ldmae.config.base import Settings, explain
from ldmae.core.errors import UserError, reason_of
from ldmae.core.imports import import_object, is_import_path

AUTOENCODERS = {
    "vmae": "ldmae.autoencoders.vmae_training:VMAE",
    **dict.fromkeys(("ae", "dae", "vae", "sd-vae"), "ldmae.autoencoders.baseline_training:Baseline"),
    "decoder": "ldmae.autoencoders.decoder_training:DecoderTuning",
}
"""Autoencoders that are trained: classes whose `trainings` says how. One's own is the model's class too."""
SOLVERS = {
    "euler": "diffusers:FlowMatchEulerDiscreteScheduler",
    "heun": "diffusers:FlowMatchHeunDiscreteScheduler",
}
"""Schedulers on the path of flow matching; one's own extends the first."""
DIFFUSION = {"lightningdit": "ldmae.diffusion.lightningdit:LightningDiTTransformer2DModel"}
"""Diffusion models: classes of diffusers models that predict velocities."""
SOURCES = {
    "emoji": "ldmae.images.builtin:EmojiSource",
    "digits": "ldmae.images.builtin:DigitsSource",
    "photos": "ldmae.images.builtin:PhotoSource",
}
"""Sets of images: what is called without arguments and gives an `ImageSource`."""


def resolve(known: Mapping[str, str], name: str) -> Any:
    """Imports a component by its name in a registry, or by `package.module:Name`.

    Raises:
        UserError: there is no such module or name, or importing it failed.
    """
    return import_object(known.get(name, name))


def own_settings(component: Any, options: dict[str, Any], prefix: str, given: Collection[str]) -> Settings:
    """Returns the settings of a user's own component, checked.

    Args:
        component: a class with its settings as `Config`, or else those that its constructor takes.
        options: what is set.
        prefix: the dotted name of the options, for messages.
        given: the constructor's arguments that the run gives.

    Raises:
        UserError: an unknown option, or a wrong value.
    """
    kind = getattr(component, "Config", None)
    if kind is None:
        try:
            kind = _settings_of_constructor(component, given)
        except (PydanticUserError, NameError, TypeError, ValueError) as error:
            raise UserError(
                f"the arguments of {component.__name__} can't be settings ({reason_of(error)}); give it "
                "a class `Config` that extends ldmae.config.base.Settings"
            ) from error
    try:
        return kind.model_validate(_over(kind, options))
    except ValidationError as error:
        raise UserError(explain(error.errors(), kind, prefix)) from error


def _over(kind: type[Settings], options: dict[str, Any], given: Settings | None = None) -> dict[str, Any]:
    """Returns options, in which what is not set of a group is as in `given`, or has its defaults.

    A group is a setting whose type is a single class of settings.
    """
    merged = dict(options)
    for name, each in kind.model_fields.items():
        group, some = each.default if given is None else getattr(given, name), options.get(name)
        if isinstance(group, Settings) and type(group) is each.annotation and isinstance(some, dict):
            merged[name] = {**dict(group), **_over(type(group), some, group)}
    return merged


def _settings_of_constructor(component: Any, given: Collection[str]) -> type[Settings]:
    types = typing.get_type_hints(component.__init__)
    fields: dict[str, Any] = {
        name: (types.get(name, Any), ... if argument.default is argument.empty else argument.default)
        for name, argument in inspect.signature(component).parameters.items()
        if name not in given and argument.kind is not argument.VAR_KEYWORD
    }
    return create_model(component.__name__, __base__=Settings, **fields)


@dataclass(frozen=True)
class OneOf:
    """Annotates a setting that names a component of a registry, or one's own where that may be."""

    known: Collection[str]
    own: bool = True

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Checks the name; nothing is imported."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Returns what editors complete."""
        own = [{"type": "string", "pattern": r"^[\w.]+:[\w.]+$"}] if self.own else []
        return {"anyOf": [{"enum": [*self.known]}, *own]}

    def _check(self, name: str) -> str:
        if name not in self.known and not (self.own and is_import_path(name)):
            own = ["package.module:Name"] if self.own else []
            expected = ", ".join(f"'{known}'" for known in (*self.known, *own))
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return name
