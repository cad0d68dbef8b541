"""The tab that looks into the autoencoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from ldmae.app import markup
from ldmae.app.lines import answered
from ldmae.app.looking import MOST_HIDDEN, STRONGEST_NOISE, Latent, difference
from ldmae.app.markup import Card
from ldmae.app.skin import (
    INSTANT,
    KEPT_FOR,
    PICKING,
    QUICK,
    forgotten,
    picked,
    picker,
    take_image,
    told,
    uploaded,
    visitor_of,
)
from ldmae.app.turns import Job
from ldmae.app.workbench import Workbench
from ldmae.core.errors import UserError
from ldmae.evaluation.settings import EPSILONS, FRACTIONS

NOISE, HIDDEN, HALF_WAY, STRENGTH = 0.1, 0.6, 0.5, 4.0
"""Where the sliders begin."""
ASK_AGAIN = "() => { setTimeout(() => document.querySelector('#look-again').click(), 4000); }"
"""What the browser does where the first look failed."""


class _Views:
    """What the tab shows of a visitor's images, as HTML; nothing of a visitor's is kept in it."""

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.looker = bench, bench.looker

    def whole(self, latent: Latent, strength: float) -> str:
        """Original, reconstruction, difference, latents."""
        seen = self.looker.reconstruction(latent)
        gap = difference(latent.picture, seen.picture, strength)
        channels, h, w = latent.mean.shape[1:]
        ratio = latent.image.numel() / latent.mean.numel()
        return markup.cards(
            [
                Card(latent.picture, "Original", [f"{self.bench.size} × {self.bench.size} pixels"]),
                Card(seen.picture, "Reconstruction", markup.figures(seen.figures)),
                Card(gap, f"Difference × {strength:g}", ["black where nothing is lost"]),
                Card(
                    self.looker.colours(latent),
                    "Latents as colours",
                    [
                        f"{channels} × {h} × {w} numbers, {ratio:.3g} times fewer",
                        "3 principal components as RGB",
                    ],
                ),
            ],
            "the image and its latents",
        )

    def noise(self, latent: Latent, epsilon: float) -> str:
        """What noise on the latents does, at the slider's ε and at those of the smoothness measurement."""
        now = self.looker.noisy(latent, epsilon)
        steps = [self.looker.noisy(latent, value) for value in EPSILONS]
        first = Card(now.picture, f"ε = {epsilon:g}", markup.figures(now.figures))
        row = [
            Card(seen.picture, f"ε = {value:g}", markup.figures(seen.figures))
            for value, seen in zip(EPSILONS, steps, strict=True)
        ]
        return markup.featured([first], row, "the image decoded from latents with noise")

    def hidden(self, latent: Latent, share: float, draw: int) -> str:
        """What is made of the visible patches."""
        if self.looker.cannot_hide:
            return markup.note(f"Not with this autoencoder: {self.looker.cannot_hide}.")
        sees, made = self.looker.hidden(latent, share, draw)
        tokens = latent.mean.shape[2] * latent.mean.shape[3]
        return markup.cards(
            [
                Card(latent.picture, "Original"),
                Card(sees, "What the encoder sees", [f"{share:.0%} of {tokens} patches hidden"]),
                Card(made.picture, "What the decoder makes of it", markup.figures(made.figures)),
            ],
            "the image with hidden patches",
        )

    def between(self, first: Latent, second: Latent, t: float) -> str:
        """What lies between two images."""
        now, *pictures = self.looker.between(first, second, [t, *FRACTIONS])
        ends = Card(first.picture, "First"), Card(second.picture, "Second")
        row = [Card(picture, f"t = {place:g}") for picture, place in zip(pictures, FRACTIONS, strict=True)]
        return markup.featured([ends[0], Card(now, f"t = {t:g}"), ends[1]], row, "between the two images")


@dataclass(frozen=True)
class _Parts:
    """The tab's components."""

    again: gr.Button
    """Asks for the first look once more; pressed by the page itself."""
    first: gr.State
    """The first image's `Latent`, of each visitor, or None before there is one."""
    first_came: gr.Number
    """When it came: what changes with the image, for the browser to notice."""
    second: gr.State
    """The second image's."""
    second_came: gr.Number
    drop: gr.File
    thumbs: gr.HTML
    whole: gr.HTML
    strength: gr.Slider
    epsilon: gr.Slider
    noise: gr.HTML
    share: gr.Slider
    others: gr.Button
    draw: gr.Number
    """Which patches are hidden, beside how many."""
    hidden: gr.HTML
    drop_2: gr.File
    thumbs_2: gr.HTML
    t: gr.Slider
    mixed: gr.HTML


def build(bench: Workbench, page: gr.Blocks) -> None:
    """Adds the tab's content."""
    parts = _layout(bench)
    _listen_for_images(bench, parts, page)
    _listen_to_sliders(bench, _Views(bench), parts)


def _layout(bench: Workbench) -> _Parts:
    parts: dict[str, Any] = {"again": gr.Button(visible="hidden", elem_id="look-again")}
    for name in ("first", "second"):
        parts[name] = gr.State(None, time_to_live=KEPT_FOR)
        parts[f"{name}_came"] = gr.Number(0, visible="hidden")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            parts["drop"], parts["thumbs"] = picker(bench, "Drop an image here", "look")
        with gr.Column(scale=3, min_width=600):
            parts["whole"] = gr.HTML(markup.waiting("Looking at the first image …"), elem_id="look-whole")
            parts["strength"] = gr.Slider(
                1, 20, value=STRENGTH, step=1, label="Difference amplified", elem_id="strength"
            )
    with gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Noise on the latents"):
            parts |= _noise_layout()
        with gr.Tab("Hidden patches"):
            parts |= _hidden_layout(can_hide=not bench.looker.cannot_hide)
        with gr.Tab("Between two images"):
            parts |= _between_layout(bench)
    return _Parts(**parts)


