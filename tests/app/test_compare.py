import contextlib
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import HfApi

from ldmae.app.compare import (
    _FEWEST_ROUNDS,
    _MOST_WORK,
    _ROUNDS,
    _SIZES,
    MOST,
    Compared,
    Fit,
    _most_side,
    check_hub,
    check_names,
    measure,
    sizes_for,
    timed,
)
from ldmae.app.compare_tab import _is_best, _short_names, _side_by_side, _suggestions, _Value
from ldmae.app.explorer_tab import _Views
from ldmae.app.workbench import open_workbench
from ldmae.core.errors import UserError
from ldmae.evaluation.efficiency import count_parameters
from ldmae.loading import load_autoencoder

from .conftest import SIZE, photo

OFFERED = ["small", "another"]


def test_a_card_has_the_last_part_of_a_name_where_that_tells_it_apart():
    names = ["emoji", "a/runs/vae", "b/runs/vae", "madebyollin/taesd"]
    assert _short_names(names) == dict(zip(names, ["emoji", *names[1:3], "taesd"], strict=True))


def test_folders_and_hub_names_may_be_named_here(folders):
    names = [OFFERED[0], str(folders.other), "owner/name", "pretrained:emoji"]
    assert check_names([*names, f" {folders.other} ", ""], OFFERED, may_name=True) == names


@pytest.mark.parametrize(
    "names", [[], ["owner/name"], ["owner/name"] * 2, [f"owner/name-{k}" for k in range(MOST + 1)]]
)
def test_a_comparison_is_of_two_or_a_few_different_ones(names):
    message = f"the number of autoencoders must be from 2 to 6, got {len(set(names))}; choose 2 to 6"
    with pytest.raises(UserError, match=message):
        check_names(names, OFFERED, may_name=True)


@pytest.mark.parametrize(
    "name",
    ["evil_module:Thing", "os.path:join", "official:weights.pth", "http://x.y/z", "file:///etc/passwd"],
)
def test_nothing_that_runs_code_or_reads_other_files_may_be_named(name):
    with pytest.raises(UserError, match="loads only folders and Hub names"):
        check_names([OFFERED[0], name], OFFERED, may_name=True)


def test_an_import_path_is_refused_even_where_a_folder_bears_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module:Thing").mkdir()
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="only folders and Hub names"):
        check_names([OFFERED[0], "evil_module:Thing"], OFFERED, may_name=True)
    assert "evil_module" not in sys.modules


def test_what_the_owner_offers_is_allowed_in_any_form():
    offered = ["one", "my_module:Thing"]
    assert check_names(offered, offered, may_name=False) == offered


def test_visitors_from_elsewhere_choose_among_what_is_offered(folders):
    for name in (str(folders.other), "owner/name", "pretrained:emoji"):
        with pytest.raises(UserError, match="this page compares only small, another, not"):
            check_names([OFFERED[0], name], OFFERED, may_name=False)


def test_a_wrong_name_is_told_with_the_nearest_right_one(tmp_path):
    with pytest.raises(UserError, match="there is no folder anothe; did you mean 'another'"):
        check_names([OFFERED[0], "anothe"], OFFERED, may_name=True)
    (tmp_path / "file").write_text("")
    for name in (str(tmp_path / "file"), "x" * 5000):  # longer than any path
        with pytest.raises(UserError, match=f"there is no folder {name}"):
            check_names([OFFERED[0], name], OFFERED, may_name=True)


def test_an_autoencoder_is_measured(folders, perceptual):
    one = measure(str(folders.other), photo(seed=1), 40, perceptual)
    assert one.problem == ""
    assert one.picture is not None
    assert one.difference is not None
    assert one.picture.shape == one.difference.shape == (40, 40, 3)
    assert one.latents == (8, 5, 5)
    assert one.compression == pytest.approx(40 * 40 * 3 / 200)
    assert set(one.metrics) == {"PSNR", "ST-LPIPS-alex"}
    assert one.parameters == count_parameters(load_autoencoder(str(folders.other)))[0]
    (one,) = timed([one])
    assert set(one.timings) == {"encode", "decode"}
    assert all(it.seconds > 0 and it.spread > 0 for it in one.timings.values())
    assert not one.works


def test_measuring_twice_gives_the_same_picture_and_figures(folders, perceptual):
    first, second = (measure(str(folders.other), photo(), 32, perceptual) for _ in range(2))
    assert np.array_equal(first.picture, second.picture)
    assert first.metrics == second.metrics


def test_an_autoencoder_gets_the_nearest_size_that_it_takes_and_its_picture_is_brought_back(
    folders, perceptual
):
    one = measure(str(folders.other), photo(), 36, perceptual)
    assert one.problem == ""
    assert one.side == 32
    assert one.picture.shape == one.difference.shape == (36, 36, 3)
    assert one.latents == (8, 4, 4)
    assert one.compression == pytest.approx(32 * 32 * 3 / 128)


def test_sizes_are_offered_that_all_autoencoders_take():
    assert sizes_for([Fit(multiple=8), Fit(multiple=6)], 32) == [48, 96, 192]  # a run's and pretrained:emoji
    assert sizes_for([Fit(multiple=8)], 40) == sorted({*_SIZES, 40})
    assert sizes_for([Fit(multiple=7), Fit(multiple=5)], 32) == [35 * k for k in range(1, 9)]
    assert sizes_for([Fit(fixed=256), Fit(multiple=8)], 32) == [256]
    assert sizes_for([Fit(fixed=224), Fit(fixed=256)], 32) == list(_SIZES)  # each gets its own
    assert [Fit(multiple=6).nearest(size) for size in (1, 32, 64)] == [6, 30, 66]
    assert Fit(fixed=224).nearest(64) == 224


