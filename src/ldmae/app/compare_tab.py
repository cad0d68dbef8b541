"""The tab that compares autoencoders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from ldmae.app import markup
from ldmae.app.compare import FEWEST, MOST, Measured, Timing, check_names, measure, timed
from ldmae.app.lines import Waiting, answered, followed
from ldmae.app.looking import as_picture
from ldmae.app.markup import Card
from ldmae.app.skin import (
    KEPT_FOR,
    PICKING,
    forgotten,
    picked,
    picker,
    stoppable,
    take_image,
    told,
    told_stream,
    uploaded,
    visitor_of,
)
from ldmae.app.turns import Job
from ldmae.app.uploads import squared
from ldmae.app.workbench import Workbench, runs_nearby
from ldmae.core.errors import UserError
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.report.formatting import format_count

STRENGTH = 4.0
EMPTY = "Name two or more autoencoders, choose an image, and press Compare."
ALONE = (
    "There is nothing to compare with: who opened this page can offer more, with `ldmae app --compare NAME`."
)
WELL_KNOWN = ("stabilityai/sd-vae-ft-mse", "madebyollin/taesd")
"""Autoencoders on the Hub for a start, downloaded once when they are chosen."""


@dataclass(frozen=True)
class _Parts:
    """The tab's components."""

    image: gr.State
    """The visitor's image, RGB, or None before they chose one, when it is the first sample."""
    chosen: gr.Checkbox
    """Whether they chose one, which the browser remembers when the image is forgotten."""
    names: gr.Dropdown
    size: gr.Dropdown
    drop: gr.File
    thumbs: gr.HTML
    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    result: gr.HTML


def build(bench: Workbench) -> None:
    """Adds the tab's content."""
    parts = _layout(bench)
    _listen_for_image(bench, parts)
    _listen_to_go(bench, parts)


def _layout(bench: Workbench) -> _Parts:
    first, sizes = bench.samples[0].image, bench.compared_sizes
    side = min(sizes, key=lambda each: abs(each - bench.size))
    image = gr.State(None, time_to_live=KEPT_FOR)
    chosen = gr.Checkbox(False, visible="hidden")
    choices = [*bench.choices, *(_named_for_them(bench) if bench.may_name else [])]
    possible = bench.may_name or len(choices) >= FEWEST
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            names = gr.Dropdown(
                choices,
                value=bench.choices[:MOST],
                multiselect=True,
                max_choices=MOST,
                allow_custom_value=bench.may_name,
                label="Autoencoders",
                info=_how_to_name(bench),
                elem_id="compare-names",
            )
            size = gr.Dropdown(
                [(f"{each} × {each} pixels", each) for each in sizes],
                value=side,
                label="Image size",
                info="The image's centred square is resized to it.",
            )
            drop, thumbs = picker(bench, "Drop an image here", "compare")
            with gr.Row():
                go = gr.Button(
                    "Compare", variant="primary", interactive=possible, elem_id="compare", min_width=120
                )
                stop = gr.Button(
                    "Stop", variant="stop", interactive=False, elem_id="compare-stop", min_width=80
                )
        with gr.Column(scale=3, min_width=600):
            status = gr.HTML(markup.note(EMPTY if possible else ALONE), elem_id="compare-status")
            result = gr.HTML(_chosen(first, side), elem_id="compare-result")
    return _Parts(image, chosen, names, size, drop, thumbs, go, stop, status, result)


def _listen_for_image(bench: Workbench, parts: _Parts) -> None:
    def chosen(picture: Image.Image, side: int) -> list[Any]:
        return [picture, True, markup.note(EMPTY), _chosen(picture, side)]

    @told
    async def choose_uploaded(request: gr.Request, content: bytes | None, side: int) -> list[Any]:
        def work(job: Job) -> list[Any]:
            with job.aside():
                return chosen(uploaded(bench, content), checked(side))

        return await answered(work, bench.light, visitor_of(request))

    @told
    async def choose_picked(event: gr.EventData, request: gr.Request, side: int) -> list[Any]:
        picture = picked(bench, event)
        return await answered(lambda job: chosen(picture, checked(side)), bench.light, visitor_of(request))

    def checked(side: int) -> int:
        return _checked_size(bench, side)

    shown = [parts.image, parts.chosen, parts.status, parts.result]
    take_image(parts.drop, parts.thumbs, choose_uploaded, [parts.drop, parts.size], shown)
    parts.thumbs.click(choose_picked, parts.size, shown, **PICKING)


def _checked_size(bench: Workbench, side: int) -> int:
    if side not in bench.compared_sizes:
        raise UserError(f"the image can't be brought to {side} px; choose one of the sizes offered")
    return side


