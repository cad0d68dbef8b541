import base64
import re

import numpy as np
import pytest

from ldmae.app import markup
from ldmae.app.compare import Compared, _Duration
from ldmae.app.compare_tab import _side_by_side
from ldmae.app.generate import Generated, Progress, read_settings, saved_images
from ldmae.app.markup import _CARD, Card

from .conftest import photo

NASTY = "<script>alert('x')</script>\""
TILE = np.full((8, 8, 3), 7, np.uint8)


def generated(name: str = "hearts", seed: int = 3) -> Generated:
    settings = {"class": name, "label": 1, "seed": seed, "ldmae": "0", "model": "m"}
    return Generated(photo(), settings)


PIECES = {
    "card": markup._card(Card(TILE, NASTY, [NASTY], [(NASTY, NASTY, True)], TILE, NASTY)),
    "cards": markup.cards([Card(TILE, NASTY)], NASTY),
    "strip": markup.strip([Card(TILE, NASTY)], NASTY),
    "beside": markup.beside(Card(TILE, NASTY), [Card(TILE, NASTY)], NASTY),
    "thumbnails": markup.thumbnails([(photo(), NASTY)]),
    "missing": markup.missing_card(NASTY, NASTY),
    "note": markup.note(NASTY, "bad"),
    "waiting": markup.waiting(NASTY),
    "bar": markup.bar(0.5, NASTY),
    "previews": markup.previews(TILE[None], [NASTY]),
    "gallery": markup.gallery([generated(NASTY), generated(NASTY)]),
    "header": markup.header(NASTY, [NASTY]),
    "footer": markup.footer(NASTY),
    "label": markup.label(NASTY, NASTY),
    "frame": markup.framed(NASTY),
}


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_becomes_markup(piece):
    assert "<script" not in PIECES[piece]
    assert "script" in PIECES[piece]
    assert not re.search(r"=\"[^\"<>]*alert\('x'\)", PIECES[piece])


@pytest.mark.parametrize("piece", PIECES)
def test_nothing_is_requested_from_elsewhere(piece):
    for address in re.findall(r"src=\"([^\"]*)\"", PIECES[piece]):
        assert address.startswith("data:")


def test_small_pictures_are_enlarged_by_whole_factors_and_stay_crisp():
    for side in (8, 28, 32, 48, 64, 72):
        assert markup._shown_width(side) % side == 0
        assert abs(markup._shown_width(side) - _CARD) <= side / 2
    assert markup._shown_width(512) == 256
    assert 'class="ld-crisp"' in markup._card(Card(TILE, "small"))
    assert 'class="ld-crisp"' not in markup._card(Card(np.zeros((300, 300, 3), np.uint8), "large"))


def test_a_picture_of_another_shape_keeps_it():
    found = re.search(r'width="(\d+)" height="(\d+)"', markup._card(Card(photo(50, 25), "wide")))
    assert found is not None
    assert int(found[1]) == 2 * int(found[2])


def test_generated_pictures_can_be_saved_one_by_one_and_all_at_once(tmp_path):
    text = markup.gallery([generated(seed=3), generated(seed=4)])
    files = re.findall(r'src="data:image/png;base64,(.*?)"', text)
    assert [read_settings(base64.b64decode(file))["seed"] for file in files] == [3, 4]
    assert re.findall(r'data-do="save" data-name="(.*?)"', text) == ["ldmae-hearts-3", "ldmae-hearts-4"]
    [whole] = re.findall(r'href="data:application/zip;base64,(.*?)" download="ldmae-images.zip"', text)
    (tmp_path / "all.zip").write_bytes(base64.b64decode(whole))
    read = saved_images(tmp_path / "all.zip")
    assert [each.settings for each in read] == [generated(seed=seed).settings for seed in (3, 4)]
    assert read[0].image.tobytes() == generated().image.tobytes()
    assert "ZIP" not in markup.gallery([generated()])


def test_previews_of_some_of_the_images_say_so():
    pictures = np.stack([TILE] * 16)
    assert "Previews of the first 16 of 64 images" in markup.previews(pictures, ["faces"] * 64)
    assert "Previews" not in markup.previews(pictures, ["faces"] * 16)


@pytest.mark.parametrize(
    ("title", "stem"),
    [
        ("ε = 0.1", "ldmae-ε-0.1"),
        ("../x: y", "ldmae-..-x-y"),
        ("owner/name, difference × 4", "ldmae-owner-name-difference-4"),
    ],
)
def test_a_picture_is_saved_under_its_title(title, stem):
    assert markup._file_stem(title) == stem


def test_progress_tells_what_is_done_and_what_is_left():
    text = markup.progress(Progress(done=10, total=40, seconds=5.0, steps=40))
    assert 'aria-valuenow="25"' in text
    assert "Step 10 of 40 · 5.0 s · about 15 s left" in text
    heun = [markup.progress(Progress(done=done, total=99, seconds=5.0, steps=50)) for done in (1, 37, 99)]
    found = [re.findall(r"Step \d+ of 50", text) for text in heun]
    assert found == [[f"Step {number} of 50"] for number in (1, 19, 50)]


def test_a_report_may_run_no_script():
    frame = markup.framed("<h1>Report</h1><script>parent.document.title = 'x'</script>")
    assert 'sandbox="allow-same-origin"' in frame  # for the page to measure it
    assert "&lt;script&gt;" in frame


def test_figures_have_their_units():
    values = {"PSNR": 23.14, "ST-LPIPS-alex": 0.0612}
    assert markup.metrics(values) == ["PSNR 23.1 dB", "ST-LPIPS-alex 0.061"]
    assert markup.value_of("PSNR", float("inf")) == "identical"


def measured(name: str, psnr: float, distance: float, parameters: int) -> Compared:
    return Compared(
        name,
        picture=TILE,
        difference=TILE,
        metrics={"PSNR": psnr, "ST-LPIPS-alex": distance},
        parameters=parameters,
        latents=(4, 2, 2),
        side=8,
        timings={"encode": _Duration(0.01, 0.002), "decode": _Duration(parameters / 1e9, 0.002)},
    )


def test_the_best_of_each_kind_is_marked_in_a_comparison():
    done = [
        measured("one", 20.0, 0.5, 4_000_000),
        measured("two", 30.0, 0.6, 80_000_000),
        Compared("three", problem="it is not there"),
    ]
    text = _side_by_side(done, photo(), 8, "ST-LPIPS-alex")
    best = re.findall(r"ld-best><dt>(.*?)</dt><dd>(.*?)</dd>", text)
    assert best == [
        ("ST-LPIPS-alex", "0.500"),
        ("parameters", "4.0 M"),
        ("decode", "4 ± 1 ms"),
        ("PSNR", "30.0 dB"),
    ]  # both encode in 10 ms
    assert "it is not there" in text
    assert "Original" in text
    alone = _side_by_side(done[:1], photo(), 8, "ST-LPIPS-alex")
    assert "ld-best" not in alone
