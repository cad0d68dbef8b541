"""The tab that generates."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ldmae.app import markup
from ldmae.app.components import (
    INSTANT,
    QUICK,
    arrived,
    drop_zone,
    start_button,
    stoppable,
    take,
    told,
    visitor_of,
    work_columns,
)
from ldmae.app.generate import (
    GUIDANCE,
    MOST_STEPS,
    SEEDS,
    SHIFTS,
    Generated,
    GenerationRequest,
    Progress,
    check_request,
    estimate_seconds,
    generate,
    read_settings,
    request_from,
)
from ldmae.app.lines import Waiting, answered, followed
from ldmae.app.turns import Job
from ldmae.app.workbench import Workbench
from ldmae.config.diffusion import SamplingConfig
from ldmae.config.registry import SOLVERS
from ldmae.core.errors import UserError
from ldmae.diffusion.solvers import evaluations
from ldmae.report.formatting import format_seconds

_EVERY_CLASS = -1
_ALL_CHANNELS = 0
_OWN_SHIFT = 0.0
_EMPTY = "Choose a class and press Generate."
_NEW_SEEDS = 10**6
"""New seeds are below it: short enough to be typed."""
_LONG = 60.0
"""Seconds from which on the page warns of what is asked for."""
_SEED, _GUIDANCE = 2, 4
"""Places of the seed and the guidance scale among the controls."""


def build(bench: Workbench) -> None:
    """Adds the tab's content."""
    controls, results = work_columns()
    with controls:
        parts = _controls(bench)
    with results:
        made = bench.examples
        hint = f"{len(made)} example images, made by this model. {_EMPTY}" if made else _EMPTY
        shown = markup.gallery(made) if made else markup.waiting("Images appear here.")
        parts.status = gr.HTML(markup.note(hint), elem_id="generate-status")
        parts.pictures = gr.HTML(shown, js_on_load=markup.USE_SEED, elem_id="generate-pictures")
    _listen_to_go(bench, parts)
    _listen_to_settings(bench, parts)


def _listen_to_go(bench: Workbench, parts: SimpleNamespace) -> None:
    status, pictures, seed = parts.status, parts.pictures, parts.controls[_SEED]

    @told(status)
    async def run(http: gr.Request, locked: bool, *values: Any) -> AsyncGenerator[Any, None]:
        chosen = [*values]
        if not locked:
            chosen[_SEED] = secrets.randbelow(_NEW_SEEDS)
        request = _request_of(chosen)
        names = bench.class_names
        check_request(request, len(names), bench.most_pictures)
        first = {status: markup.bar(0, "Starting"), seed: request.sampling.seed}
        yield first | {pictures: markup.waiting("Preview starts after two steps…")}
        labels = [names[label] for label in request.labels(bench.classes)]

        def work(job: Job) -> tuple[list[Generated], float]:
            began = time.perf_counter()
            made = generate(bench.pipeline, request, names, bench.made_by, job.report)
            return made, time.perf_counter() - began

        last = None
        async for news in followed(work, bench.heavy, visitor_of(http)):
            # in a thread: encoding pictures takes a second, in which nobody else would be heard
            if isinstance(news, Waiting):
                yield {status: markup.in_line(news.ahead)}
            elif isinstance(news, Progress):
                shown = {status: markup.progress(news)}
                if news.preview is not None and news.preview is not last:
                    last = news.preview
                    shown[pictures] = await asyncio.to_thread(markup.previews, last, labels)
                yield shown
            else:
                made, seconds = news
                done = f"Done in {format_seconds(seconds)}. Settings are stored in the PNG."
                gallery = await asyncio.to_thread(markup.gallery, made)
                yield {status: markup.note(done, "good"), pictures: gallery}

    stoppable(parts.buttons, run, [parts.lock, *parts.controls], [status, pictures, seed])


def _listen_to_settings(bench: Workbench, parts: SimpleNamespace) -> None:
    """Fills in settings of a dropped PNG and of a picture's button, and tells how long they take."""
    label, seed, pace = parts.controls[0], parts.controls[_SEED], bench.pace

    @told(parts.status)
    async def fill(http: gr.Request, content: bytes | None) -> list[Any]:
        def work(job: Job) -> list[Any]:
            with job.aside():
                settings = read_settings(arrived(content))
            request = request_from(settings, bench.class_names, bench.most_pictures)
            values = _values_of(request)
            if not bench.guidable:
                values[_GUIDANCE] = 1.0
            return [*values, True, markup.note(*_filled(bench, settings, request))]

        return await answered(work, bench.light, visitor_of(http))

    @told(parts.status)
    async def use_seed(event: gr.EventData) -> list[Any]:
        chosen, number = getattr(event, "label", None), getattr(event, "seed", None)  # as in `picked`
        if not (type(chosen) is int and 0 <= chosen < len(bench.class_names) and type(number) is int):
            raise UserError("there is no such image; generate it again")
        text = f"Class {bench.class_names[chosen]} and seed {number} are set, and the seed is locked."
        return [chosen, number, True, markup.note(text)]

    def estimate(*values: Any) -> str:
        try:
            seconds = estimate_seconds(_request_of(values), pace)
        except UserError:  # it is told when the button is pressed
            return ""
        long = f"About {format_seconds(seconds)} at these settings. Fewer images or steps take less time."
        return markup.note(long) if seconds >= _LONG else ""

    take(parts.drop, fill, [parts.drop], [*parts.controls, parts.lock, parts.status])
    parts.pictures.click(use_seed, None, [label, seed, parts.lock, parts.status], **INSTANT)
    seed.input(None, None, parts.lock, js="() => true", **INSTANT)
    gr.on([each.change for each in parts.controls], estimate, parts.controls, parts.estimate, **QUICK)


