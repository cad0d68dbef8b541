"""What all pages share: one HTML file that needs no other, under 5 MB, light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from ldmae.core.files import write_text
from ldmae.report import curves
from ldmae.report.data import cut
from ldmae.report.grids import data_uri, encode_picture

_MAX_BYTES = 5_000_000
_PICTURE_BYTES = (1_200_000, 400_000, 100_000)
"""What one picture may take before base64; the next is tried where the page came out too large."""


def write_page(
    path: Path, template: str, context: dict[str, Any], pictures: Mapping[str, Image.Image | None]
) -> None:
    """Writes a page atomically; its pictures are encoded into fewer bytes where it comes out too large."""
    page = ""
    for budget in _PICTURE_BYTES:
        shown = {name: picture and encode_picture(picture, budget) for name, picture in pictures.items()}
        page = load_template("ldmae.report", template).render(context, pictures=shown)
        if len(page.encode(errors="backslashreplace")) < _MAX_BYTES:
            break
    write_text(path, page)


def load_template(package: str, name: str) -> Template:
    """Returns a template that lies in a package; what it is filled with is escaped."""
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"wordbreaks": _wordbreaks, "marked": _marked}
    return environment.get_template(name)


def _wordbreaks(text: Any) -> Markup:
    """Returns a text that a browser may break behind hyphens and underscores."""
    return Markup("<wbr>").join(re.split(r"(?<=[-_])", str(text)))


def _marked(text: Any) -> Markup:
    """Returns a table's cell: `**text**` is bold, `*text*` is set apart (see `tables`)."""
    found = re.fullmatch(r"(\*{1,2})(.+)\1(†?)", str(text), re.DOTALL)
    if found is None:
        return escape(text)
    template = Markup('<strong class="best">{}</strong>{}' if len(found[1]) == 2 else "<em>{}</em>{}")
    return template.format(found[2], found[3])


def chart(figure: Figure, title: str, alt: str) -> dict[str, Any]:
    """Returns a plot as the template's `chart` shows it, for a light page and for a dark one."""
    svg = curves.figure_svg(figure)
    return {
        "title": cut(title),
        "alt": cut(alt),
        "light": data_uri(svg, "image/svg+xml"),
        "dark": data_uri(curves.darkened(svg), "image/svg+xml"),
        "widest": round(110 * figure.get_figwidth()),
        "narrowest": round(62 * figure.get_figwidth()),  # in pixels: text as small as can be read
    }
