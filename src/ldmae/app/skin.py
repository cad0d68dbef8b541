"""What the tabs share: errors as messages, and the two ways of giving an image."""

from __future__ import annotations

import functools
import html
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import gradio as gr
import torch
from PIL import Image

from ldmae.app import markup
from ldmae.app.lines import Visitor
from ldmae.app.turns import Stopped
from ldmae.app.uploads import MIB, decode_picture
from ldmae.app.workbench import Workbench
from ldmae.core.errors import UserError
from ldmae.images.transforms import center_crop

logger = logging.getLogger(__name__)

KEPT_FOR = 7200
"""Seconds after which a visitor's image is forgotten, counted from when it came."""
KEPT = 1024
"""Pixels along a side that are kept of a visitor's image at most."""

QUICK: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}
"""How sliders listen: only the last of several movements counts."""
PICKING: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""How drop zones and galleries listen."""
INSTANT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How buttons that compute nothing listen."""


def as_message(error: Exception) -> gr.Error:
    """Returns what a visitor is told of an error: a mistake of theirs in full, of anything else nothing."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, UserError):
        text = str(error)
    elif isinstance(error, Stopped):  # nobody is there to read it
        text = "the request was dropped"
    elif isinstance(error, torch.OutOfMemoryError | MemoryError):
        text = "the server's memory does not suffice for that; ask for fewer or smaller pictures"
    else:
        logger.error("a visitor's request failed", exc_info=error)
        text = "something went wrong on the server; its log tells what. Try again, or something else"
    if text.partition(" ")[0].isalpha():  # and no name or path
        text = text[:1].upper() + text[1:]
    return gr.Error(html.escape(text[:600]), duration=20, print_exception=False)


def told(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """Makes a handler of a coroutine function, whose errors become messages on the page."""

    @functools.wraps(function)
    async def handler(*arguments: Any) -> Any:
        try:
            return await function(*arguments)
        except Exception as error:
            raise as_message(error) from None

    return handler


def visitor_of(request: gr.Request) -> Visitor:
    """Returns whose request it is."""
    client: Any = request.client
    return Visitor(request.session_hash or "", "" if client is None else client.host)


def told_stream(function: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., Any]:
    """Makes a handler out of an async generator, whose errors become messages on the page."""

    @functools.wraps(function)
    async def handler(*arguments: Any) -> AsyncGenerator[Any, None]:
        stream = function(*arguments)
        try:
            async for item in stream:
                yield item
        except Exception as error:
            raise as_message(error) from None
        finally:
            await stream.aclose()  # stops the job where the visitor has left

    return handler


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
            raise gr.Error("a picture must be sent, not named", print_exception=False)
        return await moved(url_or_file_path)

    drop.async_move_resource_to_block_cache = moved_if_sent
    return drop


def picker(bench: Workbench, what: str, key: str) -> tuple[gr.File, gr.HTML]:
    """Adds a place to drop an image on, and images to pick from, whose clicks `picked` understands.

    Args:
        bench: of the page.
        what: the drop zone's label.
        key: beginning of the elements' ids.
    """
    limits = bench.limits
    most = f"{limits.bytes / MIB:g} MiB, {limits.pixels / 1e6:g} megapixels"
    hint = f"PNG, JPEG, WebP, BMP, GIF, TIFF; up to {most}"
    with gr.Column(elem_classes="ld-picker"):
        drop = drop_zone(what, f"{key}-drop", hint)
        gr.HTML(markup.label("… or pick one", bench.samples_from))
        thumbnails = gr.HTML(
            markup.thumbnails([(sample.image, sample.name) for sample in bench.samples]),
            js_on_load=markup.PICK,
            elem_id=f"{key}-samples",
        )
    return drop, thumbnails


def take(drop: gr.File, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
    """Lets a handler take what is dropped; the drop zone is empty again afterwards, also where it failed.

    Returns:
        The event, for what happens after it.
    """
    taken = drop.upload(handler, inputs, outputs, **PICKING)
    afterwards(taken, lambda: None, drop)
    return taken


def take_image(
    drop: gr.File, thumbnails: gr.HTML, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]
) -> None:
    """Lets a handler take an image that is dropped, after which no thumbnail is marked as picked."""
    unmark = markup.unmark(str(thumbnails.elem_id))
    take(drop, handler, inputs, outputs).success(None, None, None, js=unmark, **INSTANT)


def afterwards(event: Any, function: Callable[[], Any], output: Any) -> None:
    """Calls a function when an event is over; Gradio's `then` alone does not hear of failures."""
    event.then(function, None, output, **INSTANT)
    event.failure(function, None, output, **INSTANT)


def arrived(content: bytes | None) -> bytes:
    """Returns the content of a file that a visitor sent.

    Raises:
        UserError: there is none.
    """
    if content is None:
        raise UserError("no file arrived; send it again")
    return content


def uploaded(bench: Workbench, content: bytes | None) -> Image.Image:
    """Returns the picture that a visitor sent, RGB; of one that is large or long its middle, a square.

    Raises:
        UserError: there is none, or it can't be taken (see `uploads`).
    """
    image = decode_picture(arrived(content), bench.limits)
    return center_crop(image, min(KEPT, *image.size)) if max(image.size) > KEPT else image


def forgotten() -> UserError:
    """Returns the error for an image that is not kept any more."""
    hours = f"{KEPT_FOR / 3600:g} hours"
    return UserError(
        f"your image was forgotten, which happens after {hours} or a lost connection; choose it again"
    )


def picked(bench: Workbench, event: gr.EventData) -> Image.Image:
    """Returns the sample image that a visitor clicked on."""
    index = getattr(event, "index", None)  # what the browser sent: anything
    if type(index) is not int or not 0 <= index < len(bench.samples):
        raise UserError("there is no such image; pick another")
    return bench.samples[index].image


def stoppable(
    go: gr.Button,
    stop: gr.Button,
    job: Callable[..., Any],
    inputs: list[Any],
    status: gr.HTML,
    result: gr.HTML,
) -> None:
    """Lets a button start a long job, and another one stop it, which it can while the job waits or goes on.

    Args:
        go: starts.
        stop: stops; can be pressed as long as there is something to stop.
        job: an async generator of what `status` and `result` show.
        inputs: what the job gets.
        status: how far it is.
        result: what there is so far, which stays when the job is stopped.
    """
    stopping = f"window['stopping-{status.elem_id}']"
    begin = f"""() => {{
        {stopping} = false;
        if (innerWidth < 700) document.getElementById('{status.elem_id}').scrollIntoView();
    }}"""
    go.click(lambda: gr.Button(interactive=True), None, stop, js=begin, **INSTANT)
    running = go.click(
        job,
        inputs,
        [status, result],
        show_progress="hidden",
        api_visibility="private",
    )
    afterwards(running, lambda: gr.Button(interactive=False), stop)
    stopped, failed = markup.note("Stopped."), markup.note("That did not work; the message says why.", "bad")
    # a job that is stopped fails, too, maybe before the server has said that it is stopped
    how = f"() => {stopping} ? {json.dumps(stopped)} : {json.dumps(failed)}"
    running.failure(None, None, status, js=how, **INSTANT)
    stop.click(
        lambda: (stopped, gr.Button(interactive=False)),
        None,
        [status, stop],
        js=f"() => {{ {stopping} = true; }}",
        cancels=[running],
        **INSTANT,
    )
