"""The tab that generates."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from ldmae.app import markup
from ldmae.app.generate import (
    GUIDANCE,
    MOST_PICTURES,
    MOST_STEPS,
    SEEDS,
    SHIFTS,
    Generated,
    Progress,
    Wish,
    check_wish,
    generate,
    read_settings,
    wish_from,
)
from ldmae.app.lines import Waiting, answered, followed
from ldmae.app.skin import arrived, drop_zone, stoppable, take, told, told_stream, visitor_of
from ldmae.app.turns import Job
from ldmae.app.workbench import Workbench
from ldmae.core.errors import UserError
from ldmae.diffusion.settings import SamplingConfig
from ldmae.report.formatting import format_seconds

EVERY_CLASS = -1
ALL_CHANNELS = 0
OWN_SHIFT = 0.0
SOLVERS = [("Euler", "euler"), ("Heun, twice the work", "heun")]
RANDOM_SEED = f"() => Math.floor(Math.random() * {SEEDS - MOST_PICTURES})"
EMPTY = "Choose a class and press Generate."


def build(bench: Workbench) -> None:
    """Adds the tab's content."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            controls, go, stop, drop = _controls(bench)
        with gr.Column(scale=3, min_width=600):
            status = gr.HTML(markup.note(EMPTY), elem_id="generate-status")
            pictures = gr.HTML(markup.waiting("The pictures will appear here."), elem_id="generate-pictures")

    @told_stream
    async def run(request: gr.Request, *values: Any) -> AsyncGenerator[Any, None]:
        wish = wish_of(values)
        names = bench.class_names
        check_wish(wish, len(names), bench.most_pictures)
        yield markup.bar(0, "starting"), markup.waiting("The first glimpse comes after two steps.")
        labels = [names[label] for label in wish.labels(len(names))]

        def work(job: Job) -> tuple[list[Generated], float]:
            began = time.perf_counter()
            made = generate(bench.pipeline, wish, names, bench.made_by, job.report)
            return made, time.perf_counter() - began

        last = None
        async for news in followed(work, bench.heavy, visitor_of(request)):
            # in a thread: encoding pictures takes a second, in which nobody else would be heard
            if isinstance(news, Waiting):
                yield markup.in_line(news.ahead), gr.skip()
            elif isinstance(news, Progress):
                shown: Any = gr.skip()
                if news.preview is not None and news.preview is not last:
                    last = news.preview
                    shown = await asyncio.to_thread(markup.previews, last, labels)
                yield markup.progress(news), shown
            else:
                made, seconds = news
                shown = await asyncio.to_thread(markup.gallery, made)
                yield markup.note(_done(wish, seconds), "good"), shown

    @told
    async def fill(request: gr.Request, content: bytes | None) -> list[Any]:
        def work(job: Job) -> list[Any]:
            with job.aside():
                settings = read_settings(arrived(content))
            wish = wish_from(settings, bench.class_names, bench.most_pictures)
            values = values_of(wish)
            if not bench.guidable:
                values[_GUIDANCE] = 1.0
            return [*values, markup.note(*_filled(bench, settings, wish))]

        return await answered(work, bench.light, visitor_of(request))

    stoppable(go, stop, run, controls, status, pictures)
    take(drop, fill, [drop], [*controls, status])


_GUIDANCE = 4
"""Place of the guidance scale among the controls."""


