"""The tab that compares autoencoders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from ldmae.app import markup
from ldmae.app.compare import FEWEST, MOST, SIZES, Measured, check_names, measure
from ldmae.app.looking import as_picture
from ldmae.app.markup import Card
from ldmae.app.skin import (
    KEPT_FOR,
    PICKING,
    forgotten,
    picked,
    picker,
    stoppable,
    take,
    told,
    told_stream,
    uploaded,
)
from ldmae.app.turns import Job, followed
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
    first = bench.samples[0].image
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
                [(f"{side} × {side} pixels", side) for side in sorted({*SIZES, bench.size})],
                value=bench.size,
                label="Image size",
                info="The image's centred square is brought to it.",
            )
            drop, thumbs = picker(bench, "Drop an image here", "compare")
            with gr.Row():
                go = gr.Button(
                    "Compare", variant="primary", interactive=possible, elem_id="compare", min_width=120
                )
                stop = gr.Button(
                    "Stop", variant="stop", interactive=False, elem_id="compare-stop", min_width=80
                )
        with gr.Column(scale=3, min_width=300):
            status = gr.HTML(markup.note(EMPTY if possible else ALONE), elem_id="compare-status")
            result = gr.HTML(_chosen(first, bench.size), elem_id="compare-result")
    return _Parts(image, chosen, names, size, drop, thumbs, go, stop, status, result)


def _listen_for_image(bench: Workbench, parts: _Parts) -> None:
    def chosen(picture: Image.Image, side: int) -> list[Any]:
        return [picture, True, markup.note(EMPTY), _chosen(picture, side)]

    @told
    def choose_uploaded(content: bytes | None, side: int) -> list[Any]:
        return chosen(uploaded(bench, content), side)

    @told
    def choose_picked(event: gr.EventData, side: int) -> list[Any]:
        return chosen(picked(bench, event), side)

    shown = [parts.image, parts.chosen, parts.status, parts.result]
    take(parts.drop, choose_uploaded, [parts.drop, parts.size], shown)
    parts.thumbs.click(choose_picked, parts.size, shown, **PICKING)


def _listen_to_go(bench: Workbench, parts: _Parts) -> None:
    @told_stream
    async def run(
        named: list[str] | None, side: int, picture: Image.Image | None, chosen: bool
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        if picture is None and chosen:
            raise forgotten()
        picture = picture or bench.samples[0].image
        names = check_names(named or [], bench.choices, bench.may_name)
        if side not in SIZES and side != bench.size:
            raise UserError(f"the image can't be brought to {side} px; choose one of the sizes offered")
        yield markup.bar(0, "waiting for a turn"), gr.skip()
        async for done in followed(_compared(bench, names, picture, side), bench.turns):
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
        "compare",
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
                    lambda: job.report(list(done)),
                    job.aside,
                )
            )
        return done

    return work


def _progress(done: Sequence[Measured], names: Sequence[str]) -> str:
    if len(done) == len(names):
        failed = sum(bool(one.problem) for one in done)
        text = f"{len(done) - failed} of {len(done)} autoencoders measured."
        return markup.note(text, "plain" if failed else "good")
    return markup.bar(len(done) / len(names), f"{names[len(done)]} ({len(done) + 1} of {len(names)})")


def side_by_side(done: Sequence[Measured], picture: Image.Image, size: int, label: str) -> str:
    """Returns the cards of a comparison; the best figure of each kind is marked.

    Args:
        done: what was measured so far.
        picture: RGB.
        size: pixels along a side.
        label: the perceptual distance's.
    """
    good = [one for one in done if not one.problem]
    rows = {one.name: _rows(one, label) for one in good}
    best = _best(list(rows.values()))
    items: list[Card | str] = [_original(picture, size)]
    for one in done:
        if one.picture is None:
            items.append(markup.missing_card(one.name, one.problem))
            continue
        table = [
            (name, text, len(good) > 1 and number is not None and number == best.get(name))
            for name, (text, number) in rows[one.name].items()
        ]
        items.append(Card(one.picture, one.name, (), table, one.difference, f"difference × {STRENGTH:g}"))
    return markup.cards(items, "the autoencoders side by side")


def _rows(one: Measured, label: str) -> dict[str, tuple[str, float | None]]:
    """Returns each figure's text, and a number of which the lowest is the best, or None."""
    quality: dict[str, tuple[str, float | None]] = {
        name: (markup.value_of(name, value), -value if name == "PSNR" else value)
        for name, value in one.figures.items()
    }
    if label not in quality:
        quality[label] = ("image too small", None)
    channels, h, w = one.latents
    return {
        **quality,
        "parameters": (format_count(one.parameters), float(one.parameters)),
        "latents": (f"{channels} × {h} × {w}", None),
        "compression": (f"{one.compression:.3g} ×", None),
        **{kind: (f"{1000 * value:.3g} ms", value) for kind, value in one.seconds.items()},
    }


def _best(rows: Sequence[dict[str, tuple[str, float | None]]]) -> dict[str, float]:
    kinds = {name for values in rows for name in values}
    numbers = {name: [values[name][1] for values in rows if name in values] for name in kinds}
    return {
        name: min(known) for name, found in numbers.items() if (known := [x for x in found if x is not None])
    }
