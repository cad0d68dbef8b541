"""The tab that shows the run's report, or the model's card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import gradio as gr

from ldmae.app import markup
from ldmae.app.components import PICKING, told, visitor_of
from ldmae.app.lines import answered
from ldmae.app.turns import Job
from ldmae.app.workbench import Workbench
from ldmae.report.grids import data_uri

_LARGEST = 20 << 20
"""Bytes of a report or a card that are shown; reports stay under 5 MB."""
_LARGEST_PICTURE = 4 << 20
"""Bytes of a picture in a card."""
_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def build(bench: Workbench, tab: gr.Tab) -> None:
    """Adds the tab's content, which is read whenever somebody opens it."""
    frame = gr.HTML(elem_id="report-frame")
    card = gr.Markdown(elem_id="report-card", sanitize_html=True, visible=False)

    def read(job: Job) -> tuple[str, Any]:
        run = bench.run_folder
        report = None if run is None else _text(run / "report.html")
        if report is not None:
            return markup.framed(report), gr.Markdown(visible=False)
        source = Path(str(cast(Any, bench.pipeline.config).get("_name_or_path") or ""))
        about = _read_card(source) if (source / "model_index.json").is_file() else None
        if about is not None:
            note = f"{bench.name} is a saved pipeline, so this is its model card. Only runs have a report."
            return markup.note(note), gr.Markdown(about, visible=True)
        absent = "This run has no report yet. Write it with `ldmae report RUN`, then open this tab again."
        if run is None:
            absent = (
                f"{bench.name} is a saved pipeline, and only runs have a report. Open a run folder with "
                "`ldmae app RUN` to read its report here."
            )
        return markup.note(absent), gr.Markdown(visible=False)

    @told(frame)
    async def show(http: gr.Request) -> tuple[str, Any]:
        return await answered(read, bench.light, visitor_of(http))

    tab.select(show, None, [frame, card], **PICKING)


def _read_card(pipeline_folder: Path) -> str | None:
    """Returns the Markdown of a model's card, without the metadata at its head, or None where it has none.

    Its pictures that lie in the folder come with it; of others the description stays. (Where one is written
    in some other way, browsers do not fetch it: `gatekeeper._ONLY_FROM_HERE`.)
    """
    text = _text(pipeline_folder / "README.md")
    if text is None:
        return None
    text = re.sub(r"\A---\n(?:.*?\n)??---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"<img\b[^>]*>", "", text, flags=re.IGNORECASE).strip()

    def inlined(found: re.Match[str]) -> str:
        description, target = found[1], found[2]
        picture = _picture(pipeline_folder, target)
        return f"*{description}*" if picture is None else f"![{description}]({picture})"

    return re.sub(r"!\[([^\]]*)\]\(\s*<?([^)\s>]+)[^)]*\)", inlined, text) or None


def _picture(folder: Path, name: str) -> str | None:
    """Returns a picture in a folder as an address that needs no request, or None where there is none."""
    try:
        path = (folder / name).resolve()
        kind = _KINDS.get(path.suffix.lower())
        if kind is None or not path.is_relative_to(folder.resolve()):
            return None
        return data_uri(path.read_bytes(), kind) if path.stat().st_size <= _LARGEST_PICTURE else None
    except (OSError, ValueError):  # a name with a null byte
        return None


def _text(path: Path) -> str | None:
    """Returns a file's text, or None where there is none to show."""
    try:
        if path.stat().st_size > _LARGEST:
            return None
        return path.read_text(encoding="utf-8-sig", errors="replace")  # Windows' editors write a mark
    except OSError:
        return None
