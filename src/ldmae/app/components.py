"""What the tabs share: errors in status bars, a button that becomes Stop, the two ways of giving an image."""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import gradio as gr
import torch
from PIL import Image

from ldmae.app import markup
from ldmae.app.lines import Visitor, answered
from ldmae.app.turns import Job, Stopped
from ldmae.app.uploads import MIB, decode_picture
from ldmae.app.workbench import Workbench
from ldmae.core.errors import UserError
from ldmae.images.transforms import center_crop

logger = logging.getLogger(__name__)

KEPT_FOR = 7200
"""Seconds after which a visitor's image is forgotten, counted from when it came."""
_KEPT = 1024
"""Pixels along a side that are kept of a visitor's image at most."""

QUICK: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}
"""How sliders listen: only the last of several movements counts."""
PICKING: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""How drop zones and galleries listen."""
_NARROW = 1000
"""Pixels of a window below which results are above the controls, as in style.css."""
INSTANT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How buttons that compute nothing listen."""


def _message_of(error: Exception) -> str:
    """Returns what a visitor is told of an error: a mistake of theirs in full, of anything else nothing."""
    if isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, Stopped):  # nobody is there to read it
        text = "the request was cancelled"
    elif isinstance(error, torch.OutOfMemoryError | MemoryError):
        text = "the server ran out of memory; choose fewer or smaller images"
    else:
        logger.error("a visitor's request failed", exc_info=error)
        text = "something failed on the server, and its log has the details; try again"
    if text.partition(" ")[0].isalpha():  # and no name or path
        text = text[:1].upper() + text[1:]
    return text[:600]


def told(status: gr.HTML) -> Callable[..., Callable[..., Any]]:
    """Makes handlers of coroutine functions and async generators: errors become the text of a status bar.

    The bar must be among the handlers' outputs.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def handler(*arguments: Any) -> Any:
            try:
                return await function(*arguments)
            except gr.Error:
                raise
            except Exception as error:
                return {status: markup.note(_message_of(error), "bad")}

        @functools.wraps(function)
        async def streaming(*arguments: Any) -> AsyncGenerator[Any, None]:
            stream = function(*arguments)
            try:
                async for item in stream:
                    yield item
            except Exception as error:
                yield {status: markup.note(_message_of(error), "bad")}
            finally:
                await stream.aclose()  # stops the job where the visitor has left

        return streaming if inspect.isasyncgenfunction(function) else handler

    return decorate


def visitor_of(http: gr.Request) -> Visitor:
    """Returns whose request it is."""
    client: Any = http.client
    return Visitor(http.session_hash or "", "" if client is None else client.host)


def work_columns() -> tuple[gr.Column, gr.Column]:
    """Adds two columns: for controls, and for results, which narrow windows show first."""
    with gr.Row(equal_height=False, elem_classes="ld-work"):
        return gr.Column(scale=1, min_width=300), gr.Column(scale=3, min_width=600, elem_classes="ld-results")


def drop_zone(label: str, key: str, hint: str = "") -> gr.File:
    """Adds a place to drop a file on, low, with its label above it."""
    gr.HTML(markup.label(label, hint))
    drop = gr.File(
        type="binary", label=label, show_label=False, height=64, elem_id=key, elem_classes="ld-drop"
    )
    moved = drop.async_move_resource_to_block_cache

    async def moved_if_sent(url_or_file_path: Any) -> str | None:
        # of an address that a forged request names Gradio would fetch whatever is there, of any size
        if url_or_file_path is not None and "://" in str(url_or_file_path):
            raise gr.Error("An image must be uploaded, not named.", print_exception=False)
        return await moved(url_or_file_path)

    drop.async_move_resource_to_block_cache = moved_if_sent
    return drop


def picker(bench: Workbench, what: str, key: str) -> tuple[gr.File, gr.HTML]:
    """Adds a place to drop an image on, and images to pick from; their ids begin with `key`."""
    limits = bench.limits
    hint = f"Up to {limits.bytes / MIB:g} MiB and {limits.pixels / 1e6:g} megapixels."
    with gr.Column(elem_classes="ld-picker"):
        drop = drop_zone(what, f"{key}-drop", hint)
        gr.HTML(markup.label("… or choose an example"))
        thumbnails = gr.HTML(
            markup.thumbnails([(sample.image, sample.name) for sample in bench.samples]),
            js_on_load=markup.PICK,
            elem_id=f"{key}-samples",
        )
    return drop, thumbnails


def take(drop: gr.File, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
    """Lets a handler take what is dropped; the drop zone is empty again afterwards, also where it failed."""
    taken = drop.upload(handler, inputs, outputs, **PICKING)
    _afterwards(taken, lambda: None, drop)
    return taken


def take_image(
    bench: Workbench,
    drop: gr.File,
    thumbnails: gr.HTML,
    taken: Callable[..., list[Any]],
    inputs: list[Any],
    outputs: list[Any],
) -> None:
    """Hands what is dropped or picked (see `picker`) to a function, and its result to the outputs.

    The function gets the image, RGB, and the inputs' values; the last output is a status bar. What is dropped
    leaves no thumbnail marked as picked.
    """
    status = outputs[-1]

    @told(status)
    async def take_upload(http: gr.Request, content: bytes | None, *values: Any) -> list[Any]:
        def work(job: Job) -> list[Any]:
            with job.aside():
                image = _uploaded(bench, content)
            return taken(image, *values)

        return await answered(work, bench.light, visitor_of(http))

    @told(status)
    async def take_picked(event: gr.EventData, http: gr.Request, *values: Any) -> list[Any]:
        image = _picked(bench, event)
        return await answered(lambda job: taken(image, *values), bench.light, visitor_of(http))

    unmark = markup.unmark(str(thumbnails.elem_id))
    take(drop, take_upload, [drop, *inputs], outputs).success(None, status, None, js=unmark, **INSTANT)
    thumbnails.click(take_picked, inputs, outputs, **PICKING)


def _afterwards(event: Any, function: Callable[[], Any], output: Any) -> None:
    """Calls a function when an event is over; Gradio's `then` alone does not hear of failures."""
    event.then(function, None, output, **INSTANT)
    event.failure(function, None, output, **INSTANT)


