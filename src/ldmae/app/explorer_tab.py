"""The tab that looks into the autoencoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr
from PIL import Image

from ldmae.app import markup
from ldmae.app.components import (
    INSTANT,
    KEPT_FOR,
    PICKING,
    QUICK,
    forgotten,
    picker,
    take_image,
    told,
    visitor_of,
    work_columns,
)
from ldmae.app.explorer import MOST_HIDDEN, STRONGEST_NOISE, Latent, Seen
from ldmae.app.lines import answered
from ldmae.app.markup import Card
from ldmae.app.workbench import Workbench
from ldmae.config.evaluation import EPSILONS, FRACTIONS
from ldmae.core.errors import UserError, check_range
from ldmae.report.grids import difference

_NOISE, _HIDDEN, _HALF_WAY, _STRENGTH = 0.1, 0.6, 0.5, 4.0
"""Where the sliders begin."""
_STRENGTHS = (1, 20)
"""The weakest and the strongest amplification."""
_ASK_AGAIN = "() => { setTimeout(() => document.querySelector('#look-again').click(), 4000); }"
"""What the browser does where the first look failed."""


class _Views:
    """What the tab shows of a visitor's images, as HTML; nothing of a visitor's is kept in it."""

    def __init__(self, bench: Workbench) -> None:
        self.size, self.explorer = bench.size, bench.explorer

    def whole(self, latent: Latent) -> str:
        channels, h, w = latent.mean.shape[1:]
        ratio = latent.image.numel() / latent.mean.numel()
        about = [f"Latent {channels} × {h} × {w} · {ratio:.3g}× compression", "3 principal components as RGB"]
        shown = [
            Card(latent.picture, "Original", [f"{self.size} × {self.size} pixels"]),
            _card(self.explorer.reconstruction(latent), "Reconstruction"),
            Card(self.explorer.colours(latent), "Latents", about),
        ]
        return markup.cards(shown, "the image and its latents")

    def gap(self, latent: Latent, strength: float) -> str:
        check_range("the amplification", strength, *_STRENGTHS, f"{_STRENGTH:g} is usual")
        restored = self.explorer.reconstruction(latent).picture
        lost = difference(latent.picture, restored, strength)
        return markup.cards(
            [Card(lost, f"Difference × {strength:g}", ["Black = identical"])], "the difference"
        )

    def noise(self, latent: Latent, epsilon: float) -> str:
        return markup.cards(self._noisy(latent, [epsilon]), "with noise")

    def noise_steps(self, latent: Latent) -> str:
        return markup.strip(self._noisy(latent, EPSILONS), "with more and more noise")

    def _noisy(self, latent: Latent, epsilons: Sequence[float]) -> list[Card]:
        return [_card(self.explorer.noisy(latent, value), f"ε = {value:g}") for value in epsilons]

    def masked(self, latent: Latent, share: float, draw: int) -> str:
        if self.explorer.cannot_hide:
            return markup.note(f"Not available: {self.explorer.cannot_hide}.")
        sees, made = self.explorer.hidden(latent, share, draw)
        masked = f"{share:.0%} of {latent.mean[0, 0].numel()} patches masked"
        shown = [Card(sees, "Encoder input", [masked]), _card(made, "Decoder output")]
        return markup.cards(shown, "the image with masked patches")

    def between(self, first: Latent, second: Latent, t: float) -> str:
        ends = Card(first.picture, "First"), Card(second.picture, "Second")
        return markup.cards([ends[0], *self._mixed(first, second, [t]), ends[1]], "between the two images")

    def between_steps(self, first: Latent, second: Latent) -> str:
        return markup.strip(self._mixed(first, second, FRACTIONS), "from the first to the second image")

    def _mixed(self, first: Latent, second: Latent, fractions: Sequence[float]) -> list[Card]:
        pictures = self.explorer.between(first, second, fractions)
        return [Card(picture, f"t = {t:g}") for picture, t in zip(pictures, fractions, strict=True)]


def _card(seen: Seen, title: str) -> Card:
    return Card(seen.picture, title, markup.metrics(seen.metrics))


def build(bench: Workbench, page: gr.Blocks) -> None:
    """Adds the tab's content."""
    parts = _layout(bench)
    _listen_for_images(bench, parts, page)
    _listen_to_sliders(bench, _Views(bench), parts)


def _layout(bench: Workbench) -> SimpleNamespace:
    """Returns the tab's components by name."""
    parts = SimpleNamespace()
    # the page itself presses it, to ask for the first images once more
    parts.again = gr.Button(visible="hidden", elem_id="look-again")
    # of each image a visitor's `Latent`, or None, and when it came: what changes for the browser to notice
    parts.first, parts.second = (gr.State(None, time_to_live=KEPT_FOR) for _ in range(2))
    parts.first_came, parts.second_came = (gr.Number(0, visible="hidden") for _ in range(2))
    parts.status = gr.HTML(elem_id="look-status")
    controls, results = work_columns()
    with controls:
        parts.drop, parts.thumbs = picker(bench, "Your image", "look")
    with results, _row():
        with gr.Column(scale=3, min_width=320):
            parts.whole = gr.HTML(markup.waiting("Encoding the first example…"), elem_id="look-whole")
        with gr.Column(scale=1, min_width=200):
            parts.gap = gr.HTML(elem_id="look-gap")
            parts.strength = gr.Slider(
                *_STRENGTHS, value=_STRENGTH, step=1, label="Amplification", elem_id="strength"
            )
    with gr.Tabs():
        with gr.Tab("Latent noise"), _row():
            _noise_layout(parts)
        with gr.Tab("Masking"), _row():
            _masking_layout(parts, can_mask=not bench.explorer.cannot_hide)
        with gr.Tab("Interpolation"):
            _interpolation_layout(parts, bench)
    return parts


