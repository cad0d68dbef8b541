import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldmae.report import curves, pages


def records(count: int, stage: str = "diffusion", **terms: float) -> list[dict]:
    random = np.random.default_rng(0)
    noise = np.exp(0.1 * random.normal(size=count)) * (1 + 9 * np.exp(-np.arange(count) / max(1, count / 10)))
    return [
        {"stage": stage, "step": i, "loss": n, "terms": {name: n * size for name, size in terms.items()}}
        for i, n in enumerate(noise.tolist())
    ]


def loss_curves(metrics: list[dict]) -> Figure:
    """Plots the first stage of some records."""
    return curves._loss_curves(next(iter(curves._collect_curves(metrics).values())))


def drawn_lines(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(line.get_xydata()) for ax in figure.axes for line in ax.get_lines()]


def test_a_half_written_line_is_skipped():
    whole = [json.dumps(record) for record in records(3)]
    text = "\n".join([*whole, "[1]", "\ufffd", '{"stage": "diffusion", "step": 3, "lo'])
    assert [record["step"] for record in curves._read_metrics(text)] == [0, 1, 2]


def test_stages_come_in_the_order_of_a_run():
    names = ["extra", "diffusion", "autoencoder.own", "autoencoder.tuning", "autoencoder.pretraining"]
    collected = curves._collect_curves([record for name in names for record in records(2, name)])
    ours = ["autoencoder.pretraining", "autoencoder.tuning"]
    assert list(collected) == [*ours, "autoencoder.own", "diffusion", "extra"]


def test_lines_are_thinned_and_peaks_survive():
    metrics = records(20_000)
    metrics[12_345]["loss"] = 777.0
    lines = drawn_lines(loss_curves(metrics))
    assert max(len(line) for line in lines) <= curves._MAX_POINTS
    assert max(line[:, 1].max() for line in lines if len(line)) == 777.0
    assert len(pages._svg(loss_curves(metrics))) < 100_000


def test_smoothed_line_is_the_mean_of_its_window():
    values = np.random.default_rng(0).normal(size=1000)
    smooth = curves._moving_mean(values, np.array([0, 10, 500, 999]))
    expected = [values[0], values[0:21].mean(), values[475:526].mean(), values[974:].mean()]
    np.testing.assert_allclose(smooth, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, None, "text", [1]])
def test_values_that_are_no_numbers_are_left_out(bad: object):
    metrics = records(50, kl=100.0)
    metrics[20]["loss"] = bad
    metrics[21]["terms"]["kl"] = bad
    figure = loss_curves(metrics)
    assert all(np.isfinite(line).all() for line in drawn_lines(figure))
    assert pages._svg(figure)
    assert curves._collect_curves(metrics)["diffusion"].value.isna().sum() == 2


def test_malformed_records_are_left_out():
    odd = [{}, {"stage": 3}, {"stage": "a", "step": None, "loss": 1}, {"stage": "a", "step": 1, "terms": 3}]
    odd += [{"stage": "a", "step": math.nan, "loss": 1}, {"stage": "a", "step": 1, "validation": 4}]
    assert curves._collect_curves(odd) == {}


def test_of_a_step_logged_twice_the_last_counts():
    logged = [{"stage": "a", "step": step, "loss": 10 * k + step} for k, step in enumerate([1, 2, 3, 2, 3])]
    steps, values = curves._points(curves._collect_curves(logged)["a"], "training", "loss")
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == [1, 32, 43]


@pytest.mark.parametrize(
    ("terms", "groups"),
    [
        ({"visible": 0.3, "masked": 0.5, "kl": 4000.0}, [["loss", "visible", "masked"], ["kl"]]),
        ({"visible": 0.3, "masked": 0.5}, [["loss", "visible", "masked"]]),
        ({"velocity": 1.0}, [["loss"]]),  # a term that is the loss is drawn once
    ],
)
def test_terms_of_very_different_size_get_axes_of_their_own(terms: dict, groups: list[list[str]]):
    (stage,) = curves._collect_curves(records(50, **terms)).values()
    assert curves._groups(stage) == groups


def test_positive_falling_losses_get_a_logarithmic_axis_and_others_do_not():
    assert loss_curves(records(100)).axes[0].get_yscale() == "log"
    negative = [{"stage": "a", "step": i, "loss": 5.0 - i} for i in range(10)]
    assert loss_curves(negative).axes[0].get_yscale() == "linear"


def test_validation_points_are_drawn():
    metrics = [*records(50), {"stage": "diffusion", "step": 25, "validation": {"loss": 2.5, "terms": {}}}]
    assert any(line.tolist() == [[25.0, 2.5]] for line in drawn_lines(loss_curves(metrics)))


@pytest.mark.parametrize("count", [1, 2, 3, 500])
@pytest.mark.parametrize(
    "names",
    [["kl"], ["visible", "masked", "perceptual", "kl"], [f"a_long_name_of_term_{i}" for i in range(14)]],
)
def test_nothing_is_clipped_and_legends_do_not_cover_lines(count: int, names: list[str]):
    metrics = records(count, **{name: 10.0 ** -(i % 2) for i, name in enumerate(names)})
    figure = loss_curves(metrics)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for ax in figure.axes:
        box = ax.get_tightbbox(canvas.get_renderer())
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
        assert ax.bbox.width > 100
        assert ax.bbox.height > 50
        assert ax.get_legend().get_window_extent().y0 >= ax.bbox.y1 - 1
        labels = [text for text in ax.get_xticklabels() if text.get_text()]
        ends = [text.get_window_extent() for text in labels]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(ends))


def test_names_with_mathematics_in_them_are_drawn_as_they_are():
    metrics = records(5, **{"$\\frac{1$": 0.5, "_hidden": 2.0, "a\nb": 1.0})
    assert pages._svg(loss_curves(metrics))


def test_dark_svg_is_the_same_drawing_in_other_colours():
    svg = pages._svg(loss_curves(records(20, a=1.0, b=2.0)))
    dark = pages._darkened(svg)
    assert len(dark) == len(svg) != 0
    assert pages.INK.encode() in svg
    assert not any(colour.encode() in dark for colour in (pages.INK, *pages.COLOURS[:2]))
