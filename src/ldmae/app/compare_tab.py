"""The tab that compares autoencoders."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import gradio as gr
from PIL import Image

from ldmae.app import markup
from ldmae.app.compare import FEWEST, MOST, STRENGTH, Compared, check_names, measure, timed
from ldmae.app.components import (
    KEPT_FOR,
    forgotten,
    picker,
    start_button,
    stoppable,
    take_image,
    told,
    visitor_of,
    work_columns,
)
from ldmae.app.lines import Waiting, followed
from ldmae.app.markup import Card
from ldmae.app.turns import Job
from ldmae.app.workbench import Workbench, runs_nearby, short_name
from ldmae.core.errors import UserError
from ldmae.images.transforms import center_crop
from ldmae.report.formatting import format_count

_EMPTY = "Press Compare to encode and decode this image with each autoencoder."
_ALONE = "Only one autoencoder is available. Start the page with `ldmae app --compare NAME` to offer more."
_WELL_KNOWN = ("madebyollin/taesd", "stabilityai/sd-vae-ft-mse")
"""Autoencoders on the Hub for a start, the smallest first, downloaded once when they are compared."""


def build(bench: Workbench) -> None:
    """Adds the tab's content."""
    parts = _layout(bench)
    _listen_for_image(bench, parts)
    _listen_to_go(bench, parts)


def _suggestions(bench: Workbench) -> list[tuple[str, str]]:
    """Returns what to call further autoencoders, and how they are loaded; each is offered once."""
    known = (bench.source, *bench.offered.values())
    further = [*runs_nearby(*known), *(name for name in _WELL_KNOWN if name not in known)]
    called = Counter([*bench.choices, *map(short_name, further)])
    return [(name if called[short_name(name)] > 1 else short_name(name), name) for name in further]


def _layout(bench: Workbench) -> SimpleNamespace:
    """Returns the tab's components by name."""
    parts, sizes = SimpleNamespace(), bench.compared_sizes
    side = min(sizes, key=lambda each: abs(each - bench.size))
    # RGB, or None before one is chosen: then the first sample
    parts.image = gr.State(None, time_to_live=KEPT_FOR)
    # remembered by the browser when the image is forgotten
    parts.chosen = gr.Checkbox(False, visible="hidden")
    choices = [(name, name) for name in bench.choices]
    how_to_name = f"{FEWEST} to {MOST} of those that this page offers."
    if bench.may_name:
        how_to_name = (
            f"{FEWEST} to {MOST}: choose, or type a run folder, a diffusers folder or OWNER/NAME on the Hub "
            "(downloaded once) and press Enter."
        )
        choices += _suggestions(bench)
    enough = len(choices) >= FEWEST
    controls, results = work_columns()
    with controls:
        parts.names = gr.Dropdown(
            choices,
            value=[name for _, name in choices[: min(MOST, max(FEWEST, len(bench.choices)))]],
            multiselect=True,
            max_choices=MOST,
            allow_custom_value=bench.may_name,
            label="Autoencoders",
            info=how_to_name,
            elem_id="compare-names",
        )
        parts.buttons = start_button("Compare", "compare", interactive=enough)
        parts.size = gr.Dropdown(
            [(f"{each} × {each} pixels", each) for each in sizes],
            value=side,
            label="Image size",
            info="The centre square of the image is resized to it.",
        )
        parts.drop, parts.thumbs = picker(bench, "Your image", "compare")
    with results:
        parts.status = gr.HTML(markup.note(_EMPTY if enough else _ALONE), elem_id="compare-status")
        parts.result = gr.HTML(_chosen(bench.samples[0].image, side), elem_id="compare-result")
    return parts


def _listen_for_image(bench: Workbench, parts: SimpleNamespace) -> None:
    def chosen(picture: Image.Image, side: int) -> list[Any]:
        return [picture, True, _chosen(picture, _checked_size(bench, side)), markup.note(_EMPTY)]

    shown = [parts.image, parts.chosen, parts.result, parts.status]
    take_image(bench, parts.drop, parts.thumbs, chosen, [parts.size], shown)


def _checked_size(bench: Workbench, side: int) -> int:
    if side not in bench.compared_sizes:
        raise UserError(f"the image can't be resized to {side} px; choose one of the sizes offered")
    return side


