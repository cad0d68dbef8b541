"""The pages in a real browser: Debian's chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page

from ldmae.report.comparison import render_comparison
from ldmae.report.run import render_report

from .drawn_units import write_unit
from .test_run import measure_all


@pytest.fixture(scope="module", params=["report", "comparison"])
def opened(
    request: pytest.FixtureRequest,
    browser: Browser,
    finished_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Page, list[str]]]:
    """A page of each kind, and what it complained of or asked for besides itself."""
    folder = tmp_path_factory.mktemp("page") / "made"
    if request.param == "report":
        shutil.copytree(finished_run, folder)
        measure_all(folder)
        path = render_report(folder)
    else:
        for name in ("ae", "sd-vae", "vmae", "vmae-mse"):
            write_unit(folder, name, 0)
        path = render_comparison(folder)
    page, strange = browser.new_page(), []
    page.on("console", lambda message: strange.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: strange.append(f"error: {error}"))
    page.on("request", lambda asked: strange.append(asked.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    strange = [entry for entry in strange if entry != path.as_uri() and not entry.startswith("data:")]
    yield page, strange
    page.close()


@pytest.fixture
def page(opened: tuple[Page, list[str]]) -> Page:
    """The page, light and wide, as it was opened."""
    page, _ = opened
    show(page)
    page.eval_on_selector_all("[data-unfolded]", "all => all.forEach(each => each.open = false)")
    return page


def show(page: Page, width: int = 1200, scheme: str = "light") -> None:
    """Shows a page in a window of another size, or in the dark."""
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]


def test_a_page_asks_for_nothing_and_complains_of_nothing(opened: tuple[Page, list[str]]):
    page, strange = opened
    assert strange == []
    assert page.title()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_image_is_drawn(page: Page, scheme: str):
    show(page, scheme=scheme)
    page.eval_on_selector_all("img", "all => Promise.all(all.map(img => img.decode()))")
    sizes = page.eval_on_selector_all("img", "all => all.map(img => [img.naturalWidth, img.naturalHeight])")
    assert len(sizes) >= 7
    assert all(width > 100 and height > 50 for width, height in sizes)


@pytest.mark.parametrize("width", [360, 800])
def test_a_narrow_page_never_scrolls_sideways_as_a_whole(page: Page, width: int):
    show(page, width)
    unfold = "all => all.forEach(each => { each.open = true; each.dataset.unfolded = true })"
    page.eval_on_selector_all("details:not([open])", unfold)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, p, dd, li, figcaption, summary")]
            .filter(each => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth)
            .map(each => each.textContent.slice(0, 80))"""
    )
    assert wide == []


def test_a_dark_page_has_light_text_and_plots_for_it(page: Page):
    levels = {}
    for scheme in ("light", "dark"):
        show(page, scheme=scheme)
        colours = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        levels[scheme] = [sum(int(part) for part in colour[4:-1].split(",")) for colour in colours]
        page.wait_for_function(  # a picture is chosen after the page has heard of the scheme
            """dark => [...document.querySelectorAll("picture")].map(plot => {
                const wanted = plot.querySelector(dark ? "source" : "img")[dark ? "srcset" : "src"];
                return plot.querySelector("img").currentSrc === wanted;
            }).reduce((all, one) => all && one)""",  # of no plots it fails
            arg=scheme == "dark",
        )
    assert levels["light"][0] > 600 > 200 > levels["light"][1]
    assert levels["dark"][0] < 200 < 600 < levels["dark"][1]


def test_the_keyboard_reaches_and_scrolls_every_region(page: Page):
    show(page, 360)
    regions = page.locator(".scroll, pre")
    wide = [region for region in regions.all() if region.is_visible() and _overflow(region) > 40]
    assert wide
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        place = page.evaluate(
            "[...document.querySelectorAll('.scroll, pre')].indexOf(document.activeElement)"
        )
        reached.add(place)
        if page.evaluate("document.activeElement === document.body"):
            break
    for region in wide:
        assert (
            region.evaluate("each => [...document.querySelectorAll('.scroll, pre')].indexOf(each)") in reached
        )
        assert region.evaluate("each => each.tagName === 'PRE' || !!each.getAttribute('aria-label')")
    region = wide[0]
    region.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("each => each.scrollLeft > 0", arg=region.element_handle())


def _overflow(region: Locator) -> int:
    return region.evaluate("each => each.scrollWidth - each.clientWidth")