def _noise_layout() -> dict[str, Any]:
    epsilon = gr.Slider(
        0,
        STRONGEST_NOISE,
        value=NOISE,
        step=0.01,
        label="Noise ε",
        info="In deviations of each latent channel. A smooth latent space forgives it: a small error of the "
        "diffusion model then stays a small error in the picture.",
        elem_id="epsilon",
    )
    return {"epsilon": epsilon, "noise": gr.HTML(elem_id="look-noise")}


def _hidden_layout(can_hide: bool) -> dict[str, Any]:
    with gr.Row(elem_classes="ld-level"):
        share = gr.Slider(
            0,
            MOST_HIDDEN,
            value=HIDDEN,
            step=0.05,
            label="Hidden share",
            info="Of the patches, which the encoder never gets. The paper trains with 0.6; a decoder "
            "that was then tuned on whole images is out of practice.",
            interactive=can_hide,
            elem_id="hidden-share",
        )
        others = gr.Button(
            "Hide other patches",
            size="sm",
            scale=0,
            min_width=150,
            interactive=can_hide,
            elem_id="hide-others",
        )
    return {
        "share": share,
        "others": others,
        "draw": gr.Number(0, visible="hidden", precision=0),
        "hidden": gr.HTML(elem_id="look-hidden"),
    }


def _between_layout(bench: Workbench) -> dict[str, Any]:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            drop, thumbs = picker(bench, "Drop the second image here", "second")
        with gr.Column(scale=3, min_width=600):
            t = gr.Slider(
                0,
                1,
                value=HALF_WAY,
                step=0.01,
                label="Place t between the two",
                info="The latents are mixed, not the pixels: (1 − t) · first + t · second.",
                elem_id="between-t",
            )
            mixed = gr.HTML(elem_id="look-between")
    return {"drop_2": drop, "thumbs_2": thumbs, "t": t, "mixed": mixed}


def _listen_for_images(bench: Workbench, parts: _Parts, page: gr.Blocks) -> None:
    """Encodes what is dropped or picked, and the first samples as the page opens."""

    def encoded(image: Image.Image) -> tuple[Latent, float]:
        return bench.looker.encode(image), time.time()

    @told
    async def encode_uploaded(request: gr.Request, content: bytes | None) -> tuple[Latent, float]:
        def work(job: Job) -> tuple[Latent, float]:
            with job.aside():
                image = uploaded(bench, content)
            return encoded(image)

        return await answered(work, bench.light, visitor_of(request))

    @told
    async def encode_picked(event: gr.EventData, request: gr.Request) -> tuple[Latent, float]:
        image = picked(bench, event)
        return await answered(lambda job: encoded(image), bench.light, visitor_of(request))

    @told
    async def encode_samples(request: gr.Request) -> tuple[Latent, float, Latent, float]:
        def work(job: Job) -> tuple[Latent, float, Latent, float]:
            first, second = (encoded(sample.image) for sample in bench.samples[:2])
            return *first, *second

        try:
            return await answered(work, bench.light, visitor_of(request))
        except UserError as busy:  # the page asks again by itself, see ASK_AGAIN
            raise gr.Error(str(busy), visible=False, print_exception=False) from None

    first, second = [parts.first, parts.first_came], [parts.second, parts.second_came]
    take_image(parts.drop, parts.thumbs, encode_uploaded, [parts.drop], first)
    take_image(parts.drop_2, parts.thumbs_2, encode_uploaded, [parts.drop_2], second)
    parts.thumbs.click(encode_picked, None, first, **PICKING)
    parts.thumbs_2.click(encode_picked, None, second, **PICKING)
    # the first look is asked for again after a while where the page was too busy for it
    for asked in (page.load, parts.again.click):
        looked = asked(encode_samples, None, [*first, *second], **PICKING)
        looked.failure(None, None, None, js=ASK_AGAIN, **INSTANT)


def _listen_to_sliders(bench: Workbench, views: _Views, parts: _Parts) -> None:
    """Shows a view anew when its slider moves or its image comes: one listener, so that the newest wins."""

    def listen(view: Callable[..., str], triggers: list[Any], inputs: list[Any], output: gr.HTML) -> None:
        @told
        async def handler(request: gr.Request, came: float, *values: Any) -> Any:
            if not came:  # there is no image yet
                return gr.skip()
            if None in values[:2]:
                raise forgotten()
            return await answered(lambda job: view(*values), bench.light, visitor_of(request))

        gr.on([each.change for each in triggers], handler, [parts.first_came, *inputs], output, **QUICK)

    first, came = parts.first, parts.first_came
    listen(views.whole, [parts.strength, came], [first, parts.strength], parts.whole)
    listen(views.noise, [parts.epsilon, came], [first, parts.epsilon], parts.noise)
    listen(views.hidden, [parts.share, parts.draw, came], [first, parts.share, parts.draw], parts.hidden)
    mixing = [parts.t, came, parts.second_came]
    listen(views.between, mixing, [first, parts.second, parts.t], parts.mixed)
    parts.others.click(lambda draw: draw + 1, parts.draw, parts.draw, **INSTANT)