def _controls(bench: Workbench) -> SimpleNamespace:
    """Adds the controls: those of `_request_of` in its order, and others."""
    parts, own, most = SimpleNamespace(), bench.defaults, bench.most_pictures
    classes = _class_choices(bench.class_names, bench.classes)
    label = gr.Dropdown(classes, label="Class", value=classes[0][1])
    count = gr.Slider(1, most, value=min(8, most), step=1, label="Images")
    with gr.Row(elem_classes="ld-level"):
        seed = gr.Number(own.seed, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, min_width=120)
        parts.lock = gr.Checkbox(False, label="Lock seed", min_width=110, elem_id="lock-seed")
    parts.buttons = start_button("Generate", "generate")
    parts.estimate = gr.HTML(elem_id="generate-estimate")
    steps = gr.Slider(1, MOST_STEPS, value=min(own.num_inference_steps, MOST_STEPS), step=1, label="Steps")
    off = "" if bench.guidable else "Off: this model has no null class to guide away from."
    guidance = gr.Slider(
        *GUIDANCE,
        value=_within(own.guidance_scale, GUIDANCE) if bench.guidable else 1.0,
        step=0.1,
        label="Guidance",
        info=off or "1 = off. Higher follows the class more closely, with less variety.",
        interactive=bench.guidable,
    )
    with gr.Accordion("Advanced settings", open=False):
        start = gr.Slider(
            0,
            1,
            value=own.guidance_interval[0],
            step=0.05,
            label="Guidance start",
            info="Time t runs from 0 (noise) to 1 (image).",
        )
        end = gr.Slider(0, 1, value=own.guidance_interval[1], step=0.05, label="Guidance end")
        solver = gr.Radio(_solvers(), value=own.solver, label="Solver")
        unset = own.timestep_shift is None
        shift = gr.Slider(
            _OWN_SHIFT if unset else SHIFTS[0],
            SHIFTS[1],
            value=_OWN_SHIFT if unset else _within(own.timestep_shift or 1.0, SHIFTS),
            step=0.05,
            label="Time shift",
            info="1 = off. Lower spends more steps near the noise."
            + (" 0 = the scheduler's own." if unset else ""),
        )
    # no control: it follows the run's settings, or those of a PNG
    channels = gr.Number(own.guidance_channels or _ALL_CHANNELS, precision=0, visible="hidden")
    parts.drop = drop_zone(
        "Recreate an image", "settings-drop", "Drop a PNG saved from this page to fill in its settings."
    )
    parts.controls = [label, count, seed, steps, guidance, start, end, solver, shift, channels]
    return parts


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _class_choices(names: list[str], known: Sequence[int]) -> list[tuple[str, int]]:
    seen = Counter(names)
    choices = [(names[k] if seen[names[k]] == 1 else f"{names[k]} ({k})", k) for k in known]
    return choices if len(choices) == 1 else [("All classes", _EVERY_CLASS), *choices]


def _request_of(values: Sequence[Any]) -> GenerationRequest:
    """Returns what the controls ask for, in their order; a UserError says what is empty or out of range."""
    if any(value is None or (isinstance(value, float) and not math.isfinite(value)) for value in values):
        raise UserError("a setting is empty or no finite number; fill in all of them")
    label, count, seed, steps, guidance, start, end, solver, shift, channels = values
    if start > end:
        raise UserError(f"guidance ends at t = {end}, before its start at {start}; swap the two")
    sampling = SamplingConfig(
        solver=solver,
        num_inference_steps=int(steps),
        guidance_scale=float(guidance),
        guidance_interval=[float(start), float(end)],
        guidance_channels=None if channels == _ALL_CHANNELS else int(channels),
        timestep_shift=None if shift == _OWN_SHIFT else float(shift),
        seed=int(seed),
    )
    return GenerationRequest(
        label=None if label == _EVERY_CLASS else int(label), count=int(count), sampling=sampling
    )


def _solvers() -> list[tuple[str, str]]:
    """Returns the solvers to choose among, each with its label."""
    times = {name: round(evaluations(name, 50) / 50) for name in SOLVERS}
    return [
        (name.capitalize() + (f" (about {slower}× slower)" if slower > 1 else ""), name)
        for name, slower in times.items()
    ]


def _values_of(request: GenerationRequest) -> list[Any]:
    """Returns what the controls show for a request: `_request_of` backwards."""
    sampling = request.sampling
    return [
        _EVERY_CLASS if request.label is None else request.label,
        request.count,
        sampling.seed,
        sampling.num_inference_steps,
        sampling.guidance_scale,
        *sampling.guidance_interval,
        sampling.solver,
        _OWN_SHIFT if sampling.timestep_shift is None else sampling.timestep_shift,
        sampling.guidance_channels or _ALL_CHANNELS,
    ]


def _filled(bench: Workbench, settings: dict[str, Any], request: GenerationRequest) -> tuple[str, str]:
    """Returns what is said of settings that were filled in, and whether it is good news."""
    name = bench.class_names[request.label or 0]
    text = f"Settings filled in: {name}, seed {request.sampling.seed}."
    if settings.get("weights") == bench.made_by["weights"]:
        return f"{text} Press Generate to recreate the image.", "good"
    other = str(settings.get("model", ""))[:80] or "an unnamed model"
    maker = other if other != bench.name else f"other weights of {other}"
    return f"{text} The image was made with {maker}, so Generate makes a different one.", "plain"
