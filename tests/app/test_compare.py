import sys
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from huggingface_hub import HfApi

from ldmae.app.compare import MOST, check_hub, check_names, measure
from ldmae.core.errors import UserError
from ldmae.evaluation.efficiency import count_parameters
from ldmae.loading import load_autoencoder
from ldmae.perception.lpips import load_perceptual

from .conftest import photo

OFFERED = ["small (this page's)", "another"]


@pytest.fixture(scope="module")
def perceptual():
    return load_perceptual("st-lpips-alex")


def test_folders_and_hub_names_may_be_named_here(folders):
    names = [OFFERED[0], str(folders.other), "owner/name", "pretrained:emoji"]
    assert check_names([*names, f" {folders.other} ", ""], OFFERED, may_name=True) == names


@pytest.mark.parametrize("count", [0, 1, MOST + 1])
def test_a_comparison_is_of_two_or_a_few(count):
    with pytest.raises(UserError, match=f"2 to {MOST} different autoencoders, got {count}"):
        check_names([f"owner/name-{k}" for k in range(count)], OFFERED, may_name=True)


def test_the_same_name_twice_is_one_autoencoder():
    with pytest.raises(UserError, match="got 1; add another"):
        check_names(["owner/name", "owner/name"], OFFERED, may_name=True)


@pytest.mark.parametrize(
    "name",
    [
        "evil_module:Thing",
        "os.path:join",
        "official:weights.pth",
        "http://x.y/z",
        "file:///etc/passwd",
    ],
)
def test_nothing_that_runs_code_or_reads_other_files_may_be_named(name):
    with pytest.raises(UserError, match="only folders and Hub names can be named"):
        check_names([OFFERED[0], name], OFFERED, may_name=True)


def test_an_import_path_is_refused_even_where_a_folder_bears_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module:Thing").mkdir()
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="only folders and Hub names"):
        check_names([OFFERED[0], "evil_module:Thing"], OFFERED, may_name=True)
    assert "evil_module" not in sys.modules


def test_what_the_owner_offers_is_allowed_in_any_form():
    offered = ["one (this page's)", "my_module:Thing"]
    assert check_names(offered, offered, may_name=False) == offered


def test_visitors_from_elsewhere_choose_among_what_is_offered(folders):
    for name in (str(folders.other), "owner/name", "pretrained:emoji"):
        with pytest.raises(UserError, match=r"this page compares small \(this page's\), another only"):
            check_names([OFFERED[0], name], OFFERED, may_name=False)


def test_a_wrong_name_is_told_with_the_nearest_right_one(tmp_path):
    with pytest.raises(UserError, match="there is no folder anothe; did you mean 'another'"):
        check_names([OFFERED[0], "anothe"], OFFERED, may_name=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="there is no folder"):
        check_names([OFFERED[0], str(tmp_path / "file")], OFFERED, may_name=True)


def test_an_autoencoder_is_measured(folders, perceptual):
    one = measure(str(folders.other), photo(seed=1), 40, perceptual)
    assert one.problem == ""
    assert one.picture is not None
    assert one.difference is not None
    assert one.picture.shape == one.difference.shape == (40, 40, 3)
    assert one.latents == (8, 5, 5)
    assert one.compression == pytest.approx(40 * 40 * 3 / 200)
    assert set(one.figures) == {"PSNR", "ST-LPIPS-alex"}
    assert one.parameters == count_parameters(load_autoencoder(str(folders.other)))[0]
    assert all(0 < seconds < 10 for seconds in one.seconds.values())
    assert set(one.seconds) == {"encode", "decode"}


def test_measuring_twice_gives_the_same_picture_and_figures(folders, perceptual):
    first, second = (measure(str(folders.other), photo(), 32, perceptual) for _ in range(2))
    assert np.array_equal(first.picture, second.picture)
    assert first.figures == second.figures


def test_what_an_autoencoder_cannot_take_is_told_beside_the_others(folders, perceptual):
    one = measure(str(folders.other), photo(), 36, perceptual)
    assert one.picture is None
    assert "multiples of 8" in one.problem


def test_a_folder_without_an_autoencoder_is_told(tmp_path, perceptual):
    assert "no diffusers autoencoder" in measure(str(tmp_path), photo(), 32, perceptual).problem


def test_others_have_their_turn_while_one_loads_and_between_its_pieces(folders, perceptual):
    events: list[str] = []

    class Aside:
        def __enter__(self):
            events.append("out")

        def __exit__(self, *_):
            events.append("back")

    def load(name: str):
        assert events[-1] == "out"
        return load_autoencoder(name)

    between = SimpleNamespace(call=lambda: events.append("."))
    measure(str(folders.other), photo(), 32, perceptual, load=load, between=between.call, aside=Aside)
    assert events[:3] == [".", "out", "back"]
    assert events.count(".") >= 7


def test_a_hub_that_is_out_of_reach_is_told_at_once(monkeypatch):
    def unreachable(*_, **__):
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(UserError, match="the Hugging Face Hub can't be reached to fetch owner/name"):
        check_hub("owner/name")


def test_a_name_longer_than_any_path_is_none():
    with pytest.raises(UserError, match="there is no folder xxx"):
        check_names([OFFERED[0], "x" * 5000], OFFERED, may_name=True)
