"""The page's colours and sizes: Gradio's theme, with text that is legible at 14 pixels."""

from __future__ import annotations

from gradio import themes

FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def page_theme() -> themes.Base:
    """Returns the theme. Its texts have a contrast of at least 4.5 : 1 in both modes (WCAG 2.2, 1.4.3)."""
    red = themes.colors.red
    theme = themes.Default(
        primary_hue=themes.colors.indigo,
        secondary_hue=themes.colors.indigo,
        neutral_hue=themes.colors.slate,
        radius_size=themes.sizes.radius_lg,
        font=FONT,
        font_mono=MONO,
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        link_text_color_dark="*secondary_300",
        link_text_color_hover_dark="*secondary_200",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_cancel_background_fill=red.c600,
        button_cancel_background_fill_hover=red.c700,
        block_info_text_size="*text_md",
        button_small_text_size="*text_md",
    )
