"""The pages in a real browser: Debian's chromium, driven by Playwright."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page

from ldmae.report.comparison import render_comparison
from ldmae.report.run import render_report

from .drawn_units import write_unit
from .test_run import measure_all

PAGES = ["report", "comparison"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that outlives the test which first made a page."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def page_path(request: pytest.FixtureRequest, pages: Path, run_folder: Path, tmp_path: Path) -> Path:
    """Returns a page of its kind, made once."""
    kind = request.param
    page = pages / f"{kind}.html"
    if not page.exists():
        if kind == "report":
            measure_all(run_folder)
            made = render_report(run_folder)
        else:
            for name in ("ae", "sd-vae", "vmae", "vmae-mse"):
                write_unit(tmp_path / "compare", name, 0)
            made = render_comparison(tmp_path / "compare")
        shutil.copy(made, page)
    return page


def opened(browser: Browser, path: Path, width: int = 1200, scheme: str = "light") -> tuple[Page, list[str]]:
    """Opens a page and returns it, and what it complained of or asked for besides itself."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    strange: list[str] = []
    page.on("console", lambda message: strange.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: strange.append(f"error: {error}"))
    page.on("request", lambda request: strange.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    return page, [entry for entry in strange if entry != path.as_uri() and not entry.startswith("data:")]


@pytest.mark.parametrize("page_path", PAGES, indirect=True)
def test_a_page_asks_for_nothing_and_complains_of_nothing(browser: Browser, page_path: Path):
    page, strange = opened(browser, page_path)
    assert strange == []
    assert page.title()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page_path", PAGES, indirect=True)
def test_every_image_is_drawn(browser: Browser, page_path: Path, scheme: str):
    page, _ = opened(browser, page_path, scheme=scheme)
    sizes = page.eval_on_selector_all("img", "all => all.map(img => [img.naturalWidth, img.naturalHeight])")
    assert len(sizes) >= 7
    assert all(width > 100 and height > 50 for width, height in sizes)
    page.close()


@pytest.mark.parametrize("width", [360, 800])
@pytest.mark.parametrize("page_path", PAGES, indirect=True)
def test_a_narrow_page_never_scrolls_sideways_as_a_whole(browser: Browser, page_path: Path, width: int):
    page, _ = opened(browser, page_path, width=width)
    page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, p, dd, li, figcaption, summary")]
            .filter(each => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth)
            .map(each => each.textContent.slice(0, 80))"""
    )
    assert wide == []
    page.close()


@pytest.mark.parametrize("page_path", PAGES, indirect=True)
def test_a_dark_page_has_light_text_and_plots_for_it(browser: Browser, page_path: Path):
    levels = {}
    for scheme in ("light", "dark"):
        page, _ = opened(browser, page_path, scheme=scheme)
        colours = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        levels[scheme] = [sum(int(part) for part in colour[4:-1].split(",")) for colour in colours]
        plots = page.evaluate(
            """() => [...document.querySelectorAll("picture")].map(each => [
                each.querySelector("img").currentSrc === each.querySelector("source").srcset,
                each.querySelector("img").currentSrc === each.querySelector("img").src])"""
        )
        assert plots
        assert all(plot == ([True, False] if scheme == "dark" else [False, True]) for plot in plots)
        page.close()
    assert levels["light"][0] > 600 > 200 > levels["light"][1]
    assert levels["dark"][0] < 200 < 600 < levels["dark"][1]


@pytest.mark.parametrize("page_path", PAGES, indirect=True)
def test_the_keyboard_reaches_and_scrolls_every_region(browser: Browser, page_path: Path):
    page, _ = opened(browser, page_path, width=360)
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
    page.close()


def _overflow(region: Locator) -> int:
    return region.evaluate("each => each.scrollWidth - each.clientWidth")
