"""Pieces of the page's HTML, filled into `markup.html.j2`. Pictures lie inside, so nothing is requested."""

# H W picture

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ldmae.app.generate import Generated, Progress
from ldmae.report.formatting import format_seconds
from ldmae.report.grids import data_uri, encode_picture
from ldmae.report.pages import load_template

_CARD = 176
"""Pixels along a side that pictures are shown at, about: smaller ones are enlarged by whole factors."""
_SMALL = 100
"""The same, of the pictures in a row."""
_THUMBNAIL = 48
"""Pixels along a side of pictures to pick from."""
_LARGEST = 256 / _CARD
"""How much wider a picture may be shown."""
_BUDGET = 400_000
"""Bytes of a shown picture at most."""

_pieces: Any = load_template("ldmae.app", "markup.html.j2").module
note, label, waiting, bar = _pieces.note, _pieces.label, _pieces.waiting, _pieces.bar
header, footer, framed, missing_card = _pieces.header, _pieces.footer, _pieces.framed, _pieces.missing_card
"""What is the template's alone; a note is `plain`, `good` or `bad`."""


@dataclass(frozen=True)
class Card:
    """A picture with its title, and lines below it."""

    picture: np.ndarray | Image.Image
    """(H, W, 3) uint8, or RGB."""
    title: str
    lines: Sequence[str] = ()
    rows: Sequence[tuple[str, str, bool]] = ()
    """A small table below: name, value, and whether it is the best of its kind."""
    below: np.ndarray | None = None
    """A second picture, below the first."""
    below_title: str = ""


def _shown_width(width: int, about: int = _CARD) -> int:
    """Returns how wide a picture is shown: a whole multiple of its own width, but for large ones."""
    return min(width * max(1, round(about / width)), round(about * _LARGEST))


def _image(uri: str, title: str, stem: str, size: tuple[int, int], about: int = _CARD) -> dict[str, Any]:
    width = _shown_width(size[0], about)
    height = round(width * size[1] / size[0])
    crisp = size[0] < width
    return {"uri": uri, "title": title, "stem": stem, "width": width, "height": height, "crisp": crisp}


def _card(it: Card, about: int = _CARD) -> str:
    image = it.picture if isinstance(it.picture, Image.Image) else Image.fromarray(it.picture)

    def shown(picture: Image.Image, title: str) -> dict[str, Any]:
        return _image(encode_picture(picture, _BUDGET).uri, title, _file_stem(title), image.size, about)

    below = None if it.below is None else shown(Image.fromarray(it.below), f"{it.title}, {it.below_title}")
    return _pieces.card(vars(it) | {"image": shown(image, it.title), "below": below})


def _file_stem(title: str) -> str:
    """Returns the name, without its ending, of a file to save a picture of such a title in."""
    return "-".join(["ldmae", *re.findall(r"[\w.]+", title)])[:60]


def cards(items: Sequence[Card | str], label: str) -> str:
    """Returns cards beside each other; texts among them are pieces of HTML already."""
    return _pieces.group([item if isinstance(item, str) else _card(item) for item in items], label)


def strip(items: Sequence[Card], label: str) -> str:
    """Returns small cards in a row."""
    return _pieces.group([_card(item, _SMALL) for item in items], label, "strip")


def beside(original: Card, items: Sequence[Card | str], label: str) -> str:
    """Returns cards beside an original, which stays in view while one scrolls through them."""
    return _pieces.beside(_card(original), cards(items, label))


