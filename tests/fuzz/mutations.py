"""Seeded damage: to bytes, to JSON-like values, to a file as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    2**31,
    10**15,
    10**400,
    0.5,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../..",
    "é\u0301",
    "\ud800",
    "a" * 300,
    "${seed}",
    "${oc.env:HOME}",
    [],
    [1],
    [[[]]],
    {},
    {"a": {"b": 1}},
)
"""Values where others are expected."""


def odd(random: Random) -> Any:
    """Returns a value that hardly any place expects; a deep one now and then."""
    if random.random() < 0.05:
        value: Any = "deep"
        for _ in range(random.choice((50, 150))):
            value = [value]
        return value
    return random.choice(ODD)


def damaged_value(value: Any, random: Random) -> Any:
    """Returns a JSON-like value with one place in it changed, renamed, removed or doubled."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        return _damaged_entry(value, key, random)
    if isinstance(value, list) and value and random.random() < 0.85:
        place = random.randrange(len(value))
        if random.random() < 0.2:
            return value[:place] + value[place + 1 :]
        return [*value[:place], damaged_value(value[place], random), *value[place + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.4:
        return value * random.choice((-1, 0, 3, 1000, 10**15))
    return odd(random)


def _damaged_entry(value: dict[str, Any], key: str, random: Random) -> dict[str, Any]:
    kind = random.random()
    if kind < 0.1:
        return {name: entry for name, entry in value.items() if name != key}
    if kind < 0.2:
        return {f"{name}_" if name == key else name: entry for name, entry in value.items()}
    return {**value, key: damaged_value(value[key], random)}


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """Returns bytes with some flipped, cut out, put in or cut off."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(len(data) + 1)
        kind = random.random()
        if kind < 0.5 and place < len(data):
            data[place] = random.choice((0, 255, data[place] ^ 1 << random.randrange(8)))
        elif kind < 0.65:
            data[place:place] = random.randbytes(random.choice((1, 4, 100)))
        elif kind < 0.8:
            del data[place : place + random.choice((1, 4, 100))]
        elif kind < 0.9:
            data[place : place + 4] = random.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        else:
            del data[place:]
    return bytes(data)


def damage_file(path: Path, random: Random) -> None:
    """Damages a file: what it holds (as JSON where it is), or what it is."""
    kind = random.random()
    if kind < 0.08:
        path.unlink()
        random.choice((path.mkdir, lambda: path.symlink_to("nowhere"), lambda: None))()
    elif kind < 0.12:
        path.write_bytes(b"")
    elif kind < 0.16:
        path.write_bytes(random.randbytes(50))
    elif path.suffix == ".json" and kind < 0.85:
        value = json.loads(path.read_text())
        for _ in range(random.choice((1, 1, 3))):
            value = damaged_value(value, random)
        text = json.dumps(value)
        path.write_text(text, errors="surrogatepass")
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), random))