def arrived(content: bytes | None) -> bytes:
    """Returns the content of a file that a visitor sent; a UserError where there is none."""
    if content is None:
        raise UserError("no file arrived; upload it again")
    return content


def _uploaded(bench: Workbench, content: bytes | None) -> Image.Image:
    """Returns the picture that a visitor sent, RGB; of one that is large or long its middle, a square.

    Raises:
        UserError: there is none, or it can't be taken (see `uploads`).
    """
    image = decode_picture(arrived(content), bench.limits)
    return center_crop(image, min(_KEPT, *image.size)) if max(image.size) > _KEPT else image


def forgotten() -> UserError:
    """Returns the error for an image that is not kept any more."""
    hours = f"{KEPT_FOR / 3600:g} hours"
    return UserError(f"your image expired, which happens after {hours} or a lost connection; choose it again")


def _picked(bench: Workbench, event: gr.EventData) -> Image.Image:
    """Returns the sample image that a visitor clicked on."""
    index = getattr(event, "index", None)  # what the browser sent: anything
    if type(index) is not int or not 0 <= index < len(bench.samples):
        raise UserError("there is no such example image; choose another")
    return bench.samples[index].image


def start_button(text: str, key: str, interactive: bool = True) -> tuple[gr.Button, gr.Button]:
    """Adds a button that starts something and is Stop meanwhile: two, of which one is shown."""
    with gr.Row(elem_classes="ld-action"):
        go = gr.Button(text, variant="primary", interactive=interactive, elem_id=key)
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id=f"{key}-stop")
    return go, stop


def stoppable(
    buttons: tuple[gr.Button, gr.Button],
    job: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
) -> None:
    """Lets a `start_button` start a long job, an async generator, and stop it while it waits or runs.

    The first output is a status bar; what the others show so far stays when the job is stopped.
    """
    go, stop = buttons
    status = outputs[0]
    stopping = f"window['stopping-{status.elem_id}']"
    begin = f"""() => {{
        {stopping} = false;
        if (innerWidth < {_NARROW}) document.getElementById('{status.elem_id}').scrollIntoView();
    }}"""

    def shown(runs: bool) -> list[Any]:
        return [gr.Button(visible=not runs), gr.Button(visible=runs)]

    go.click(lambda: shown(True), None, [go, stop], js=begin, **INSTANT)
    running = go.click(job, inputs, outputs, **PICKING)
    _afterwards(running, lambda: shown(False), [go, stop])
    stopped, failed = (
        markup.note("Stopped."),
        markup.note("The request failed. Check the settings, or try again.", "bad"),
    )
    # a job that is stopped fails, too, maybe before the server has said that it is stopped
    how = f"() => {stopping} ? {json.dumps(stopped)} : {json.dumps(failed)}"
    running.failure(None, None, status, js=how, **INSTANT)
    stop.click(
        lambda: [stopped, *shown(False)],
        None,
        [status, go, stop],
        js=f"() => {{ {stopping} = true; }}",
        cancels=[running],
        **INSTANT,
    )