def test_the_sizes_of_a_page_fit_its_model_and_what_its_owner_offers(folders):
    bench = open_workbench(str(folders.run), device="cpu", offered=("pretrained:emoji",))
    assert bench.compared_sizes == [48, 96, 192]
    for name in bench.choices:
        one = measure(name, photo(), 48, bench.perceptual, load=bench.load)
        assert (one.problem, one.side) == ("", 48)


def test_too_much_work_for_one_visitor_is_refused_with_the_size_that_is_not(folders, perceptual, monkeypatch):
    assert 256 <= _most_side(83_819_683, "cpu") < 512 <= _most_side(83_819_683, "cuda")  # SD-VAE
    monkeypatch.setattr("ldmae.app.compare.encode_moments", lambda *_: pytest.fail("it was computed"))
    parameters = count_parameters(load_autoencoder(str(folders.other)))[1]
    monkeypatch.setitem(_MOST_WORK, "cpu", 100 * 100 * parameters)
    one = measure(str(folders.other), photo(), 512, perceptual)
    assert (
        "too much work for this page on an image of 512 × 512 pixels; choose at most 100 × 100" in one.problem
    )


def test_what_fails_on_an_image_is_told_in_the_words_of_the_page(folders, perceptual, monkeypatch):
    def fails(*_):
        raise UserError("give image_size a multiple of 32")

    monkeypatch.setattr("ldmae.app.compare.encode_moments", fails)
    one = measure(str(folders.other), photo(), 32, perceptual)
    assert one.problem == "it can't take this image at 32 × 32 pixels; choose another size"


def test_autoencoders_are_timed_in_rounds_so_that_what_slows_one_slows_all(folders, perceptual, monkeypatch):
    order: list[str] = []

    def noted(name: str):
        return replace(
            measure(str(folders.other), photo(), 32, perceptual), works={"encode": lambda: order.append(name)}
        )

    done = timed([noted("a"), noted("b"), Compared("c", problem="not there")])
    assert order == ["a", "b"] * _ROUNDS
    assert [set(one.timings) for one in done] == [{"encode"}, {"encode"}, set()]
    order.clear()
    monkeypatch.setattr("ldmae.app.compare._LONG", 0.0)
    timed([noted("a")])
    assert len(order) == _FEWEST_ROUNDS


def test_the_same_weights_twice_are_never_told_apart(folders, perceptual):
    twice = [replace(measure(str(folders.other), photo(), 32, perceptual), name=name) for name in "ab"]
    shown = _side_by_side(timed(twice), photo(), 32, perceptual.label)
    assert "±" in shown
    assert "ld-best" not in shown


def test_a_value_is_marked_as_best_only_beyond_what_chance_and_its_text_hide():
    def timing(milliseconds: float, spread: float) -> _Value:
        return _Value(f"{milliseconds} ± {spread} ms", milliseconds, spread)

    assert _is_best(timing(10, 1), [timing(20, 2), timing(30, 9)])
    assert not _is_best(timing(9.9, 1), [timing(15.9, 6)])
    assert not _is_best(timing(20, 1), [timing(10, 1)])
    assert _is_best(_Value("1.2", 1.2), [_Value("1.3", 1.3)])
    assert _is_best(_Value("1.2", 1.21), [_Value("1.2", 1.2), _Value("1.3", 1.3)])  # both
    assert not _is_best(_Value("1.2", 1.2), [_Value("1.2", 1.2)])
    assert not _is_best(_Value("1.2", 1.2), [])
    assert not _is_best(_Value("4 × 4"), [_Value("8 × 8")])


def test_a_folder_without_an_autoencoder_is_told(tmp_path, perceptual):
    assert "no diffusers autoencoder" in measure(str(tmp_path), photo(), 32, perceptual).problem


def test_others_have_their_turn_while_one_loads_and_between_its_pieces(folders, perceptual):
    events: list[str] = []

    @contextlib.contextmanager
    def aside():
        events.append("out")
        yield
        events.append("back")

    def load(name: str):
        assert events[-1] == "out"
        return load_autoencoder(name)

    calls = {"load": load, "between": lambda: events.append("."), "aside": aside}
    measure(str(folders.other), photo(), 32, perceptual, **calls)
    assert events[:3] == [".", "out", "back"]
    assert events.count(".") == 2


def test_a_hub_that_is_out_of_reach_is_told_at_once(monkeypatch):
    def unreachable(*_, **__):
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(
        UserError, match="owner/name is not on this computer, and the Hugging Face Hub can't be reached"
    ):
        check_hub("owner/name")


# ---- what is offered, and what is asked for


def test_a_run_or_a_known_model_is_suggested_once_and_by_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/small", "runs/offered", "other/small"):
        (tmp_path / run / "autoencoder").mkdir(parents=True)
        (tmp_path / run / "autoencoder" / "config.json").touch()
    offered = {"offered": str(tmp_path / "runs" / "offered"), "taesd": "madebyollin/taesd"}
    bench: Any = SimpleNamespace(source="other/small", offered=offered, choices=["small", *offered])
    known = ("sd-vae-ft-mse", "stabilityai/sd-vae-ft-mse")
    assert _suggestions(bench) == [("runs/small", "runs/small"), known]  # "small" is the page's own


@pytest.mark.parametrize("strength", [float("nan"), 0.0, 21.0])
def test_an_amplification_out_of_range_is_refused(bench, strength):
    with pytest.raises(UserError, match="the amplification must be from 1 to 20"):
        _Views(bench).gap(bench.explorer.encode(photo(SIZE)), strength)