def _listen_to_go(bench: Workbench, parts: _Parts) -> None:
    @told_stream
    async def run(
        request: gr.Request,
        named: list[str] | None,
        side: int,
        picture: Image.Image | None,
        chosen: bool,
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        if picture is None and chosen:
            raise forgotten()
        picture = picture or bench.samples[0].image
        names = check_names(named or [], bench.choices, bench.may_name)
        side = _checked_size(bench, side)
        yield markup.bar(0, "starting"), gr.skip()
        work = _compared(bench, names, picture, side)
        async for done in followed(work, bench.heavy, visitor_of(request)):
            if isinstance(done, Waiting):
                yield markup.in_line(done.ahead), gr.skip()
                continue
            label = bench.perceptual.label
            shown = await asyncio.to_thread(side_by_side, done, picture, side, label)  # see generate_tab
            yield _progress(done, names), shown

    stoppable(
        parts.go,
        parts.stop,
        run,
        [parts.names, parts.size, parts.image, parts.chosen],
        parts.status,
        parts.result,
    )


def _named_for_them(bench: Workbench) -> list[str]:
    """Returns what a visitor who may name anything is likely to want."""
    return [*runs_nearby(bench.source), *WELL_KNOWN]


def _how_to_name(bench: Workbench) -> str:
    if bench.may_name:
        return (
            "Pick from the list, or type a run folder, an autoencoder's diffusers folder or its Hub name "
            "(OWNER/NAME, downloaded once), and press Enter. Nothing is loaded that runs code."
        )
    return "Those that the owner of this page offers."


def _chosen(image: Image.Image, size: int) -> str:
    return markup.cards([_original(image, size)])


def _original(image: Image.Image, size: int) -> Card:
    return Card(as_picture(to_uint8(squared(image, size))), "Original", [f"{size} × {size} pixels"])


def _compared(
    bench: Workbench, names: Sequence[str], picture: Image.Image, size: int
) -> Callable[[Job], list[Measured]]:
    """Returns a job that measures one autoencoder after the other and reports those that are done."""

    def work(job: Job) -> list[Measured]:
        done: list[Measured] = []
        for name in names:
            job.report(list(done))
            done.append(
                measure(
                    name,
                    picture,
                    size,
                    bench.perceptual,
                    bench.device,
                    STRENGTH,
                    bench.load,
                    job.hand_on,
                    job.aside,
                )
            )
        job.report(list(done))
        return timed(done, bench.device, job.hand_on)

    return work


def _progress(done: Sequence[Measured], names: Sequence[str]) -> str:
    if any(one.works for one in done) and len(done) == len(names):
        return markup.bar(0.9, "measuring time")
    if len(done) == len(names):
        failed = sum(bool(one.problem) for one in done)
        text = f"{len(done) - failed} of {len(done)} autoencoders measured."
        return markup.note(text, "plain" if failed else "good")
    return markup.bar(0.9 * len(done) / len(names), f"{names[len(done)]} ({len(done) + 1} of {len(names)})")


def side_by_side(done: Sequence[Measured], picture: Image.Image, size: int, label: str) -> str:
    """Returns the cards of a comparison; the best value of each kind is marked where it is clearly the best.

    Args:
        done: what was measured so far.
        picture: RGB.
        size: pixels along a side.
        label: the perceptual distance's.
    """
    rows = {one.name: _rows(one, label) for one in done if not one.problem}
    items: list[Card | str] = [_original(picture, size)]
    for one in done:
        if one.picture is None:
            items.append(markup.missing_card(one.name, one.problem))
            continue
        others = [values for name, values in rows.items() if name != one.name]
        table = [
            (kind, value.text, is_best(value, [each[kind] for each in others if kind in each]))
            for kind, value in rows[one.name].items()
        ]
        lines = [] if one.side == size else [f"computed at {one.side} × {one.side} pixels"]
        items.append(Card(one.picture, one.name, lines, table, one.difference, f"difference × {STRENGTH:g}"))
    return markup.cards(items, "the autoencoders side by side")


@dataclass(frozen=True)
class Value:
    """One value of a card."""

    text: str
    rank: float | None = None
    """The lowest is the best; None where there is no better and worse."""
    timing: Timing | None = None
    """Of a value that another measuring would not repeat."""


def is_best(value: Value, others: Sequence[Value]) -> bool:
    """Says whether a value is the best one: better than any other by more than its text and chance hide."""
    known = [other for other in others if other.rank is not None]
    if value.rank is None or not known:
        return False
    if value.timing is not None:
        return all(other.timing is not None and value.timing.clearly_below(other.timing) for other in known)
    ranks = [other.rank for other in known if other.text != value.text]
    return bool(ranks) and all(rank is not None and value.rank < rank for rank in ranks)


def _rows(one: Measured, label: str) -> dict[str, Value]:
    """Returns a card's values by kind."""
    quality = {
        name: Value(markup.value_of(name, value), -value if name == "PSNR" else value)
        for name, value in one.figures.items()
    }
    if label not in quality:
        quality[label] = Value("image too small")
    channels, h, w = one.latents
    return {
        **quality,
        "parameters": Value(format_count(one.parameters), float(one.parameters)),
        "latents": Value(f"{channels} × {h} × {w}"),
        "compression": Value(f"{one.compression:.3g} ×"),
        **{
            kind: Value(f"{_digits(1000 * it.seconds, 3)} ± {_digits(500 * it.spread, 2)} ms", it.seconds, it)
            for kind, it in one.timings.items()
        },
    }


def _digits(number: float, count: int) -> str:
    """Returns a number with so many digits, or more where it has them before the point."""
    return f"{number:.0f}" if number >= 10 ** (count - 1) else f"{number:.{count}g}"
