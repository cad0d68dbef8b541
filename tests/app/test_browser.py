"""The page in a real browser, end to end: Debian's chromium, driven by Playwright."""

import io
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from ldmae import LDMAEPipeline
from ldmae.app.generate import read_settings
from ldmae.app.lines import Visitor
from ldmae.app.turns import Job
from ldmae.app.uploads import MIB, Limits
from ldmae.app.workbench import open_workbench
from ldmae.images.transforms import center_crop

from ..pictures import encoded
from .conftest import CLASSES, SIZE, photo, serving
from .test_lines import jobs

LIMITS = Limits(bytes=MIB // 4, pixels=1_000_000)
PATIENCE = 20_000
"""Milliseconds that the page may take for anything, on a slow machine that does other things too."""


class Brake:
    """Makes every evaluation of the diffusion model last longer, for jobs that are to be caught at work."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0

    def __call__(self, *_: object) -> None:
        self.steps += 1
        time.sleep(self.seconds)


@pytest.fixture(scope="module")
def served(
    folders: SimpleNamespace, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """The page of the tiny run, served by this process to browsers on this machine."""
    offered = (str(folders.other), "pretrained:emoji")  # of 32 and 48 pixels
    bench = open_workbench(str(folders.run), device="cpu", may_name=True, limits=LIMITS, offered=offered)
    brake = Brake()
    bench.pipeline.transformer.register_forward_pre_hook(brake)
    bench.__dict__["pace"] = 0.01  # of a large model: seconds of an image and an evaluation
    uploads = tmp_path_factory.mktemp("uploads")
    with serving(bench, uploads) as (address, page):
        yield SimpleNamespace(address=address, bench=bench, brake=brake, page=page, uploads=uploads)


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One cache for all: the page's scripts are fetched and compiled once. The page keeps nothing in it."""
    opened = browser.new_context()
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext, served: SimpleNamespace) -> Iterator[Page]:
    served.brake.seconds = 0.0
    visited = visit(context, served)
    yield visited
    visited.close()


def visit(context: BrowserContext, served: SimpleNamespace, width: int = 1280) -> Page:
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(served.address)
    page.locator("#generate").wait_for()
    return page


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def drop(page: Page, key: str, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    page.locator(f"#{key} input[type=file]").set_input_files(file)  # type: ignore[arg-type]


def enter(field: Locator, value: float) -> None:
    """Fills a field in; again where what has only just been unfolded took its first value once more."""

    def filled() -> bool:
        field.fill(str(value))
        field.page.wait_for_timeout(150)
        return float(field.input_value()) == value

    wait_until(field.page, filled)


def slide(page: Page, key: str, value: float) -> None:
    enter(page.locator(f"#{key} input[type=range]"), value)


def number(page: Page, label: str) -> Locator:
    return page.get_by_label(f"number input for {label}", exact=True)


def set_controls(page: Page, *, class_name: str = "", count: int = 2, seed: int = 3, steps: int = 5) -> None:
    if class_name:
        page.get_by_label("Class", exact=True).click()
        page.get_by_role("option", name=class_name).click()
    enter(number(page, "Images"), count)
    enter(number(page, "Steps"), steps)
    enter(page.get_by_label("Seed", exact=True), seed)
    page.get_by_label("Seed", exact=True).press("Tab")


def saved(page: Page) -> list[bytes]:
    """Returns the PNG files that the page offers to save, once they are there."""
    buttons = page.locator("#generate-pictures [data-do='save'] >> text=Save PNG")
    buttons.first.wait_for()
    return [_download(page, button) for button in buttons.all()]


def _download(page: Page, link: Locator) -> bytes:
    with page.expect_download() as download:
        link.click()
    return Path(download.value.path()).read_bytes()


def generate(page: Page) -> list[bytes]:
    """Presses the button, waits for new pictures, and returns their files."""
    page.evaluate("document.querySelectorAll('#generate-pictures figure').forEach(it => it.dataset.old = 1)")
    page.locator("#generate").click()
    page.locator("#generate-pictures figure:not([data-old]) .ld-acts").first.wait_for()
    expect(page.locator("#generate-status")).to_contain_text("Settings are stored in the PNG.")
    return saved(page)


def shown(page: Page, key: str, place: int) -> np.ndarray:
    """Returns the pixels of a picture that the page shows."""
    address = page.locator(f"#{key} img").nth(place).get_attribute("src")
    assert address is not None
    data = page.evaluate(
        "async address => [...new Uint8Array(await (await fetch(address)).arrayBuffer())]", address
    )
    return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))