def thumbnails(pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """Returns pictures to pick from, as buttons that know their number."""
    small = []
    for image, name in pictures:
        image = image.copy()
        image.thumbnail((2 * _THUMBNAIL, 2 * _THUMBNAIL))
        small.append((encode_picture(image, _BUDGET).uri, name))
    return _pieces.thumbnails(small, _THUMBNAIL)


PICK = """
element.addEventListener("click", event => {
  const button = event.target.closest("button[data-index]");
  if (!button) return;
  element.querySelectorAll("button").forEach(each => each.setAttribute("aria-pressed", each === button));
  trigger("click", {index: Number(button.dataset.index)});
});
"""
"""What makes a click on a thumbnail an event that carries its number."""
USE_SEED = """
element.addEventListener("click", event => {
  const button = event.target.closest("[data-do=seed]");
  if (button) trigger("click", {seed: Number(button.dataset.seed), label: Number(button.dataset.label)});
});
"""
"""What makes a click on "Use this seed" an event that carries seed and class."""


def unmark(key: str) -> str:
    """Returns the JavaScript that marks no thumbnail in the element `key` as picked, unless a status says
    that something failed."""
    return (
        "status => (status || '').includes('role=\"alert\"') || "
        f"document.querySelectorAll('#{key} button[aria-pressed]')"
        ".forEach(each => each.removeAttribute('aria-pressed'))"
    )


def progress(news: Progress) -> str:
    """Returns the bar of a generating job: steps done, time taken, time to go."""
    share = news.done / news.total
    left = news.seconds / news.done * (news.total - news.done)
    rest = f"about {format_seconds(left)} left" if news.done < news.total else "decoding"
    step = math.ceil(news.done * news.steps / news.total)
    text = f"Step {step} of {news.steps} · {format_seconds(news.seconds)} · {rest}"
    return bar(share, text)


def in_line(ahead: int) -> str:
    """Returns the bar of a job that has not started, with how many people are ahead of the visitor."""
    people = "1 person" if ahead == 1 else f"{ahead} people"
    return bar(0, f"Waiting: {people} ahead of you" if ahead else "Waiting for your other request")


def previews(pictures: np.ndarray, labels: Sequence[str]) -> str:
    """Returns pictures (n, H, W, 3) on their way; of more `labels` than pictures it says so."""
    items = [Card(picture, label, ["preview"]) for picture, label in zip(pictures, labels, strict=False)]
    shown, count = len(items), len(labels)
    hint = f"Previews of the first {shown} of {count} images. All {count} appear at the end."
    return (note(hint) if shown < count else "") + cards(items, "previews")


def gallery(made: Sequence[Generated]) -> str:
    """Returns finished pictures, each with buttons, and a link that saves all PNGs with their settings."""
    figures, zipped = [], io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_STORED) as archive:
        for number, item in enumerate(made):
            content, name = item.png(), item.file_name
            archive.writestr(f"{number:02d}-{name}", content)
            uri, title = data_uri(content, "image/png"), str(item.settings["class"])
            shown = _image(uri, title, name.removesuffix(".png"), item.image.size)
            figures.append(_pieces.made_card(shown, item.settings))
    whole = _pieces.whole(data_uri(zipped.getvalue(), "application/zip"), len(made))
    return cards(figures, "generated images") + (whole if len(made) > 1 else "")


def metrics(measured: dict[str, float]) -> list[str]:
    """Returns metrics as short lines: `PSNR 23.1 dB`, `ST-LPIPS-alex 0.061`."""
    return [f"{name} {value_of(name, value)}" for name, value in measured.items()]


def value_of(name: str, value: float) -> str:
    """Returns a figure's value as text."""
    if name == "PSNR":
        return "identical" if value == float("inf") else f"{value:.1f} dB"
    return f"{value:.3f}"


def favicon() -> str:
    """Returns the head element with the page's icon: four patches, one of them masked."""
    squares = "".join(
        f'<rect x="{x}" y="{y}" width="14" height="14" rx="3" fill="{fill}"/>'
        for x, y, fill in ((1, 1, "#6366f1"), (17, 1, "#a5b4fc"), (1, 17, "#c7c7d1"), (17, 17, "#4338ca"))
    )
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{squares}</svg>'
    return f'<link rel="icon" type="image/svg+xml" href="{data_uri(svg.encode(), "image/svg+xml")}">'
