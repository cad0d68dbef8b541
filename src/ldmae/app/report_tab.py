"""The tab that shows the run's report, or the model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import gradio as gr

from ldmae.app import markup
from ldmae.app.lines import answered
from ldmae.app.reports import read_card, read_report
from ldmae.app.skin import PICKING, told, visitor_of
from ldmae.app.turns import Job
from ldmae.app.workbench import Workbench


def build(bench: Workbench, tab: gr.Tab) -> None:
    """Adds the tab's content, which is read whenever somebody opens it."""
    frame = gr.HTML(elem_id="report-frame")
    card = gr.Markdown(elem_id="report-card", sanitize_html=True, visible=False)

    def read(job: Job) -> tuple[str, Any]:
        report = read_report(bench.run_folder)
        if report is not None:
            return markup.framed(report), gr.Markdown(visible=False)
        about = read_card(_pipeline_folder(bench))
        if about is not None:
            note = f"{bench.name} is a saved pipeline, so this is its model card. Only runs have a report."
            return markup.note(note), gr.Markdown(about, visible=True)
        return markup.note(_absent(bench)), gr.Markdown(visible=False)

    @told(frame)
    async def show(request: gr.Request) -> tuple[str, Any]:
        return await answered(read, bench.light, visitor_of(request))

    tab.select(show, None, [frame, card], **PICKING)


def _pipeline_folder(bench: Workbench) -> Path | None:
    folder = Path(str(cast(Any, bench.pipeline.config).get("_name_or_path") or ""))
    return folder if (folder / "model_index.json").is_file() else None


def _absent(bench: Workbench) -> str:
    if bench.run_folder is None:
        return (
            f"{bench.name} is a saved pipeline, and only runs have a report. Open a run folder with "
            "`ldmae app RUN` to read its report here."
        )
    return "This run has no report yet. Write it with `ldmae report RUN`, then open this tab again."
