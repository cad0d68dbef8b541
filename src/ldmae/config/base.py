"""What all settings share: frozen pydantic models, kinds of numbers, and errors that say what to do."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import Self

from ldmae.core.errors import UserError, closest, nearest


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # which is a number to Python
        raise PydanticCustomError("bool_as_number", "Input should be a number")
    return value


def _rising(pair: list[Any]) -> list[Any]:
    if pair[0] > pair[1]:
        raise PydanticCustomError("falling_pair", "Input should be [smallest, largest]")
    return pair


NUMBER = BeforeValidator(_no_bool)
Count = Annotated[int, Field(ge=1, le=10**9), NUMBER]
"""Of steps or images: more than anybody trains, and far from what a 64-bit number holds."""
CountOrZero = Annotated[int, Field(ge=0, le=10**9), NUMBER]
Batch = Annotated[int, Field(ge=1, le=10**6), NUMBER]
Processes = Annotated[int, Field(ge=0, le=1024), NUMBER]
Pixels = Annotated[int, Field(ge=1, le=16_384), NUMBER]
"""Along a side."""
Cells = Annotated[int, Field(ge=1, le=1024), NUMBER]
"""Along a side."""
Channels = Annotated[int, Field(ge=1, le=4096), NUMBER]
Width = Annotated[int, Field(ge=1, le=65_536), NUMBER]
Layers = Annotated[int, Field(ge=1, le=1000), NUMBER]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), NUMBER]
"""What torch takes."""
Weight = Annotated[float, Field(ge=0, le=1e6), NUMBER]
Share = Annotated[float, Field(ge=0, le=1), NUMBER]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1), NUMBER]
Factor = Annotated[float, Field(gt=0, le=64), NUMBER]
Noise = Annotated[float, Field(ge=0, le=100), NUMBER]
_T = TypeVar("_T")
Pair = Annotated[list[_T], Field(min_length=2, max_length=2)]
Range = Annotated[list[_T], Field(min_length=2, max_length=2), AfterValidator(_rising)]
Guidance = Annotated[float, Field(ge=-1e4, le=1e4), NUMBER]


class Settings(BaseModel):
    """A group of settings: frozen, checked when it is made, each field documented below it.

    Raises:
        UserError: an unknown field, or a value of the wrong type or outside its bounds.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            group = type(self).__name__.removesuffix("Config").lower()
            raise UserError(explain(error.errors(), type(self), group)) from error

    # pydantic then makes the settings inside others without it, and reports their errors with the whole path
    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, checked as any settings are."""
        return type(self)(**{**dict(self), **changes})

    @classmethod
    def check(cls, **arguments: Any) -> None:
        """Checks some of a model's arguments, which have the settings' names; no value is converted.

        Raises:
            UserError: as for the settings, with the argument's name.
        """
        try:
            cls.model_validate(arguments, strict=True)
        except ValidationError as error:
            raise UserError(explain(error.errors(), cls)) from error


def as_dict(settings: Settings) -> dict[str, Any]:
    """Returns settings as plain nested types."""
    return settings.model_dump()


def plain(settings: Any) -> dict[str, Any]:
    """Returns settings as JSON holds them, so that they compare equal after a write and a read."""
    return json.loads(json.dumps(settings if isinstance(settings, dict) else as_dict(settings)))


def group_of(field: Any) -> type[Settings] | None:
    """Returns the settings class of a field that is a group; None for a value."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)


_BOUNDS = {
    "greater_than_equal": "at least {ge:,.10g}",
    "greater_than": "above {gt:,.10g}",
    "less_than_equal": "at most {le:,.10g}",
    "less_than": "below {lt:,.10g}",
}


def explain(errors: list[ErrorDetails], kind: type[Settings], prefix: str = "") -> str:
    """Returns what is wrong with settings: for each what was got, what was expected and the next move."""
    found = list(dict.fromkeys(_explain(error, kind, prefix) for error in errors))
    more = [f"(and {len(found) - 3} more)"] if len(found) > 3 else []
    return "\n".join([*found[:3], *more])


def _explain(error: ErrorDetails, kind: type[Settings], prefix: str) -> str:
    problem, value, context = error["type"], error["input"], error.get("ctx", {})
    field, key = _locate(error["loc"], kind, prefix)
    if problem == "extra_forbidden":
        return _unknown(key, value, kind, prefix)
    if problem == "value_error":  # of several fields, the first of which the message begins with
        return f"{key}.{context['error']}" if key else str(context["error"])
    expected, hint = re.sub(r"^\w+ should ", "", error["msg"]), ""
    if problem in _BOUNDS:
        expected = f"be {_BOUNDS[problem].format(**context)}"
    elif problem == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        expected, hint = f"be {', '.join(choices[:-1])} or {choices[-1]}", nearest(str(value), choices)
    if problem != "literal_error" and field is not None and field.description:
        hint = f". {' '.join(field.description.split())}"
    verb = ":" if expected == error["msg"] else " must"
    return f"{key}{verb} {expected}, got {_short(value)}{hint}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 100 else f"{text[:100]}…"


def _locate(path: tuple[int | str, ...], kind: type[Settings], prefix: str) -> tuple[Any, str]:
    """Returns the innermost known setting on a path, and the path as users write it."""
    field: Any = None
    group: type[Settings] | None = kind
    key = prefix
    for part in path:
        if part == "[key]":  # of a mapping, which the part before it names
            continue
        if group is not None:
            field = group.model_fields.get(str(part))
            group = None if field is None else group_of(field)
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    return field, key


def _unknown(key: str, value: Any, kind: type[Settings], prefix: str) -> str:
    """Says that there is no such setting, and which was meant."""
    group, _, name = key.rpartition(".")
    while isinstance(value, dict) and value:
        inner, value = next(iter(value.items()))
        key += f".{inner}"
    everywhere = _setting_names(kind, prefix)
    start = f"{group}." if group else ""
    here = {entry.removeprefix(start).partition(".")[0] for entry in everywhere if entry.startswith(start)}
    same_name = [entry for entry in everywhere if entry.split(".")[-1] == key.split(".")[-1]]
    near = closest(name, here)
    meant = closest(key, same_name, cutoff=0) or (near and f"{start}{near}") or closest(key, everywhere)
    option = f"--{key.replace('_', '-')}"
    if option in ("--out", "--restart", "--dry-run", "--only") and not group:
        return f"{key} is no setting; {option} is an option, of the commands whose --help has it"
    return f"unknown setting {key}" + (
        f"; did you mean {meant!r}?" if meant else "; see `ldmae run PRESET --dry-run` for all settings"
    )


def _setting_names(kind: type[Settings], prefix: str = "") -> list[str]:
    """Returns the dotted names of all settings in a group, without those of groups."""
    names = []
    for name, field in kind.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        group = group_of(field)
        names += [key] if group is None else _setting_names(group, key)
    return names
