"""Writes the reference pages that follow from the code: command line, settings, presets, public names.

MkDocs calls `on_page_markdown` for each page; a line `<!-- generated: NAME -->` in a page is replaced by what
the function NAME below returns. So no key, option or preset is ever described by hand.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import inspect
import io
import json
import re
import runpy
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import typer
from nbconvert import MarkdownExporter

import ldmae
from ldmae.cli.main import app
from ldmae.config import Config, preset_names, preset_text
from ldmae.config.base import group_of

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills a page's marks (MkDocs' event of this name)."""
    return MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)


# ---- command line


def command_line() -> str:
    """Returns a section a verb: what it does, its arguments and options, examples."""
    verbs = sorted(_verbs(typer.main.get_command(app), "ldmae"), key=lambda verb: _place(verb[0]))
    return "\n".join(_verb(path, command) for path, command in verbs)


ORDER = (
    *("run", "train", "encode", "sample", "evaluate", "evaluate-samples", "compare"),
    *("report", "publish", "app", "convert", "presets", "schema"),
)


def _place(path: str) -> tuple[int, str]:
    verb = path.split()[1]
    return (ORDER.index(verb) if verb in ORDER else len(ORDER), path)


def _verbs(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, child in node.commands.items():
        if hasattr(child, "commands"):
            yield from _verbs(child, f"{path} {name}")
        elif not child.hidden:
            yield f"{path} {name}", child


def _verb(path: str, command: Any) -> str:
    arguments, options = parameters(command)
    usage = [path, *(a.shown for a in arguments), *(["[OPTIONS]"] if options else [])]
    lines = [
        f"## {path}",
        "",
        f"```text\n{' '.join(usage)}\n```",
        "",
        inspect.cleandoc(command.help or ""),
        "",
    ]
    if arguments:
        lines += ["| argument | meaning |", "| --- | --- |"]
        lines += [f"| `{a.shown}` | {a.help} |" for a in arguments] + [""]
    if options:
        told = any(option.default for option in options)
        lines += ["| option | meaning |", "| --- | --- |"]
        if told:
            lines[-2:] = ["| option | meaning | default |", "| --- | --- | --- |"]
        lines += [f"| `{o.shown}` | {o.help} |" + (f" {o.default} |" if told else "") for o in options] + [""]
    found = [line for line in (command.epilog or "").split("\n\n") if line.startswith("ldmae")]
    if found:
        lines += ["```bash", *found, "```", ""]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An argument or option of a verb, as it is shown."""

    shown: str
    help: str
    default: str


def parameters(command: Any) -> tuple[list[Parameter], list[Parameter]]:
    """Returns the arguments and the options of a verb, from its function's annotations."""
    function = inspect.unwrap(command.callback)
    hints = typing.get_type_hints(function, include_extras=True)
    flags = {parameter.name: parameter.opts for parameter in command.params}
    arguments, options = [], []
    for name, parameter in inspect.signature(function).parameters.items():
        hint, default = hints[name], parameter.default
        while not hasattr(hint, "__metadata__"):  # Optional[Annotated[…]]: a default of None adds it
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        info = hint.__metadata__[0]
        kinds = {part for part in typing.get_args(hint.__origin__) if part is not type(None)} or {
            hint.__origin__
        }
        kind = next(iter(kinds))
        many = typing.get_origin(kind) is list or kind is list
        if isinstance(info, typer.models.ArgumentInfo):
            shown = name.upper() if default is inspect.Parameter.empty else f"[{name.upper()}]"
            arguments.append(Parameter(shown + ("…" if many else ""), _cell(info.help), ""))
        else:
            flag = ", ".join(flags[name])
            value = "" if kind is bool else f" {info.metavar or _VALUES.get(_plain(kind), 'TEXT')}"
            told = "" if default in (None, False, inspect.Parameter.empty) else f"`{default}`"
            options.append(Parameter(flag + value, _cell(info.help), told))
    return arguments, options


_VALUES = {"int": "NUMBER", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}


def _plain(kind: Any) -> str:
    inner = typing.get_args(kind)
    return getattr(inner[0] if inner else kind, "__name__", "str")


def _cell(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").replace("|", r"\|").strip()


# ---- settings


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key that a preset, a YAML file or the command line can set."""

    key: str
    kind: str
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings that stand together, with what they are about."""

    key: str
    meaning: str
    settings: list[Setting]


def settings() -> str:
    """Returns a section a group of settings, a row a key."""
    lines = []
    for group in groups():
        depth = 2 if "." not in group.key else 3
        short = group.key.partition(".")[2]
        label = f" {{ data-toc-label='{short}' }}" if short else ""
        lines += [f"{'#' * depth} {group.key or 'The whole run'}{label}", "", group.meaning, ""]
        if group.settings:
            lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
            for setting in group.settings:
                cells = (f"`{setting.key}`", f"`{setting.kind}`", f"`{setting.default}`", setting.meaning)
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def groups(kind: Any = Config, default: Any = None, key: str = "", meaning: str = "") -> list[Group]:
    """Returns settings as groups: their own keys, then those of the groups in them."""
    default = Config() if default is None else default
    own, inner = [], []
    for name, field in kind.model_fields.items():
        path, value = f"{key}.{name}" if key else name, getattr(default, name)
        group = group_of(field)
        if group is not None:
            inner += groups(group, value, path, _cell(field.description))
        else:
            own.append(Setting(path, _type(field.annotation), _value(value), _cell(field.description)))
    return [Group(key, meaning or "Settings of the whole run.", own), *inner]


def _type(hint: Any) -> str:
    parts, kind = typing.get_args(hint), typing.get_origin(hint)
    if kind is typing.Annotated:
        return _type(parts[0])
    if kind is typing.Literal:
        return ", ".join(parts)
    if kind in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in parts)
    if kind in (list, dict):
        return f"{kind.__name__} of {_type(parts[-1])}"
    return getattr(hint, "__name__", "any")


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    return str(value) if value != "" else '""'


# ---- presets


def presets() -> str:
    """Returns a table of the presets, then each with its comments and its settings."""
    lines = ["| preset | what |", "| --- | --- |"]
    for name in preset_names():
        lines.append(f"| [`{name}`](#{name}) | {_cell(_head(name)[0])} |")
    for name in preset_names():
        head, body = _head(name), preset_text(name)
        lines += ["", f"## {name}", "", _cell(head[0]), ""]
        lines += [*_paragraphs(head[1:]), '??? abstract "All that it sets"', ""]
        text = "\n".join(line for line in body.splitlines()[len(head) :])
        lines += [textwrap.indent(f"```yaml\n{text}\n```", "    "), ""]
    return "\n".join(lines)


def _head(name: str) -> list[str]:
    """Returns the comment lines that a preset begins with, without their marks."""
    head = []
    for line in preset_text(name).splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return head


def _paragraphs(head: list[str]) -> list[str]:
    """Returns comment lines as paragraphs, each begun by a word and a colon or after an empty line."""
    paragraphs: list[list[str]] = [[]]
    for line in head:
        if not line.strip() or re.match(r"[A-Z]\w+: ", line):
            paragraphs.append([])
        if line.startswith("Command: "):
            line = f"Command: `{line.removeprefix('Command: ')}`."
        paragraphs[-1] += [line.strip()] if line.strip() else []
    texts = [" ".join(lines) for lines in paragraphs if lines]
    return [line for text in texts for line in (re.sub(r"^([A-Z]\w+): ", r"**\1**: ", text), "")]


# ---- public names


def public_names() -> str:
    """Returns mkdocstrings' mark for everything in `ldmae.__all__`."""
    names = [name for name in ldmae.__all__ if name != "__version__"]
    return "\n\n".join(f"::: {_home(getattr(ldmae, name), name)}" for name in names)


def conversion_names() -> str:
    """Returns mkdocstrings' mark for everything in `ldmae.conversion.__all__`, and the way back."""
    names = ldmae.conversion.__all__
    return "\n\n".join(f"::: {_home(getattr(ldmae.conversion, name), name)}" for name in names)


def _home(thing: Any, name: str) -> str:
    return f"{thing.__module__}.{name}"


# ---- costs


def costs() -> str:
    """Returns the table that `examples/plan_costs.py` prints for the presets of full size on 8 devices."""
    example = ROOT / "examples" / "plan_costs.py"
    main = runpy.run_path(str(example))["main"]
    presets = ["imagenet-256", "imagenet-256-official", "celebahq-256", "celebahq-256-official"]
    with contextlib.redirect_stdout(io.StringIO()):
        table = "\n".join(main([*presets, "--devices", "8", "--teraflops", "100"]))
    return table.replace(" h |", "\u00a0h |").replace(" GiB |", "\u00a0GiB |")


# ---- the notebook


def tour() -> str:
    """Returns `examples/tour.ipynb` with its outputs, images within the page, without its title."""
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    for name, content in resources["outputs"].items():
        data = base64.b64encode(content).decode()
        text = text.replace(f"]({name})", f"](data:image/png;base64,{data})")
    return re.sub(r"^\s*# .+\n", "", text)


# ---- the shipped model


def shipped_metrics() -> str:
    """Returns a table of what was measured of the shipped models."""
    found = {
        name: json.loads((ldmae.pretrained(name) / "figures.json").read_text(encoding="utf-8"))
        for name in ("emoji-three", "emoji")
    }
    lines = [f"| measurement | metric | {' | '.join(found)} |", "| --- | --- |" + " --- |" * len(found)]
    for key in sorted(set().union(*found.values())):
        measurement, name = key.split("/", 1)
        if measurement in ("reconstruction", "samples", "copies"):
            cells = [f"{values[key]:.4g}" if key in values else "" for values in found.values()]
            lines.append(f"| {measurement} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


GENERATED: dict[str, Callable[[], str]] = {
    "command_line": command_line,
    "settings": settings,
    "presets": presets,
    "public_names": public_names,
    "conversion_names": conversion_names,
    "costs": costs,
    "shipped_metrics": shipped_metrics,
    "tour": tour,
}