def wait_until(page: Page, true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        page.wait_for_timeout(50)


def bad(page: Page, key: str) -> Locator:
    """Returns what a status bar says that went wrong."""
    return page.locator(f"#{key}-status").get_by_role("alert")


# ---- generate


def test_pictures_are_generated_and_carry_their_settings(page: Page):
    page.get_by_label("Class", exact=True).click()
    options = page.get_by_role("option").all_inner_texts()
    assert [option.strip("✓ \n") for option in options] == ["All classes", *CLASSES]
    page.keyboard.press("Tab")
    set_controls(page, class_name="hearts", count=3, seed=11)
    settings = [read_settings(content) for content in generate(page)]
    made = [(each["class"], each["seed"], each["steps"]) for each in settings]
    assert made == [("hearts", seed, 5) for seed in (11, 12, 13)]
    assert settings[0]["guidance"] == 2.0  # the run's own
    assert settings[0]["guidance_interval"] == [0.2, 0.9]


def test_each_job_gets_a_new_seed_unless_it_is_locked(page: Page):
    set_controls(page, count=1, seed=4)  # who enters a seed locks it
    lock = page.get_by_label("Lock seed")
    expect(lock).to_be_checked()
    first, again = generate(page), generate(page)
    assert first == again
    lock.uncheck()
    other, another = (read_settings(generate(page)[0])["seed"] for _ in range(2))
    assert len({4, other, another}) == 3
    expect(page.get_by_label("Seed", exact=True)).to_have_value(str(another))


def test_a_dropped_picture_fills_in_its_settings_and_is_made_again(page: Page):
    set_controls(page, class_name="clocks", count=2, seed=21, steps=6)
    page.get_by_text("Advanced settings").click()
    enter(number(page, "Guidance start"), 0.4)
    page.get_by_label("Heun").check()
    number(page, "Guidance start").press("Tab")
    picture = generate(page)[1]
    page.reload()
    expect(number(page, "Steps")).to_have_value("7")
    drop(page, "settings-drop", "renamed.png", picture)
    expect(page.locator("#generate-status")).to_contain_text("Settings filled in: clocks, seed 22")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("22")
    expect(number(page, "Steps")).to_have_value("6")
    expect(number(page, "Images")).to_have_value("1")
    page.get_by_text("Advanced settings").click()
    expect(page.get_by_label("Heun")).to_be_checked()
    expect(number(page, "Guidance start")).to_have_value("0.4")
    (again,) = generate(page)
    gap = _pixels(again).astype(int) - _pixels(picture)
    assert np.abs(gap).max() <= 1
    assert read_settings(again) == read_settings(picture)


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_pictures_are_shown_on_their_way_and_the_job_can_be_stopped(page: Page, served: SimpleNamespace):
    served.brake.seconds = 0.1
    set_controls(page, count=2, steps=200)
    expect(page.locator("#generate-stop")).to_be_hidden()
    page.locator("#generate").click()
    expect(page.locator("#generate-stop")).to_be_visible()
    expect(page.locator("#generate")).to_be_hidden()
    expect(page.locator("#generate-pictures")).to_contain_text("preview")
    expect(page.locator("#generate-status")).to_contain_text(re.compile(r"Step \d+ of 200 .* left"))
    before = shown(page, "generate-pictures", 0)
    wait_until(page, lambda: not np.array_equal(before, shown(page, "generate-pictures", 0)))
    page.locator("#generate-stop").click()
    expect(page.locator("#generate-status")).to_contain_text("Stopped.")
    wait_until(page, lambda: not jobs(), 5)
    steps = served.brake.steps
    page.wait_for_timeout(500)
    assert served.brake.steps == steps
    expect(page.locator("#generate-status")).to_contain_text("Stopped.")
    expect(page.locator("#generate-stop")).to_be_hidden()
    served.brake.seconds = 0.0
    set_controls(page, count=1)
    assert len(generate(page)) == 1  # and the page works on


def test_a_job_that_fails_midway_says_so(page: Page, served: SimpleNamespace):
    def fail(*_: object) -> None:
        if served.brake.steps % 4 == 3:
            raise torch.OutOfMemoryError("no memory")

    failing = served.bench.pipeline.transformer.register_forward_hook(fail)
    try:
        set_controls(page, count=1, steps=30)
        page.locator("#generate").click()
        expect(bad(page, "generate")).to_contain_text("ran out of memory")
        expect(page.locator("#generate-stop")).to_be_hidden()
    finally:
        failing.remove()
    assert len(generate(page)) == 1  # and the page works on


def test_an_image_can_be_saved_made_again_and_sent_to_the_autoencoder(page: Page, served: SimpleNamespace):
    set_controls(page, count=2, seed=40)
    pictures = generate(page)
    whole = zipfile.ZipFile(io.BytesIO(_download(page, page.locator("a.ld-all"))))
    assert [whole.read(name) for name in sorted(whole.namelist())] == pictures
    page.get_by_label("Lock seed").uncheck()
    page.get_by_text("Use this seed").nth(1).click()
    expect(page.locator("#generate-status")).to_contain_text("Class hearts and seed 41 are set")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("41")
    expect(page.get_by_label("Lock seed")).to_be_checked()
    again = generate(page)[0]
    assert read_settings(again) == read_settings(pictures[1])
    page.get_by_text("Send to Autoencoder").first.click()
    page.locator("#look-whole img").first.wait_for()
    wait_until(page, lambda: np.array_equal(_pixels(again), shown(page, "look-whole", 0)))
    restored = page.locator("#look-whole .ld-image").nth(1)
    restored.hover()
    assert np.array_equal(_pixels(_download(page, restored.locator("button"))), shown(page, "look-whole", 1))


def test_closing_the_tab_stops_the_job(page: Page, context: BrowserContext, served: SimpleNamespace):
    served.brake.seconds = 0.1
    leaving = visit(context, served)
    set_controls(leaving, count=1, steps=250)
    leaving.locator("#generate").click()
    expect(leaving.locator("#generate-status")).to_contain_text("of 250")
    assert jobs()
    leaving.close()
    wait_until(page, lambda: not jobs(), 15)
    assert not served.bench.heavy._running


def test_settings_that_make_no_sense_or_take_minutes_are_told(page: Page):
    page.get_by_text("Advanced settings").click()
    enter(number(page, "Guidance start"), 0.95)
    enter(number(page, "Guidance end"), 0.5)
    number(page, "Guidance end").press("Tab")
    page.locator("#generate").click()
    expect(bad(page, "generate")).to_contain_text("before its start")
    expect(page.locator("#generate-stop")).to_be_hidden()
    expect(page.get_by_test_id("toast-body")).to_have_count(0)
    expect(page.locator("#generate-estimate")).not_to_contain_text("About")
    enter(number(page, "Guidance end"), 1.0)
    enter(number(page, "Images"), 64)
    enter(number(page, "Steps"), 250)
    expect(page.locator("#generate-estimate")).to_contain_text("About 2 min")


def test_a_file_without_settings_is_told_and_the_drop_zone_is_free_again(page: Page):
    files = [("notes.txt", b"hello", "not a PNG"), ("other.png", encoded(photo()), "has no ldmae settings")]
    for name, content, told in files:
        drop(page, "settings-drop", name, content)
        expect(bad(page, "generate")).to_contain_text(told)
        page.locator("#settings-drop input[type=file]").wait_for(state="attached")


# ---- look


def test_an_uploaded_image_is_looked_into(page: Page, served: SimpleNamespace):
    tab(page, "Autoencoder")
    expect(page.locator("#look-whole img")).to_have_count(3)
    before = shown(page, "look-whole", 0)
    drop(page, "look-drop", "mine.png", encoded(photo(seed=7)))
    wait_until(page, lambda: not np.array_equal(before, shown(page, "look-whole", 0)))
    explorer = served.bench.explorer
    latent = explorer.encode(photo(seed=7))
    assert np.array_equal(shown(page, "look-whole", 0), latent.picture)
    assert np.array_equal(shown(page, "look-whole", 1), explorer.reconstruction(latent).picture)
    expect(page.locator("#look-whole")).to_contain_text("PSNR")
    expect(page.locator("#look-whole")).to_contain_text("ST-LPIPS-alex")
    page.locator("#look-drop input[type=file]").wait_for(state="attached")


def test_sliders_change_the_pictures(page: Page, served: SimpleNamespace):
    tab(page, "Autoencoder")
    page.locator("#look-samples button").nth(2).click()
    explorer = served.bench.explorer
    latent = explorer.encode(served.bench.samples[2].image)
    wait_until(page, lambda: np.array_equal(shown(page, "look-whole", 0), latent.picture))
    slide(page, "strength", 8)
    expect(page.locator("#look-gap")).to_contain_text("Difference × 8")
    slide(page, "epsilon", 0.5)
    expect(page.locator("#look-noise")).to_contain_text("ε = 0.5")
    assert np.array_equal(shown(page, "look-noise", 0), explorer.noisy(latent, 0.5).picture)
    tab(page, "Masking")
    slide(page, "mask-ratio", 0.25)
    expect(page.locator("#look-masked")).to_contain_text("25% of 16 patches masked")
    sees = shown(page, "look-masked", 0)
    assert np.array_equal(sees, explorer.hidden(latent, 0.25)[0])
    page.locator("#new-mask").click()
    wait_until(page, lambda: not np.array_equal(sees, shown(page, "look-masked", 0)))


def test_two_images_are_mixed(page: Page, served: SimpleNamespace):
    tab(page, "Autoencoder")
    tab(page, "Interpolation")
    expect(page.locator("#look-between img")).to_have_count(3)
    expect(page.locator("#look-between-steps img")).to_have_count(5)
    page.locator("#second-samples button").nth(3).click()
    samples, explorer = served.bench.samples, served.bench.explorer
    ends = [explorer.encode(samples[k].image) for k in (0, 3)]
    wait_until(page, lambda: np.array_equal(shown(page, "look-between", 2), ends[1].picture))
    slide(page, "between-t", 0.25)
    expect(page.locator("#look-between")).to_contain_text("t = 0.25")
    wait_until(
        page, lambda: np.array_equal(shown(page, "look-between", 1), explorer.between(*ends, [0.25])[0])
    )
    drop(page, "second-drop", "mine.webp", encoded(photo(seed=5), "webp"))
    other = explorer.encode(Image.open(io.BytesIO(encoded(photo(seed=5), "webp"))).convert("RGB"))
    wait_until(page, lambda: np.array_equal(shown(page, "look-between", 2), other.picture))


def test_wrong_files_are_told_and_change_nothing(page: Page):
    tab(page, "Autoencoder")
    expect(page.locator("#look-whole img")).to_have_count(3)
    before = shown(page, "look-whole", 0)
    wide = encoded(Image.new("1", (1001, 1000)))
    wrong = [
        ("notes.png", b"hello", "can't read the file as an image"),
        ("half.png", encoded(photo())[:300], "damaged or incomplete"),
        ("wide.png", wide, "1,001 × 1,000 pixels"),
    ]
    for name, content, told in wrong:
        drop(page, "look-drop", name, content)
        expect(bad(page, "look")).to_contain_text(told)
        expect(bad(page, "look")).not_to_contain_text("Traceback")
        page.locator("#look-drop input[type=file]").wait_for(state="attached")
    assert np.array_equal(before, shown(page, "look-whole", 0))
    page.locator("#look-samples button").nth(1).click()
    expect(bad(page, "look")).to_have_count(0)


def test_too_large_a_file_is_told_by_the_page_and_refused_by_the_server(page: Page, served: SimpleNamespace):
    tab(page, "Autoencoder")
    expect(page.locator("#look-whole img")).to_have_count(3)
    large = b"\x89PNG\r\n\x1a\n" + bytes(LIMITS.bytes)
    drop(page, "look-drop", "large.png", large)
    expect(page.get_by_test_id("toast-body")).to_contain_text("exceed")  # by Gradio
    answer = page.request.post(
        f"{served.address}gradio_api/upload",
        multipart={"files": {"name": "large.png", "mimeType": "image/png", "buffer": large}},
    )
    assert answer.status == 413


# ---- compare


def type_name(page: Page, name: str) -> None:
    field = page.locator("#compare-names input")
    field.click()
    field.fill(name)
    field.press("Enter")
    field.press("Escape")


def test_what_the_page_offers_is_compared_as_it_comes_though_its_sizes_differ(
    page: Page, folders: SimpleNamespace
):
    tab(page, "Compare")
    drop(page, "compare-drop", "mine.png", encoded(photo(seed=8)))
    page.locator("#compare").click()
    expect(page.locator("#compare-status")).to_contain_text("3 of 3 autoencoders compared")
    result = page.locator("#compare-result")
    expect(result.locator("figure")).to_have_count(4)
    expect(result.locator("figure").first).to_contain_text("48 × 48 pixels")
    expect(result.get_by_role("alert")).to_have_count(0)
    for name in ("small", "other", "emoji", "PSNR", "ST-LPIPS-alex", "parameters", "encode"):
        expect(result).to_contain_text(name)
    expect(result).to_contain_text(re.compile(r"decode[\d.]+ ± [\d.]+ ms"))
    type_name(page, str(folders.pipeline))
    page.locator("#compare").click()
    expect(page.locator("#compare-status")).to_contain_text("4 of 4 autoencoders compared")


def test_a_folder_that_a_visitor_sent_is_not_loaded(page: Page, served: SimpleNamespace):
    files = {"name": "config.yaml", "mimeType": "text/plain", "buffer": b"autoencoder: {source: 'os:abort'}"}
    (sent,) = page.request.post(f"{served.address}gradio_api/upload", multipart={"files": files}).json()
    assert Path(sent).is_relative_to(served.uploads)
    tab(page, "Compare")
    type_name(page, str(Path(sent).parent))
    page.locator("#compare").click()
    expect(page.locator("#compare-result").get_by_role("alert")).to_contain_text("visitors' uploads")
    expect(page.locator("#compare-status")).to_contain_text("3 of 4 autoencoders compared")


def test_a_wrong_name_is_told(page: Page):
    tab(page, "Compare")
    wrong = {
        "no-such-folder": "there is no folder no-such-folder",
        "os.path:join": "loads only folders and Hub names",
    }
    for name, told in wrong.items():
        type_name(page, name)
        page.locator("#compare").click()
        expect(bad(page, "compare")).to_contain_text(re.compile(told, re.I))
        page.locator("#compare-names").get_by_role("button", name=f"Remove {name}").click()


def test_a_comparison_is_stopped(page: Page, served: SimpleNamespace):
    tab(page, "Compare")
    decode = served.bench.pipeline.vae.decoder_pred.register_forward_pre_hook(lambda *_: time.sleep(0.5))
    try:
        page.locator("#compare").click()
        expect(page.locator("#compare-status")).to_contain_text("1 of 3")
        page.locator("#compare-stop").click()
        expect(page.locator("#compare-status")).to_contain_text("Stopped.")
        wait_until(page, lambda: not jobs(), 15)
    finally:
        decode.remove()
    page.wait_for_timeout(300)
    expect(page.locator("#compare-status")).to_contain_text("Stopped.")
    expect(page.locator("#compare-stop")).to_be_hidden()


def test_an_image_that_was_forgotten_is_asked_for_again(page: Page, served: SimpleNamespace):
    tab(page, "Compare")
    drop(page, "compare-drop", "mine.png", encoded(photo(seed=8)))
    expect(page.locator("#compare-result img")).to_have_count(1)
    picture = np.asarray(center_crop(photo(seed=8), 48))
    wait_until(page, lambda: np.array_equal(picture, shown(page, "compare-result", 0)))
    tab(page, "Autoencoder")
    expect(page.locator("#look-whole img")).to_have_count(3)
    for session in served.page.app.state_holder.session_data.values():  # as after two hours
        session.state_data.clear()
    slide(page, "strength", 9)
    expect(page.locator("#look-gap").get_by_role("alert")).to_contain_text("Your image expired")
    tab(page, "Compare")
    page.locator("#compare").click()
    expect(bad(page, "compare")).to_contain_text("choose it again")


# ---- report, visitors, looks


def test_a_saved_pipeline_opens_with_its_card_which_fetches_nothing(
    tmp_path: Path, pipeline: LDMAEPipeline, browser: Browser
):
    folder = tmp_path / "boxed"
    pipeline.save_pretrained(folder)
    photo(SIZE, SIZE).save(folder / "samples.png")
    far = "https://example.org/far"
    (folder / "README.md").write_text(
        f"---\nlicense: mit\n---\n# boxed\n\n![pictures](samples.png)\n\n![a [b]]({far}.png)\n\n![c][d]\n\n"
        f"[d]: {far}.jpg\n\n<video src='{far}.mp4' autoplay></video>\n\nThe end."
    )
    asked: list[str] = []
    context = browser.new_context()
    bench = open_workbench(str(folder), device="cpu", may_name=False)
    with serving(bench, tmp_path / "uploads") as (address, _):
        page = visit(context, SimpleNamespace(address=address))
        context.on("response", lambda answer: asked.append(answer.url))
        context.on("requestfailed", lambda one: asked.append(one.url) if one.failure != "csp" else None)
        expect(number(page, "Guidance")).to_have_value("3")
        set_controls(page, class_name="clocks", count=1, steps=3)
        assert read_settings(generate(page)[0])["class"] == "clocks"
        tab(page, "Autoencoder")
        expect(page.locator("#look-whole img")).to_have_count(3)
        tab(page, "Compare")
        expect(page.locator("#compare-status")).to_contain_text("Only one autoencoder is available")
        expect(page.locator("#compare")).to_be_disabled()
        tab(page, "Report")
        expect(page.locator("#report-card h1")).to_have_text("boxed")
        expect(page.locator("#report-card")).to_contain_text("The end.")
        picture = page.locator("#report-card img").first
        assert picture.evaluate("image => image.naturalWidth") == SIZE
        page.wait_for_timeout(300)
    assert [url for url in asked if "example.org" in url] == []
    context.close()


def test_two_visitors_send_the_same_file(page: Page, context: BrowserContext, served: SimpleNamespace):
    other = visit(context, served)
    picture = served.bench.explorer.encode(photo(seed=12)).picture
    for visitor in (page, other):
        tab(visitor, "Autoencoder")
        expect(visitor.locator("#look-whole img")).to_have_count(3)
    with Job(served.bench.light.turns):  # nothing is looked at before both have sent it
        for visitor in (page, other):
            drop(visitor, "look-drop", "same.png", encoded(photo(seed=12)))
            visitor.wait_for_timeout(500)
    for visitor in (page, other):
        wait_until(visitor, lambda: np.array_equal(picture, shown(visitor, "look-whole", 0)))  # noqa: B023
    other.close()


def test_the_report_is_shown_in_a_frame_without_rights(page: Page):
    tab(page, "Report")
    frame = page.locator("iframe.ld-report")
    expect(frame).to_have_attribute("sandbox", "allow-same-origin")
    expect(page.frame_locator("iframe.ld-report").get_by_role("heading")).to_have_text("Report of the run")
    page.frame_locator("iframe.ld-report").locator("body").evaluate("body => body.style.height = '2000px'")
    wait_until(page, lambda: frame.evaluate("each => each.clientHeight") >= 2000)  # nothing to scroll in it


def test_two_visitors_work_at_once_and_see_only_their_own(
    page: Page, context: BrowserContext, served: SimpleNamespace
):
    other = visit(context, served)
    served.brake.seconds = 0.1
    set_controls(page, class_name="hearts", count=1, seed=100, steps=250)
    page.locator("#generate").click()
    expect(page.locator("#generate-status")).to_contain_text("of 250")
    # the other one generates and looks, while the first one's job goes on
    set_controls(other, class_name="faces", count=1, seed=200, steps=3)
    (mine,) = generate(other)
    assert read_settings(mine)["seed"] == 200
    tab(other, "Autoencoder")
    drop(other, "look-drop", "mine.png", encoded(photo(seed=6)))
    picture = served.bench.explorer.encode(photo(seed=6)).picture
    wait_until(other, lambda: np.array_equal(shown(other, "look-whole", 0), picture))
    expect(page.locator("#generate-status")).to_contain_text("of 250")
    served.brake.seconds = 0.0
    assert [read_settings(content)["seed"] for content in saved(page)] == [100]
    tab(page, "Autoencoder")
    assert not np.array_equal(shown(page, "look-whole", 0), picture)
    other.close()


def test_a_visitor_who_waits_sees_how_many_people_are_ahead(page: Page, served: SimpleNamespace):
    line = served.bench.heavy
    others = [line.join(Visitor(f"other {k}", "192.0.2.1"), lambda: None) for k in range(4)]
    try:
        set_controls(page, count=1)
        page.locator("#generate").click()
        status = page.locator("#generate-status")
        expect(status).to_contain_text(
            "Waiting: 3 people ahead of you"
        )  # from elsewhere: the fourth is later
        box = status.get_by_text("Waiting").bounding_box()
        assert box is not None
        assert box["height"] > 10
        page.locator("#generate-stop").click()
        expect(status).to_contain_text("Stopped.")
        wait_until(page, lambda: len(line._waiting) == 1)
        page.locator("#generate").click()
        expect(status).to_contain_text("people ahead")
    finally:
        for other in others:
            line.leave(other)
    assert saved(page)


def test_a_first_look_that_the_page_was_too_busy_for_is_tried_again(
    context: BrowserContext, served: SimpleNamespace
):
    line = served.bench.light
    bounds, line.bounds = line.bounds, replace(line.bounds, in_all=0)
    try:
        page = visit(context, served)
        tab(page, "Autoencoder")
        page.wait_for_timeout(500)
        expect(page.locator("#look-whole")).to_contain_text("Encoding the first example")
        expect(page.get_by_test_id("toast-body")).to_have_count(0)
    finally:
        line.bounds = bounds
    expect(page.locator("#look-whole img")).to_have_count(3)
    page.close()


def test_an_image_of_ones_own_leaves_no_thumbnail_marked(page: Page):
    tab(page, "Autoencoder")
    thumbnail = page.locator("#look-samples button").nth(2)
    thumbnail.click()
    expect(thumbnail).to_have_attribute("aria-pressed", "true")
    drop(page, "look-drop", "mine.png", encoded(photo(seed=7)))
    expect(page.locator("#look-samples button[aria-pressed='true']")).to_have_count(0)


@pytest.mark.parametrize("width", [390, 768, 1400])
def test_pictures_and_controls_use_the_width_that_there_is(
    context: BrowserContext, served: SimpleNamespace, width: int
):
    page = visit(context, served, width)

    def box(selector: str) -> dict[str, float]:
        locator = page.locator(selector).last
        locator.wait_for()
        return locator.evaluate("each => each.getBoundingClientRect().toJSON()")

    def widths(selector: str) -> list[float]:
        box(selector)
        return page.locator(selector).evaluate_all(
            "all => all.map(each => each.getBoundingClientRect().width)"
        )

    def are_one_row(*names: str) -> bool:
        tabs = [page.get_by_role("tab", name=name, exact=True).bounding_box() for name in names]
        return len({each["y"] for each in tabs if each}) == 1

    def a_row(selector: str) -> float:
        """Returns the share of the element's width that its first row of cards takes."""
        return page.locator(selector).evaluate(
            """element => {
                const boxes = [...element.querySelectorAll('.ld-cards > .ld-card')]
                    .map(card => card.getBoundingClientRect());
                const row = boxes.filter(box => Math.abs(box.top - boxes[0].top) < 2);
                return (Math.max(...row.map(b => b.right)) - boxes[0].left) / element.clientWidth;
            }"""
        )

    narrow = width < 1000
    assert min(widths("#generate, .tabitem input[type=range]")) > 100
    assert box(".tabitem input[type=range]")["height"] == 24
    assert are_one_row("Generate", "Autoencoder", "Compare", "Report")
    assert (box("#generate-pictures")["bottom"] < box("#lock-seed")["top"]) == narrow
    assert 0 < box("#generate")["bottom"] <= 900
    small = """() => [...document.querySelectorAll('.tabs *')].filter(each => each.checkVisibility()
        && [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim())
        && parseFloat(getComputedStyle(each).fontSize) < 14).map(each => each.className + each.innerText)"""
    assert page.evaluate(small) == []
    tab(page, "Autoencoder")
    (main,), strip = widths("#look-noise img"), widths("#look-noise-steps img")
    assert main > 1.4 * max(strip)
    assert main >= 150
    assert min(strip) >= 80
    assert are_one_row("Latent noise", "Masking", "Interpolation")
    for key, slider in (("#look-noise", "#epsilon"), ("#look-gap", "#strength")):  # beside each other
        assert abs(box(f"{slider} input")["bottom"] - box(f"{key} img")["bottom"]) < 330
    if narrow:
        assert a_row("#look-whole") > 0.9
        assert min(widths("#epsilon")) > 0.85 * width
    tab(page, "Compare")
    assert 0 < box("#compare")["bottom"] <= 900
    page.locator("#compare").click()
    expect(page.locator("#compare-status")).to_contain_text("compared")
    assert min(widths("#compare-result .ld-cards img")) >= 140
    for value in page.locator("#compare-result dl div").all():
        assert value.evaluate("each => each.scrollWidth <= each.clientWidth + 1"), value.inner_text()
    page.mouse.wheel(0, 350)
    page.wait_for_timeout(300)
    assert 0 <= box(".ld-original img")["top"] <= 900  # it stays in view
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_every_tab_fits_its_window_asks_for_nothing_elsewhere_and_complains_of_nothing(
    context: BrowserContext, served: SimpleNamespace, width: int, scheme: str
):
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    strange: list[str] = []
    page.on("pageerror", lambda error: strange.append(str(error)))
    page.on("console", lambda said: strange.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: strange.append(request.url) if _foreign(request.url, served) else None)
    page.goto(served.address)
    for name in ("Generate", "Autoencoder", "Compare", "Report"):
        tab(page, name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    colours = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colours)[:3])) < 200) == (scheme == "dark")
    # the report has a script, and is the only one to be complained of
    assert [text.split("because")[0] for text in strange] == ["Blocked script execution in 'about:srcdoc' "]
    page.close()


def _foreign(address: str, served: SimpleNamespace) -> bool:
    return not address.startswith((served.address, "data:", "blob:", "about:"))


def test_visitors_from_elsewhere_get_no_field_for_names(
    folders: SimpleNamespace, browser: Browser, tmp_path: Path
):
    bench = open_workbench(str(folders.run), device="cpu", may_name=False, limits=LIMITS)
    context = browser.new_context()
    with serving(bench, tmp_path) as (address, _):
        page = visit(context, SimpleNamespace(address=address))
        tab(page, "Compare")
        type_name(page, str(folders.other))
        expect(page.locator("#compare-names")).not_to_contain_text(str(folders.other))
        whole = page.content() + page.evaluate("JSON.stringify(window.gradio_config)")
        assert str(folders.base) not in whole  # nor does the page say where the models lie
    context.close()
