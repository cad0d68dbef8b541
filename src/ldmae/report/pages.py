"""What all pages share: one HTML file that needs no other, under 5 MB, light and dark; the look of plots."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ldmae.core.files import write_text
from ldmae.report.data import cut
from ldmae.report.grids import data_uri, encode_picture

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, told apart with any colour vision; a line beyond it is dashed."""
INK = "#222222"
_DARK: dict[str, str] = dict(
    zip(
        (INK, *COLOURS),
        ("#d8dce2", "#56b4e9", "#f0803c", "#2fc79a", "#e39cc6", "#f0e442", "#8f9cff"),
        strict=True,
    )
)
"""What each colour becomes on a dark page."""
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


# ---- the look of all plots


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Returns an empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def style_axes(ax: Axes) -> None:
    """Gives a plot the look of all others."""
    ax.set_facecolor("none")
    ax.grid(color=INK, alpha=0.15, linewidth=0.6)
    ax.tick_params(colors=INK, labelsize=9, which="both", length=2)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def figure_label(name: str, longest: int = 28) -> str:
    """Returns a name as a label: on one line, short, without what matplotlib takes as mathematics."""
    name = " ".join(name.split()).lstrip("_") or "unnamed"
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return name.replace("\\", "/").replace("$", r"\$")


def _svg(figure: Figure) -> bytes:
    """Returns a figure as SVG on nothing, its text as outlines (no font needed); the same bytes each time."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ldmae", "svg.fonttype": "path", "text.usetex": False}):
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _darkened(svg: bytes) -> bytes:
    """Returns the SVG of a figure with the colours for a dark page."""
    pattern = "|".join(_DARK).encode()
    return re.sub(pattern, lambda match: _DARK[match.group().decode()].encode(), svg)


def chart(figure: Figure, alt: str) -> dict[str, Any]:
    """Returns a plot as the template's `chart` shows it, for a light page and for a dark one."""
    svg = _svg(figure)
    return {
        "alt": cut(alt),
        "light": data_uri(svg, "image/svg+xml"),
        "dark": data_uri(_darkened(svg), "image/svg+xml"),
        "widest": round(110 * figure.get_figwidth()),
        "narrowest": round(62 * figure.get_figwidth()),  # in pixels: text as small as can be read
    }