def _controls(bench: Workbench) -> tuple[list[Any], gr.Button, gr.Button, gr.File]:
    """Adds the controls, in the order of `wish_of`."""
    own = bench.defaults
    most = bench.most_pictures
    label = gr.Dropdown(_class_choices(bench.class_names), label="Class", value=_first(bench))
    count = gr.Slider(1, most, value=min(8, most), step=1, label="Number of pictures")
    with gr.Row(elem_classes="ld-level"):
        seed = gr.Number(own.seed, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, min_width=120)
        dice = gr.Button("Random", size="sm", min_width=80, scale=0, elem_id="random-seed")
    with gr.Row():
        go = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="generate-stop", min_width=80)
    steps = gr.Slider(1, MOST_STEPS, value=min(own.num_inference_steps, MOST_STEPS), step=1, label="Steps")
    off = "" if bench.guidable else "Not with this model: it has no null class to be guided away from."
    guidance = gr.Slider(
        *GUIDANCE,
        value=_within(own.guidance_scale, GUIDANCE) if bench.guidable else 1.0,
        step=0.1,
        label="Guidance",
        info=off or "1 is none; more shows the class more plainly, and varies less.",
        interactive=bench.guidable,
    )
    with gr.Accordion("Guidance interval, solver, time shift", open=False):
        with gr.Row():
            start = gr.Slider(0, 1, value=own.guidance_interval[0], step=0.05, label="Guide from t =")
            end = gr.Slider(0, 1, value=own.guidance_interval[1], step=0.05, label="to t =")
        gr.HTML(markup.label("", "Time t goes from 0, which is noise, to 1, the picture."))
        solver = gr.Radio(SOLVERS, value=own.solver, label="Solver")
        unset = own.timestep_shift is None
        shift = gr.Slider(
            OWN_SHIFT if unset else SHIFTS[0],
            SHIFTS[1],
            value=OWN_SHIFT if unset else _within(own.timestep_shift or 1.0, SHIFTS),
            step=0.05,
            label="Time shift",
            info="Below 1 more steps are spent near the noise; 1 is none"
            + ("; 0 is the scheduler's own." if unset else "."),
        )
        channels = gr.Slider(
            ALL_CHANNELS,
            bench.pipeline.transformer.config["in_channels"],
            value=own.guidance_channels or ALL_CHANNELS,
            step=1,
            label="Guided channels",
            info="0 guides all; the official sampler guides the first 3.",
            interactive=bench.guidable,
        )
    drop = drop_zone(
        "Make a picture again", "settings-drop", "Drop a PNG made here: its settings are filled in."
    )
    dice.click(None, None, seed, js=RANDOM_SEED, api_visibility="private")
    return [label, count, seed, steps, guidance, start, end, solver, shift, channels], go, stop, drop


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _class_choices(names: list[str]) -> list[tuple[str, int]]:
    seen = Counter(names)
    choices = [(name if seen[name] == 1 else f"{name} ({k})", k) for k, name in enumerate(names)]
    return choices if len(names) == 1 else [("every class in turn", EVERY_CLASS), *choices]


def _first(bench: Workbench) -> int:
    return 0 if len(bench.class_names) == 1 else EVERY_CLASS


def wish_of(values: tuple[Any, ...]) -> Wish:
    """Returns what the controls ask for.

    Args:
        values: class (-1: every one), number, seed, steps, guidance, its interval's start and end, solver,
            time shift (0: the scheduler's own), guided channels (0: all).

    Raises:
        UserError: a field is empty, or a value out of range.
    """
    if any(value is None for value in values):
        raise UserError("a field is empty; fill in all of them")
    label, count, seed, steps, guidance, start, end, solver, shift, channels = values
    if start > end:
        raise UserError(f"guidance is to end at t = {end}, before it begins at {start}; swap the two")
    sampling = SamplingConfig(
        solver=solver,
        num_inference_steps=int(steps),
        guidance_scale=float(guidance),
        guidance_interval=[float(start), float(end)],
        guidance_channels=None if channels == ALL_CHANNELS else int(channels),
        timestep_shift=None if shift == OWN_SHIFT else float(shift),
        seed=int(seed),
    )
    return Wish(label=None if label == EVERY_CLASS else int(label), count=int(count), sampling=sampling)


def values_of(wish: Wish) -> list[Any]:
    """Returns what the controls show for a wish: `wish_of` backwards."""
    sampling = wish.sampling
    return [
        EVERY_CLASS if wish.label is None else wish.label,
        wish.count,
        sampling.seed,
        sampling.num_inference_steps,
        sampling.guidance_scale,
        *sampling.guidance_interval,
        sampling.solver,
        OWN_SHIFT if sampling.timestep_shift is None else sampling.timestep_shift,
        sampling.guidance_channels or ALL_CHANNELS,
    ]


def _done(wish: Wish, seconds: float) -> str:
    pictures = "1 picture" if wish.count == 1 else f"{wish.count} pictures"
    return (
        f"{pictures} in {format_seconds(seconds)}. Each has its own seed and carries its settings: "
        "drop one back in to make it again."
    )


def _filled(bench: Workbench, settings: dict[str, Any], wish: Wish) -> tuple[str, str]:
    """Returns what is said of settings that were filled in, and whether it is good news."""
    name = bench.class_names[wish.label or 0]
    text = f"Settings filled in: {name}, seed {wish.sampling.seed}."
    if settings.get("weights") == bench.made_by["weights"]:
        return f"{text} Press Generate to make the picture again.", "good"
    other = str(settings.get("model", ""))[:80] or "a model without a name"
    text += (
        f" It was made with {other if other != bench.name else f'other weights than those of {other} here'}"
    )
    return f"{text}; Generate makes another picture of them.", "plain"