def _row() -> gr.Row:
    """Adds a row that is a column in narrow windows."""
    return gr.Row(equal_height=False, elem_classes="ld-row")


def _noise_layout(parts: SimpleNamespace) -> None:
    with gr.Column(scale=1, min_width=240):
        parts.noise = gr.HTML(elem_id="look-noise")
    with gr.Column(scale=4, min_width=320):
        parts.epsilon = gr.Slider(
            0,
            STRONGEST_NOISE,
            value=_NOISE,
            step=0.01,
            label="Noise ε",
            info="In standard deviations of each latent channel. In a smooth latent space, small errors of "
            "the diffusion model stay small errors in the image.",
            elem_id="epsilon",
        )
        parts.noise_steps = gr.HTML(elem_id="look-noise-steps")


def _masking_layout(parts: SimpleNamespace, can_mask: bool) -> None:
    with gr.Column(scale=2, min_width=320):
        parts.masked = gr.HTML(elem_id="look-masked")
    with gr.Column(scale=3, min_width=320):
        parts.share = gr.Slider(
            0,
            MOST_HIDDEN,
            value=_HIDDEN,
            step=0.05,
            label="Mask ratio",
            info="Share of the patches that the encoder does not get. The paper trains with 0.6. A decoder "
            "tuned on whole images afterwards fills in masked patches less well.",
            interactive=can_mask,
            elem_id="mask-ratio",
        )
        parts.redraw = gr.Button("New random mask", interactive=can_mask, elem_id="new-mask")
    parts.draw = gr.Number(0, visible="hidden", precision=0)


def _interpolation_layout(parts: SimpleNamespace, bench: Workbench) -> None:
    controls, results = work_columns()
    with controls:
        parts.drop_2, parts.thumbs_2 = picker(bench, "Second image", "second")
    with results:
        parts.mixed = gr.HTML(elem_id="look-between")
        parts.t = gr.Slider(
            0,
            1,
            value=_HALF_WAY,
            step=0.01,
            label="Interpolation t",
            info="Mixes the latents, not the pixels: (1 − t) · first + t · second.",
            elem_id="between-t",
        )
        parts.mixed_steps = gr.HTML(elem_id="look-between-steps")


def _listen_for_images(bench: Workbench, parts: SimpleNamespace, page: gr.Blocks) -> None:
    """Encodes what is dropped or picked, and the first samples as the page opens."""

    def encoded(*images: Image.Image) -> list[Any]:
        return [part for image in images for part in (bench.explorer.encode(image), time.time())] + [""]

    @told(parts.status)
    async def encode_samples(http: gr.Request) -> list[Any]:
        samples = [sample.image for sample in bench.samples[:2]]
        try:
            return await answered(lambda job: encoded(*samples), bench.light, visitor_of(http))
        except UserError as busy:  # the page asks again by itself, see _ASK_AGAIN
            raise gr.Error(str(busy), visible=False, print_exception=False) from None

    first, second = [parts.first, parts.first_came], [parts.second, parts.second_came]
    take_image(bench, parts.drop, parts.thumbs, encoded, [], [*first, parts.status])
    take_image(bench, parts.drop_2, parts.thumbs_2, encoded, [], [*second, parts.status])
    # the first look is asked for again after a while where the page was too busy for it
    for asked in (page.load, parts.again.click):
        looked = asked(encode_samples, None, [*first, *second, parts.status], **PICKING)
        looked.failure(None, None, None, js=_ASK_AGAIN, **INSTANT)


def _listen_to_sliders(bench: Workbench, views: _Views, parts: SimpleNamespace) -> None:
    """Shows a view again when its slider moves or its image comes: one listener, so that the newest wins."""

    def listen(view: Callable[..., str], triggers: list[Any], inputs: list[Any], output: gr.HTML) -> None:
        @told(output)  # an error takes the view's place until the next one
        async def handler(http: gr.Request, came: float, *values: Any) -> Any:
            if not came:  # there is no image yet
                return gr.skip()
            if None in values[:2]:
                raise forgotten()
            return await answered(lambda job: view(*values), bench.light, visitor_of(http))

        inputs = [parts.first_came, *inputs]
        gr.on([each.change for each in triggers], handler, inputs, output, **QUICK)

    first, came = parts.first, parts.first_came
    both, either = [first, parts.second], [came, parts.second_came]
    listen(views.whole, [came], [first], parts.whole)
    listen(views.gap, [parts.strength, came], [first, parts.strength], parts.gap)
    listen(views.noise, [parts.epsilon, came], [first, parts.epsilon], parts.noise)
    listen(views.noise_steps, [came], [first], parts.noise_steps)
    listen(views.masked, [parts.share, parts.draw, came], [first, parts.share, parts.draw], parts.masked)
    listen(views.between, [parts.t, *either], [*both, parts.t], parts.mixed)
    listen(views.between_steps, either, both, parts.mixed_steps)
    parts.redraw.click(lambda draw: draw + 1, parts.draw, parts.draw, **INSTANT)
