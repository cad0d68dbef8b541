"""What the page is built of, for models of other kinds; how it works is seen in the browser."""

import re
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from ldmae.app import markup
from ldmae.app.generate import generate, request_from
from ldmae.app.page import _page_theme, build_page
from ldmae.app.workbench import open_workbench

from ..tiny import tiny_pipeline as random_pipeline
from ..tiny import tiny_transformer
from .conftest import serving, tiny_pipeline, tiny_vae


def built(bench) -> dict:
    """Returns the properties of the page's components, by label or by id."""
    page = build_page(bench)
    found = {}
    for component in page.get_config_file()["components"]:
        properties = component["props"]
        for key in (properties.get("label"), properties.get("elem_id")):
            if key:
                found[key] = properties
    return found


def test_controls_begin_with_the_settings_of_the_run(bench):
    parts = built(bench)
    assert parts["Guidance"]["value"] == 2.0
    assert (parts["Guidance start"]["value"], parts["Guidance end"]["value"]) == (0.2, 0.9)
    assert parts["Steps"]["value"] == 7
    assert parts["Time shift"]["value"] == 0.5
    assert parts["mask-ratio"]["interactive"] is not False


def test_what_a_model_cannot_do_is_switched_off_and_explained(tmp_path):
    pipeline = tiny_pipeline(["only"])
    pipeline.register_modules(vae=tiny_vae(use_mask_token=False))
    pipeline.save_pretrained(tmp_path / "one")
    parts = built(open_workbench(str(tmp_path / "one")))
    assert parts["Guidance"]["interactive"] is False
    assert "no null class" in parts["Guidance"]["info"]
    assert parts["Guidance"]["value"] == 1.0
    assert [choice[0] for choice in parts["Class"]["choices"]] == ["only"]
    assert parts["mask-ratio"]["interactive"] is False


def test_the_page_opens_with_another_autoencoder_too(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
    )
    random_pipeline(vae, tiny_transformer(sample_size=16)).save_pretrained(tmp_path / "kl")
    bench = open_workbench(str(tmp_path / "kl"))
    assert bench.size == 32
    assert bench.class_names == ["0", "1"]
    parts = built(bench)
    assert parts["mask-ratio"]["interactive"] is False
    assert len(parts["Class"]["choices"]) == 3


def test_classes_of_the_same_name_are_told_apart(tmp_path):
    tiny_pipeline(["crane", "heron", "crane"]).save_pretrained(tmp_path / "birds")
    parts = built(open_workbench(str(tmp_path / "birds")))
    names = [choice[0] for choice in parts["Class"]["choices"]]
    assert names == ["All classes", "crane (0)", "heron", "crane (2)"]


def test_the_first_screen_says_what_it_is_and_shows_images_of_the_shipped_model():
    bench = open_workbench("pretrained:emoji-three", device="cpu", may_name=True)
    parts = built(bench)
    assert parts["generate-pictures"]["value"].count("<figure") == 8
    assert "8 example images" in parts["generate-status"]["value"]
    assert "masked autoencoders</a>: generate images with a <a" in markup.header("emoji-three", bench.facts)
    assert not [fact for fact in bench.facts if "CPU" in fact]
    assert len(parts["compare-names"]["value"]) == 2  # with the first that can be had
    example = bench.examples[0]
    [again] = generate(
        bench.pipeline, request_from(example.settings, bench.class_names, 1), bench.class_names
    )
    gap = np.asarray(again.image, float) - np.asarray(example.image)
    assert np.abs(gap).mean() < 2  # else generate._EXAMPLES must be made again with the new weights


def test_images_of_another_model_are_not_shown_as_its_own(bench):
    assert bench.examples == []
    assert "Images appear here" in built(bench)["generate-pictures"]["value"]


def test_nothing_can_be_called_but_through_the_page(bench):
    page = build_page(bench)
    assert page.get_api_info()["named_endpoints"] == {}
    assert all(each["api_visibility"] == "private" for each in page.get_config_file()["dependencies"])


def test_one_request_sends_no_more_than_one_upload(bench, tmp_path):
    small = replace(bench, limits=replace(bench.limits, bytes=100_000))
    with serving(small, tmp_path) as (address, _):
        url = f"{address}gradio_api/upload"
        one, many = [
            httpx.post(url, files=[("files", (f"{k}.png", b"0" * 90_000)) for k in range(count)])
            for count in (1, 2)
        ]
        unsized = httpx.post(url, content=iter([b"0" * 10]))
    assert one.status_code == 200, one.text
    assert many.status_code == 413
    assert "the file has 0.2 MiB, and this page takes at most" in many.text
    assert unsized.status_code == 411


# ---- contrast

FILLS = (
    "background_fill_primary",
    "background_fill_secondary",
    "body_background_fill",
    "block_background_fill",
)
TEXTS = (
    "body_text_color",
    "body_text_color_subdued",
    "block_title_text_color",
    "block_label_text_color",
    "block_info_text_color",
    "link_text_color",
    "link_text_color_hover",
)
PAIRS = [
    *((text, fill) for text in TEXTS for fill in FILLS),
    ("input_placeholder_color", "input_background_fill"),
    ("body_text_color", "input_background_fill"),
    ("checkbox_label_text_color", "checkbox_label_background_fill"),
    ("button_primary_text_color", "button_primary_background_fill"),
    ("button_primary_text_color", "button_primary_background_fill_hover"),
    ("button_cancel_text_color", "button_cancel_background_fill"),
    ("button_cancel_text_color", "button_cancel_background_fill_hover"),
    ("button_secondary_text_color", "button_secondary_background_fill"),
]
SHADES = {"best": ("#22c55e", 0.16), "good": ("#22c55e", 0.13), "bad": ("#ef4444", 0.13)}
"""Of style.css: what is mixed over the background, and how much."""


def colour(name: str, dark: bool) -> tuple[float, ...]:
    """Returns a variable's red, green and blue in [0, 1]."""
    theme = _page_theme()
    value = (getattr(theme, f"{name}_dark", None) if dark else None) or getattr(theme, name)
    if value.startswith("*"):
        return colour(value[1:], dark and not re.search(r"_\d+$", value))
    value = {"white": "#ffffff", "black": "#000000"}.get(value, value)
    return tuple(int(value[k : k + 2], 16) / 255 for k in (1, 3, 5))


def luminance(rgb: tuple[float, ...]) -> float:
    """Returns WCAG's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Returns WCAG's contrast, from 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_a_contrast_of_four_and_a_half(dark):
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    weak = {
        (text, fill): round(contrast(colour(text, dark), colour(fill, dark)), 2)
        for text, fill in PAIRS
        if contrast(colour(text, dark), colour(fill, dark)) < 4.5
    }
    assert weak == {}
    ground = colour("background_fill_primary", dark)
    for shade, share in SHADES.values():
        mixed = tuple(
            share * int(shade[k : k + 2], 16) / 255 + (1 - share) * c
            for k, c in zip((1, 3, 5), ground, strict=True)
        )
        assert contrast(colour("body_text_color_subdued", dark), mixed) >= 4.5
