"""What all pages share: one HTML file that needs no other, under 5 MB, light and dark."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from ldmae.core.files import write_text
from ldmae.report import curves
from ldmae.report.pictures import data_uri
from ldmae.report.reading import cut

MAX_BYTES = 5_000_000
PICTURE_BYTES = (1_200_000, 400_000, 100_000)
"""What one picture may take before base64; the next is tried where the page came out too large."""


def write_page(
    path: Path, template: str, context: dict[str, Any], pictures: Callable[[int], dict[str, Any]]
) -> None:
    """Writes a page atomically.

    Args:
        path: the page.
        template: name of the template.
        context: what it shows.
        pictures: from a budget of bytes a picture to what it shows in addition; called again with a smaller
            one where the page comes out too large.
    """
    environment = Environment(
        loader=PackageLoader("ldmae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["wordbreaks"] = lambda text: re.split(r"(?<=[-_])", str(text))
    page = ""
    for budget in PICTURE_BYTES:
        page = environment.get_template(template).render(context | pictures(budget))
        if len(page.encode(errors="backslashreplace")) < MAX_BYTES:
            break
    write_text(path, page)


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
