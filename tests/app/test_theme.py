"""The page's colours, computed from the theme's variables."""

import re

import pytest

pytest.importorskip("gradio", reason="pip install gradio")

from ldmae.app.theme import page_theme

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
    theme = page_theme()
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
