"""The page: its tabs, its looks."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from gradio import themes
from starlette.middleware import Middleware

from ldmae.app import compare_tab, explorer_tab, generate_tab, markup, report_tab
from ldmae.app.gatekeeper import Gatekeeper
from ldmae.app.hosts import Hosts
from ldmae.app.lines import HEAVY, LIGHT
from ldmae.app.uploads import CLEANED_EVERY, KEPT_FOR, upload_folder
from ldmae.app.workbench import Workbench
from ldmae.core.errors import UserError

logger = logging.getLogger(__name__)

_STYLE, _SCRIPT = (Path(__file__).with_name(name) for name in ("style.css", "page.js"))
_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_SPARE = 64
"""Requests that Gradio starts beyond those which the lines take, so that it can tell them so."""
_SESSIONS = 200
"""Visitors whose images are kept at once; those who came first are forgotten first."""


class _Page(gr.Blocks):
    """A page that tells nothing of its insides to a request which it would not send, nor fills its log."""

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*arguments, **named)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:  # handlers tell their own: a number was cleared, or no page sent it
            logger.warning("a request with values that can't be read: %s", type(error).__name__)
            raise gr.Error(
                "A setting is empty or can't be read. Fill it in; if none is empty, reload the page.",
                print_exception=False,
            ) from None


def build_page(bench: Workbench) -> gr.Blocks:
    """Returns the page, not yet served; what a visitor does is kept in their own session, and forgotten."""
    with _Page(
        title=f"LDMAE · {bench.name}", analytics_enabled=False, delete_cache=(CLEANED_EVERY, KEPT_FOR)
    ) as page:
        gr.HTML(markup.header(bench.name, bench.facts))
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            with gr.Tab("Generate"):
                generate_tab.build(bench)
            with gr.Tab("Autoencoder"):
                explorer_tab.build(bench, page)
            with gr.Tab("Compare"):
                compare_tab.build(bench)
            with gr.Tab("Report") as report:
                report_tab.build(bench, report)
        gr.HTML(markup.footer(bench.samples_from))
    # all that arrives starts, and waits in the workbench's lines, which know who is who
    page.queue(max_size=HEAVY.in_all + LIGHT.in_all, default_concurrency_limit=None, api_open=False)
    return page


def _page_theme() -> themes.Base:
    """Returns the theme. Its texts have a contrast of at least 4.5 : 1 in both modes (WCAG 2.2, 1.4.3)."""
    red = themes.colors.red
    theme = themes.Default(
        primary_hue=themes.colors.indigo,
        secondary_hue=themes.colors.indigo,
        neutral_hue=themes.colors.slate,
        radius_size=themes.sizes.radius_lg,
        font=_FONT,
        font_mono=_MONO,
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        link_text_color_dark="*secondary_300",
        link_text_color_hover_dark="*secondary_200",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_cancel_background_fill=red.c600,
        button_cancel_background_fill_hover=red.c700,
        block_info_text_size="*text_md",
        button_small_text_size="*text_md",
    )


def launch(
    page: gr.Blocks,
    bench: Workbench,
    host: str,
    port: int,
    hosts: Hosts,
    share: bool = False,
    open_browser: bool = False,
) -> list[str]:
    """Serves the page from threads of its own, and returns its addresses.

    Nothing is fetched from elsewhere, and Gradio's extras that show what others do (monitoring) or keep what
    one did (history of runs) are off.

    Raises:
        UserError: the page could not be served.
    """
    keeper = Middleware(
        Gatekeeper,
        page=page,
        limits=bench.limits,
        hosts=hosts,
        audience=bench.audience,
        uploads=upload_folder(),
    )
    try:
        _, here, elsewhere = page.launch(
            theme=_page_theme(),
            css=_STYLE.read_text(encoding="utf-8"),
            head=f"{markup.favicon()}<script>{_SCRIPT.read_text(encoding='utf-8')}</script>",
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=open_browser,
            max_file_size=bench.limits.bytes,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            enable_monitoring=False,
            run_history=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            state_session_capacity=_SESSIONS,
            max_threads=HEAVY.in_all + LIGHT.in_all + _SPARE,
            app_kwargs={"middleware": [keeper]},
        )
    except OSError as error:  # somebody took the port since it was looked at
        raise UserError(
            f"cannot serve the page on {host}:{port} ({error}); name another with --port"
        ) from error
    if elsewhere:
        hosts.add(elsewhere)
    return [address for address in (here, elsewhere) if address]
