"""YAML from anybody: read within bounds, and of plain values alone.

A few lines of YAML may stand for gigabytes (anchors in anchors), hold themselves, or name tags that make the
parser fail in ways of its own.
"""

from __future__ import annotations

from typing import Any

import yaml

from ldmae.core.errors import UserError, reason_of

YAML_FAILURES = (ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError)
"""What PyYAML raises beside YAMLError, such as for `!!int x` and `!!timestamp x`."""

_MOST_CHARACTERS = 2_000_000
_MOST_NODES = 200_000
"""Of values, each counted as often as anchors repeat it."""
_MOST_DEPTH = 40
_MOST_REFERENCES = 20
"""To other settings; each may name one that holds two again."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(text: str, name: str) -> Any:
    """Returns what a YAML text holds; an error message calls it `name`.

    Raises:
        UserError: it is not YAML, or larger, deeper or more tangled than settings are.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{name} has {len(text):,} characters, settings have {_MOST_CHARACTERS:,} at most")
    try:
        _check_size(text, name)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            _refuse_twice(node, name)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except UserError:
        raise
    except (yaml.YAMLError, *YAML_FAILURES) as error:
        raise UserError(f"{name} is not YAML: {reason_of(error)}") from error


def _refuse_twice(node: Any, name: str) -> None:
    """Raises for a key that a block has twice, of which YAML keeps the last alone."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise UserError(f"{name} sets {twice[0]!r} twice, and the first would be lost; join the two")
        for _, value in node.value:
            _refuse_twice(value, name)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twice(value, name)


def _check_size(text: str, name: str) -> None:
    sizes: dict[str, int] = {}  # of what anchors stand for
    open_: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_):
                raise UserError(f"{name}: the anchor &{event.anchor} holds itself; write its values out")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, count - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if count > _MOST_NODES or len(open_) > _MOST_DEPTH:
            raise UserError(
                f"{name} holds more than {_MOST_NODES:,} values, or more than {_MOST_DEPTH} lists in "
                "one another; settings have fewer"
            )


def check_plain(layers: Any) -> None:
    """Checks the values of settings, before they are merged and resolved.

    A setting may refer to another, as `${image_size}`; nothing else is resolved, such as the environment.

    Raises:
        UserError: a text that is none (a lone surrogate), a number of hundreds of digits, a reference to
            something else than a setting, or too many references.
    """
    references = 0

    def check(value: Any, key: str) -> None:
        nonlocal references
        if isinstance(value, dict):
            for inner, entry in value.items():
                check(inner, key)
                check(entry, f"{key}.{inner}" if key else str(inner))
        elif isinstance(value, list | tuple | set):
            for entry in value:
                check(entry, key)
        elif isinstance(value, int) and value.bit_length() > 64:
            raise UserError(f"setting {key} is a number of {value.bit_length()} bits; at most 64 are allowed")
        elif isinstance(value, str):
            references += _references(value, key)
            if references > _MOST_REFERENCES:
                raise UserError(
                    f"settings refer to others more than {_MOST_REFERENCES} times; write them out"
                )

    check(layers, "")


def _references(text: str, key: str) -> int:
    """Returns how often a text refers to another setting."""
    if not text.isprintable():  # among what is not are lone surrogates
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"setting {key} holds characters that are not text: {text!r}; rename what it names"
            ) from error
    depth = count = 0
    for place, sign in enumerate(text):
        if text.startswith("${", place) and text[place - 1 : place] != "\\":
            depth, count = depth + 1, count + 1
        elif sign == "}":
            depth = max(0, depth - 1)
        elif sign == ":" and depth:
            raise UserError(
                f"setting {key}={text[:100]!r}: settings can refer to other settings only, as "
                "${image_size}; write the value out"
            )
    if count > 2:
        raise UserError(f"setting {key}={text[:100]!r} refers to more than two others; write it out")
    return count
