import base64
import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from ldmae.app import markup
from ldmae.app.compare import Measured, Timing
from ldmae.app.generate import Generated, Progress, read_settings
from ldmae.app.markup import CARD, Card

from .conftest import photo

NASTY = "<script>alert('x')</script>\""
TILE = np.full((8, 8, 3), 7, np.uint8)


def generated(name: str = "hearts", seed: int = 3) -> Generated:
    settings = {"class": name, "label": 1, "seed": seed, "ldmae": "0", "model": "m"}
    return Generated(photo(), settings)


PIECES = {
    "card": markup.card(Card(TILE, NASTY, [NASTY], [(NASTY, NASTY, True)], TILE, NASTY)),
    "cards": markup.cards([Card(TILE, NASTY)], NASTY),
    "featured": markup.featured([Card(TILE, NASTY)], [Card(TILE, NASTY)], NASTY),
    "thumbnails": markup.thumbnails([(photo(), NASTY)]),
    "missing": markup.missing_card(NASTY, NASTY),
    "note": markup.note(NASTY, "bad"),
    "waiting": markup.waiting(NASTY),
    "bar": markup.bar(0.5, NASTY),
    "previews": markup.previews(TILE[None], [NASTY]),
    "gallery": markup.gallery([generated(NASTY), generated(NASTY)]),
    "header": markup.header(NASTY, [NASTY]),
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
    for address in re.findall(r"(?:src|href)=\"([^\"]*)\"", PIECES[piece]):
        assert address.startswith("data:")


def test_small_pictures_are_enlarged_by_whole_factors_and_stay_crisp():
    for side in (8, 28, 32, 48, 64, 72):
        assert markup.shown_width(side) % side == 0
        assert abs(markup.shown_width(side) - CARD) <= side / 2
    assert markup.shown_width(512) == 256
    assert 'class="ld-crisp"' in markup.card(Card(TILE, "small"))
    assert 'class="ld-crisp"' not in markup.card(Card(np.zeros((300, 300, 3), np.uint8), "large"))


def test_a_picture_of_another_shape_keeps_it():
    found = re.search(r'width="(\d+)" height="(\d+)"', markup.card(Card(photo(50, 25), "wide")))
    assert found is not None
    assert int(found[1]) == 2 * int(found[2])


def test_generated_pictures_can_be_saved_one_by_one_and_all_at_once():
    text = markup.gallery([generated(seed=3), generated(seed=4)])
    files = re.findall(r'href="data:(.*?);base64,(.*?)" download="(.*?)"', text)
    assert [name for _, _, name in files] == [
        "ldmae-hearts-3.png",
        "ldmae-hearts-4.png",
        "ldmae-pictures.zip",
    ]
    assert read_settings(base64.b64decode(files[0][1]))["seed"] == 3
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(files[2][1]))) as archive:
        assert archive.namelist() == ["00-ldmae-hearts-3.png", "01-ldmae-hearts-4.png"]
        assert read_settings(archive.read("01-ldmae-hearts-4.png"))["seed"] == 4
    assert "ZIP" not in markup.gallery([generated()])


def test_progress_tells_what_is_done_and_what_is_left():
    text = markup.progress(Progress(done=10, total=40, seconds=5.0, steps=40))
    assert 'aria-valuenow="25"' in text
    assert "step 10 of 40 · 5.0 s · about 15 s to go" in text
    heun = [markup.progress(Progress(done=done, total=99, seconds=5.0, steps=50)) for done in (1, 37, 99)]
    assert [re.findall(r"step \d+ of 50", text) for text in heun] == [
        ["step 1 of 50"],
        ["step 19 of 50"],
        ["step 50 of 50"],
    ]


def test_a_report_may_run_no_script_and_reach_nothing():
    frame = markup.framed("<h1>Report</h1><script>parent.document.title = 'x'</script>")
    assert 'sandbox=""' in frame
    assert "&lt;script&gt;" in frame


def test_figures_have_their_units():
    values = {"PSNR": 23.14, "ST-LPIPS-alex": 0.0612}
    assert markup.figures(values) == ["PSNR 23.1 dB", "ST-LPIPS-alex 0.061"]
    assert markup.value_of("PSNR", float("inf")) == "equal to the bit"


def measured(name: str, psnr: float, distance: float, parameters: int) -> Measured:
    return Measured(
        name,
        picture=TILE,
        difference=TILE,
        figures={"PSNR": psnr, "ST-LPIPS-alex": distance},
        parameters=parameters,
        latents=(4, 2, 2),
        side=8,
        timings={"encode": Timing(0.01, 0.002), "decode": Timing(parameters / 1e9, 0.002)},
    )


def test_the_best_of_each_kind_is_marked_in_a_comparison():
    compare_tab = pytest.importorskip("ldmae.app.compare_tab")
    done = [
        measured("one", 20.0, 0.5, 4_000_000),
        measured("two", 30.0, 0.6, 80_000_000),
        Measured("three", problem="it is not there"),
    ]
    text = compare_tab.side_by_side(done, photo(), 8, "ST-LPIPS-alex")
    best = re.findall(r"ld-best><dt>(.*?)</dt><dd>(.*?)</dd>", text)
    assert best == [
        ("ST-LPIPS-alex", "0.500"),
        ("parameters", "4.0 M"),
        ("decode", "4 ± 1 ms"),
        ("PSNR", "30.0 dB"),
    ]  # both encode in 10 ms
    assert "it is not there" in text
    assert "Original" in text
    assert isinstance(photo(), Image.Image)
    alone = compare_tab.side_by_side(done[:1], photo(), 8, "ST-LPIPS-alex")
    assert "ld-best" not in alone