def _listen_to_go(bench: Workbench, parts: SimpleNamespace) -> None:
    @told(parts.status)
    async def run(
        http: gr.Request,
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
        yield markup.bar(0, "Starting"), gr.skip()
        work = partial(_compared, bench=bench, names=names, picture=picture, size=side)
        async for done in followed(work, bench.heavy, visitor_of(http)):
            if isinstance(done, Waiting):
                yield markup.in_line(done.ahead), gr.skip()
                continue
            label = bench.perceptual.label
            shown = await asyncio.to_thread(_side_by_side, done, picture, side, label)  # see generate_tab
            yield _progress(done, names), shown

    inputs = [parts.names, parts.size, parts.image, parts.chosen]
    stoppable(parts.buttons, run, inputs, [parts.status, parts.result])


def _chosen(image: Image.Image, size: int) -> str:
    return markup.beside(_original(image, size), [], "the image to compare with")


def _original(image: Image.Image, size: int) -> Card:
    return Card(center_crop(image, size), "Original", [f"{size} × {size} pixels"])


def _compared(
    job: Job, bench: Workbench, names: Sequence[str], picture: Image.Image, size: int
) -> list[Compared]:
    """Measures one autoencoder after the other and reports those that are done."""
    done: list[Compared] = []
    for name in names:
        job.report(list(done))
        done.append(
            measure(name, picture, size, bench.perceptual, bench.device, bench.load, job.hand_on, job.aside)
        )
    job.report(list(done))
    return timed(done, bench.device, job.hand_on)


def _progress(done: Sequence[Compared], names: Sequence[str]) -> str:
    if any(one.works for one in done) and len(done) == len(names):
        return markup.bar(0.9, "Measuring time")
    if len(done) == len(names):
        failed = sum(bool(one.problem) for one in done)
        text = f"{len(done) - failed} of {len(done)} autoencoders compared."
        return markup.note(text, "plain" if failed else "good")
    name = _short_names(names)[names[len(done)]]
    return markup.bar(0.9 * len(done) / len(names), f"{name} ({len(done) + 1} of {len(names)})")


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Returns names of a comparison as its cards have them: their last part, where that tells them apart."""
    short = {name: short_name(name) for name in names}
    counts = Counter(short.values())
    return {name: last if counts[last] == 1 else name for name, last in short.items()}


def _side_by_side(done: Sequence[Compared], picture: Image.Image, size: int, label: str) -> str:
    """Returns the cards of a comparison; of each kind the value that is clearly the best is marked."""
    rows = {one.name: _rows(one, label) for one in done if not one.problem}
    titles = _short_names([one.name for one in done])
    items: list[Card | str] = []
    for one in done:
        if one.picture is None:
            items.append(markup.missing_card(titles[one.name], one.problem))
            continue
        others = [values for name, values in rows.items() if name != one.name]
        table = [
            (kind, value.text, _is_best(value, [each[kind] for each in others if kind in each]))
            for kind, value in rows[one.name].items()
        ]
        lines = [] if one.side == size else [f"computed at {one.side} × {one.side} pixels"]
        title, below = titles[one.name], f"difference × {STRENGTH:g}"
        items.append(Card(one.picture, title, lines, table, one.difference, below))
    return markup.beside(_original(picture, size), items, "the autoencoders side by side")


@dataclass(frozen=True)
class _Value:
    """One value of a card."""

    text: str
    rank: float | None = None
    """The lowest is the best; None where there is no better and worse."""
    spread: float = 0.0
    """How far the rank of another measuring may be off."""


def _is_best(value: _Value, others: Sequence[_Value]) -> bool:
    """Says whether a value is the best one: better than any other by more than its text and chance hide."""
    lowest = [
        other.rank - other.spread for other in others if other.rank is not None and other.text != value.text
    ]
    return value.rank is not None and bool(lowest) and value.rank + value.spread < min(lowest)


def _rows(one: Compared, label: str) -> dict[str, _Value]:
    """Returns a card's values by kind."""
    quality = {
        name: _Value(markup.value_of(name, value), -value if name == "PSNR" else value)
        for name, value in one.metrics.items()
    }
    if label not in quality:
        quality[label] = _Value("image too small")
    channels, h, w = one.latents
    return {
        **quality,
        "parameters": _Value(format_count(one.parameters), float(one.parameters)),
        "latent": _Value(f"{channels} × {h} × {w}"),
        "compression": _Value(f"{one.compression:.3g}×"),
        **{
            kind: _Value(
                f"{_digits(1000 * it.seconds, 3)} ± {_digits(500 * it.spread, 2)} ms", it.seconds, it.spread
            )
            for kind, it in one.timings.items()
        },
    }


def _digits(number: float, count: int) -> str:
    """Returns a number with so many digits, or more where it has them before the point."""
    return f"{number:.0f}" if number >= 10 ** (count - 1) else f"{number:.{count}g}"
