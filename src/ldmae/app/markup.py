"""Pieces of the page's HTML. All texts are escaped; pictures lie inside it, so that nothing is requested."""

# H W picture

from __future__ import annotations

import html
import io
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ldmae.app.generate import Generated, Progress
from ldmae.report.formatting import format_seconds
from ldmae.report.grids import data_uri, encode_picture

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
_ALERT = ' role="alert"'
"""What a note has that says that something failed."""
_PAPER, _LIGHTNINGDIT = "https://arxiv.org/abs/2507.09984", "https://arxiv.org/abs/2501.01423"


@dataclass(frozen=True)
class Card:
    """A picture with its title, and lines below it."""

    picture: np.ndarray | Image.Image
    """(H, W, 3) uint8, or RGB."""
    title: str
    lines: Sequence[str] = ()
    rows: Sequence[tuple[str, str, bool]] = field(default_factory=tuple)
    """A small table below: name, value, and whether it is the best of its kind."""
    below: np.ndarray | None = None
    """A second picture, below the first."""
    below_title: str = ""


def _shown_width(width: int, about: int = _CARD) -> int:
    """Returns how wide a picture is shown: a whole multiple of its own width, but for large ones."""
    return min(width * max(1, round(about / width)), round(about * _LARGEST))


def _card(it: Card, about: int = _CARD) -> str:
    """Returns a picture with its title and lines."""
    image = it.picture if isinstance(it.picture, Image.Image) else Image.fromarray(it.picture)
    picture = _savable(image, it.title, image.size, about)
    below = ""
    if it.below is not None:
        title = f"{it.title}, {it.below_title}"
        second = _savable(Image.fromarray(it.below), title, image.size, about)
        below = f"{second}<span>{html.escape(it.below_title)}</span>"
    lines = "".join(f"<span>{html.escape(line)}</span>" for line in it.lines)
    rows = "".join(
        f"<div{' class=ld-best' if best else ''}><dt>{html.escape(name)}</dt>"
        f"<dd>{html.escape(value)}</dd></div>"
        for name, value, best in it.rows
    )
    table = f"<dl>{rows}</dl>" if rows else ""
    return (
        f'<figure class="ld-card">{picture}'
        f"<figcaption><b>{html.escape(it.title)}</b>{lines}</figcaption>{below}{table}</figure>"
    )


def _savable(image: Image.Image, title: str, size: tuple[int, int], about: int) -> str:
    """Returns a picture with a button in its corner that saves it."""
    picture = _img(encode_picture(image, _BUDGET).uri, title, size, about)
    return (
        f'<div class="ld-image">{picture}{_action("save", f"Save image: {title}", _file_stem(title))}</div>'
    )


def _action(what: str, title: str, name: str, data: str = "", text: str = "") -> str:
    """Returns a button of a picture, which `page.js` or the gallery's own script listens to.

    Args:
        what: it does: `save`, `send` or `seed`.
        title: says so in full.
        name: of the file that is saved or sent, without its ending.
        data: further attributes of the button, as HTML.
        text: beside its icon.
    """
    title = html.escape(title, quote=True)
    words = f"<span>{html.escape(text)}</span>" if text else ""
    return (
        f'<button type="button" class="ld-act" data-do="{what}" data-name="{html.escape(name, quote=True)}"'
        f' title="{title}" aria-label="{title}" {data}>{words}</button>'
    )


def _file_stem(title: str) -> str:
    """Returns the name, without its ending, of a file to save a picture of such a title in."""
    return "-".join(["ldmae", *re.findall(r"[\w.]+", title)])[:60]


def _img(uri: str, alt: str, size: tuple[int, int], about: int = _CARD) -> str:
    width = _shown_width(size[0], about)
    crisp = ' class="ld-crisp"' if size[0] < width else ""
    return (
        f'<img src="{uri}" alt="{html.escape(alt, quote=True)}" width="{width}" '
        f'height="{round(width * size[1] / size[0])}"{crisp}>'
    )


def cards(items: Sequence[Card | str], label: str = "") -> str:
    """Returns cards beside each other; texts among them are HTML that is taken as it is."""
    inner = "".join(item if isinstance(item, str) else _card(item) for item in items)
    return f'<div class="ld-cards" aria-label="{html.escape(label, quote=True)}" role="group">{inner}</div>'


def strip(items: Sequence[Card], label: str) -> str:
    """Returns small cards in a row."""
    row = "".join(_card(item, _SMALL) for item in items)
    return f'<div class="ld-strip" role="group" aria-label="{html.escape(label, quote=True)}">{row}</div>'


def beside(original: Card, items: Sequence[Card | str], label: str) -> str:
    """Returns cards beside an original, which stays in view while one scrolls through them."""
    first = f'<div class="ld-original">{_card(original)}</div>'
    return f'<div class="ld-compared">{first}{cards(items, label)}</div>'


