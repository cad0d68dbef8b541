import math
import re
from pathlib import Path

import numpy as np
import pytest

from ldmae.report import pages, plots
from ldmae.report.data import Comparison, read_comparison
from ldmae.report.tables import RECONSTRUCTION, find_columns, pivot

from .drawn_units import EPSILONS
from .test_tables import figure, results_of, write_figures

FIVE = ["ae", "dae", "vae", "sd-vae", "vmae"]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("five")
    for name in FIVE:
        write_figures(folder, name, 0, results_of(name, 0))
    return read_comparison(folder, [])


def test_rescaling_puts_the_worst_at_0_and_the_best_at_1():
    assert plots._rescaled([3.0, 1.0, 2.0], "lower") == [0.0, 1.0, 0.5]
    assert plots._rescaled([3.0, 1.0, 2.0], "higher") == [1.0, 0.0, 0.5]


def test_the_radar_draws_each_autoencoder_by_its_rescaled_figures(five: Comparison):
    axes = [
        plots.Axis("a", "PSNR", "higher", {"ae": 30.0, "dae": 25.0, "vae": 20.0}),
        plots.Axis("b", "L1", "lower", {"ae": 0.1, "dae": 0.3, "vae": 0.2}),
        plots.Axis("c", "KID", "lower", {"ae": 0.2, "vae": 0.1}),
    ]
    (ax,) = plots.radar(axes, five.only(["ae", "dae", "vae"], []).variants).axes
    lines = {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()}
    shares = {title: (lines[title] - plots._INNER) / (1 - plots._INNER) for title in ("AE", "DAE", "VAE")}
    np.testing.assert_allclose(shares["AE"], [1, 1, 0, 1])  # back at the first axis
    np.testing.assert_allclose(shares["DAE"], [0.5, 0, math.nan, 0.5])
    np.testing.assert_allclose(shares["VAE"], [0, 0.5, 1, 0])


def test_curves_over_noise_hold_every_size_in_order(tmp_path: Path):
    for seed in (0, 1):
        write_figures(tmp_path, "ae", seed, results_of("ae", seed)[::-1])
    found = plots.noise_curves(read_comparison(tmp_path, []))
    assert list(found.metric.unique()) == ["ST-LPIPS-alex", "PSNR", "rKID-efficientnet_lite0"]
    line = found[found.metric == "PSNR"]
    assert list(line.eps) == list(EPSILONS)
    values = [r["value"] for seed in (0, 1) for r in results_of("ae", seed) if r["name"] == "PSNR(eps=0.1)"]
    assert line["mean"].iloc[3] == pytest.approx(np.mean(values))
    assert line["std"].iloc[3] == pytest.approx(np.std(values, ddof=1))


def test_a_figure_at_one_size_of_noise_is_no_curve(tmp_path: Path):
    write_figures(tmp_path, "ae", 0, [figure("PSNR(eps=0)", 30.0, measurement="smoothness")])
    assert plots.noise_curves(read_comparison(tmp_path, [])).empty


def test_levels_pair_variance_with_separability(five: Comparison):
    levels = plots.compression_levels(five)
    assert list(levels.level.unique()) == ["part", "pattern"]
    point = levels[(levels.level == "part") & (levels.variant == "vae")].iloc[0]
    known = {r["name"]: r["value"] for r in results_of("vae", 0)}
    assert (point.sigma2, point.rho) == (known["sigma2(part)"], known["rho(part)"])
    assert len(plots.compression(levels, five.variants).axes) == 2


def test_an_autoencoder_has_the_same_colour_in_every_plot_and_every_colour_a_dark_one(five: Comparison):
    colours = {name: colour for name, (colour, _) in plots._looks(five.variants).items()}
    assert len(set(colours.values())) == 5
    for figure_ in (
        plots.smoothness(plots.noise_curves(five), five.variants),
        plots.compression(plots.compression_levels(five), five.variants),
    ):
        svg = pages._svg(figure_)
        used = {match.decode() for match in re.findall(rb"(?:fill|stroke): (#[0-9a-f]{6})", svg)}
        assert set(colours.values()) <= used
        assert used <= set(pages._DARK)
        dark = set(re.findall(rb"(?:fill|stroke): (#[0-9a-f]{6})", pages._darkened(svg)))
        assert not {colour.encode() for colour in pages._DARK if colour != "#56b4e9"} & dark


def test_autoencoders_beyond_the_papers_get_looks_of_their_own(tmp_path: Path):
    for name in [*FIVE, "mine", "theirs"]:
        write_figures(tmp_path, name, 0, [figure("PSNR", 20.0)])
    drawn = plots._looks(read_comparison(tmp_path, []).variants)
    assert len(set(drawn.values())) == 7


def test_dots_have_a_panel_for_each_metric_with_the_better_end_on_the_right(tmp_path: Path):
    for name, psnr, l1 in (("ae", 30.0, 0.1), ("vmae", 31.0, 0.2)):
        metrics = [figure("PSNR", psnr), figure("L1", l1, "lower")]
        write_figures(tmp_path, name, 0, metrics)
    comparison = read_comparison(tmp_path, [])
    columns = find_columns(comparison, RECONSTRUCTION)
    values = pivot(comparison, columns)
    drawn = plots.dots(columns, values["mean"], values["std"], comparison.variants)
    lower, higher = (ax for ax in drawn.axes if ax.get_visible())
    assert higher.get_xlim()[0] < higher.get_xlim()[1]
    assert lower.get_xlim()[0] > lower.get_xlim()[1]
    assert [label.get_text() for label in lower.get_yticklabels()] == ["AE", "VMAE"]
    assert [len(ax.containers) for ax in (higher, lower)] == [2, 2]