def thumbnails(pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """Returns pictures to pick from, as buttons that know their number."""
    buttons = []
    for number, (image, name) in enumerate(pictures):
        small = image.copy()
        small.thumbnail((2 * _THUMBNAIL, 2 * _THUMBNAIL))
        title = html.escape(name, quote=True)
        uri = encode_picture(small, _BUDGET).uri
        buttons.append(
            f'<button type="button" data-index="{number}" title="{title}" aria-label="{title}">'
            f'<img src="{uri}" alt="" width="{_THUMBNAIL}" height="{_THUMBNAIL}"></button>'
        )
    return f'<div class="ld-thumbs">{"".join(buttons)}</div>'


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
        f"status => (status || '').includes('{_ALERT.strip()}') || "
        f"document.querySelectorAll('#{key} button[aria-pressed]')"
        ".forEach(each => each.removeAttribute('aria-pressed'))"
    )


def label(text: str, hint: str = "") -> str:
    """Returns a field's label, and a hint below it."""
    small = f"<small>{html.escape(hint)}</small>" if hint else ""
    return f'<p class="ld-label">{html.escape(text)}{small}</p>'


def missing_card(title: str, problem: str) -> str:
    """Returns a card that says why there is no picture."""
    return (
        f'<figure class="ld-card ld-missing"><figcaption><b>{html.escape(title)}</b></figcaption>'
        f'<p role="alert">{html.escape(problem)}</p></figure>'
    )


def note(text: str, kind: str = "plain") -> str:
    """Returns a line of text in a box; `kind` is `plain`, `good` or `bad`."""
    role = _ALERT if kind == "bad" else ""
    return f'<p class="ld-note ld-{kind}"{role}>{html.escape(text)}</p>'


def waiting(text: str) -> str:
    """Returns what stands where pictures will be."""
    return f'<div class="ld-empty"><span>{html.escape(text)}</span></div>'


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


def bar(share: float, text: str) -> str:
    """Returns a progress bar with a text under it."""
    percent = round(100 * share)
    return (
        f'<div class="ld-bar" role="progressbar" aria-label="progress" aria-valuenow="{percent}" '
        f'aria-valuemin="0" aria-valuemax="100"><div style="width:{percent}%"></div></div>'
        f'<p class="ld-bar-text">{html.escape(text)}</p>'
    )


def previews(pictures: np.ndarray, labels: Sequence[str]) -> str:
    """Returns pictures (n, H, W, 3) on their way; of more `labels` than pictures it says so."""
    items = [Card(picture, label, ["preview"]) for picture, label in zip(pictures, labels, strict=False)]
    shown, count = len(items), len(labels)
    hint = f"Previews of the first {shown} of {count} images. All {count} appear at the end."
    return (note(hint) if shown < count else "") + cards(items, "previews")


def gallery(made: Sequence[Generated]) -> str:
    """Returns finished pictures, each with buttons, and a link that saves all PNGs with their settings."""
    files = [(item.file_name, item.png()) for item in made]
    figures = []
    for item, (name, content) in zip(made, files, strict=True):
        title, seed, label = str(item.settings["class"]), item.settings["seed"], item.settings["label"]
        own = f'data-seed="{int(seed)}" data-label="{int(label)}"'
        stem = name.removesuffix(".png")
        buttons = (
            _action("save", f"Save the PNG of seed {seed}", stem, text="Save PNG"),
            _action("seed", f"Use seed {seed} and its class", stem, own, "Use this seed"),
            _action(
                "send", f"Send the image of seed {seed} to Autoencoder", stem, text="Send to Autoencoder"
            ),
        )
        figures.append(
            f'<figure class="ld-card">{_img(data_uri(content, "image/png"), title, item.image.size)}'
            f"<figcaption><b>{html.escape(title)}</b><span>seed {seed}</span></figcaption>"
            f'<div class="ld-acts">{"".join(buttons)}</div></figure>'
        )
    whole = ""
    if len(files) > 1:
        uri = data_uri(_zipped(files), "application/zip")
        whole = f'<a class="ld-all" href="{uri}" download="ldmae-images.zip">Save all {len(files)} as ZIP</a>'
    return cards(figures, "generated images") + whole


def _zipped(files: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, (name, content) in enumerate(files):
            archive.writestr(f"{number:02d}-{name}", content)
    return buffer.getvalue()


def framed(document: str) -> str:
    """Returns a whole HTML document in a frame that may run no script.

    The page may measure it, to make the frame as high as its content, and the document reaches nothing.
    """
    return (
        '<iframe class="ld-report" title="the report of the run" sandbox="allow-same-origin" '
        f'referrerpolicy="no-referrer" srcdoc="{html.escape(document, quote=True)}"></iframe>'
    )


def header(name: str, facts: Sequence[str]) -> str:
    """Returns the head of the page: what it is, what the model is called, and a few facts."""
    chips = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    return (
        f'<div class="ld-head"><h1>LDMAE <span>{html.escape(name)}</span></h1>'
        f"<p>{_link(_PAPER, 'Latent diffusion with masked autoencoders')}: generate images with a "
        f"{_link(_LIGHTNINGDIT, 'LightningDiT')}, inspect its autoencoder, and compare autoencoders.</p>"
        f"<ul>{chips}</ul></div>"
    )


def _link(address: str, text: str) -> str:
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer">{html.escape(text)}</a>'


def footer(samples_from: str) -> str:
    """Returns the foot of the page: where its example images are from."""
    return f'<p class="ld-foot">Example images: {html.escape(samples_from)}.</p>'


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
