import math
import re
from pathlib import Path

import numpy as np
import pytest

from ldmae.report import charts, curves
from ldmae.report.units import Spread, Variant, read_variants

from .drawn_units import EPSILONS
from .test_tables import figure, results_of, write_figures

FIVE = ["ae", "dae", "vae", "sd-vae", "vmae"]


def test_rescaling_puts_the_worst_at_0_and_the_best_at_1():
    assert charts.rescaled([3.0, 1.0, 2.0], "lower") == [0.0, 1.0, 0.5]
    assert charts.rescaled([3.0, 1.0, 2.0], "higher") == [1.0, 0.0, 0.5]


def test_the_radar_draws_each_autoencoder_by_its_rescaled_figures(tmp_path: Path):
    for name in FIVE[:3]:
        write_figures(tmp_path, name, 0, results_of(name, 0))
    variants = read_variants(tmp_path, [])
    axes = [
        charts.Axis("a", "PSNR", "higher", {"ae": 30.0, "dae": 25.0, "vae": 20.0}),
        charts.Axis("b", "L1", "lower", {"ae": 0.1, "dae": 0.3, "vae": 0.2}),
        charts.Axis("c", "KID", "lower", {"ae": 0.2, "vae": 0.1}),
    ]
    (ax,) = charts.radar(axes, variants).axes
    lines = {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()}
    shares = {title: (lines[title] - charts.INNER) / (1 - charts.INNER) for title in ("AE", "DAE", "VAE")}
    np.testing.assert_allclose(shares["AE"], [1, 1, 0, 1])  # back at the first axis
    np.testing.assert_allclose(shares["DAE"], [0.5, 0, math.nan, 0.5])
    np.testing.assert_allclose(shares["VAE"], [0, 0.5, 1, 0])


def test_curves_over_noise_hold_every_size_in_order(tmp_path: Path):
    for seed in (0, 1):
        write_figures(tmp_path, "ae", seed, results_of("ae", seed)[::-1])
    found = charts.noise_curves(read_variants(tmp_path, []))
    assert [curve.title for curve in found] == ["ST-LPIPS-alex", "PSNR", "rKID-efficientnet_lite0"]
    points = found[1].lines["ae"]
    assert [size for size, _ in points] == list(EPSILONS)
    values = [r["value"] for seed in (0, 1) for r in results_of("ae", seed) if r["name"] == "PSNR(eps=0.1)"]
    assert points[3][1].mean == pytest.approx(np.mean(values))
    assert points[3][1].deviation == pytest.approx(np.std(values, ddof=1))


def test_a_figure_at_one_size_of_noise_is_no_curve(tmp_path: Path):
    write_figures(tmp_path, "ae", 0, [figure("PSNR(eps=0)", 30.0, measurement="smoothness")])
    assert charts.noise_curves(read_variants(tmp_path, [])) == []


def test_levels_pair_variance_with_separability(tmp_path: Path):
    for name in FIVE:
        write_figures(tmp_path, name, 0, results_of(name, 0))
    variants = read_variants(tmp_path, [])
    levels = charts.compression_levels(variants)
    assert [level.name for level in levels] == ["part", "pattern"]
    variance, separability = levels[0].points["vae"]
    known = {r["name"]: r["value"] for r in results_of("vae", 0)}
    assert (variance.mean, separability.mean) == (known["sigma2(part)"], known["rho(part)"])
    assert len(charts.compression(levels, variants).axes) == 2


def test_an_autoencoder_has_the_same_colour_in_every_plot_and_every_colour_a_dark_one(tmp_path: Path):
    for name in FIVE:
        write_figures(tmp_path, name, 0, results_of(name, 0))
    variants = read_variants(tmp_path, [])
    colours = {name: colour for name, (colour, _) in charts.looks(variants).items()}
    assert len(set(colours.values())) == 5
    for figure_ in (
        charts.smoothness(charts.noise_curves(variants), variants),
        charts.compression(charts.compression_levels(variants), variants),
    ):
        svg = curves.figure_svg(figure_)
        used = {match.decode() for match in re.findall(rb"(?:fill|stroke): (#[0-9a-f]{6})", svg)}
        assert set(colours.values()) <= used
        assert used <= set(curves.DARK)
        dark = set(re.findall(rb"(?:fill|stroke): (#[0-9a-f]{6})", curves.darkened(svg)))
        assert not {colour.encode() for colour in curves.DARK if colour != "#56b4e9"} & dark


def test_autoencoders_beyond_the_papers_get_looks_of_their_own(tmp_path: Path):
    for name in [*FIVE, "mine", "theirs"]:
        write_figures(tmp_path, name, 0, [figure("PSNR", 20.0)])
    drawn = charts.looks(read_variants(tmp_path, []))
    assert len(set(drawn.values())) == 7


def test_dots_have_a_panel_for_each_metric_with_the_better_end_on_the_right(tmp_path: Path):
    variants = [Variant("ae", "AE", "autoencoders", 0), Variant("vmae", "VMAE", "autoencoders", 4)]
    spreads = {"ae": Spread(1.0, 0.1, 3), "vmae": Spread(2.0, math.nan, 1)}
    panels = [charts.Dots("PSNR", "higher", spreads), charts.Dots("KID", "lower", spreads)]
    higher, lower = (ax for ax in charts.dots(panels, variants).axes if ax.get_visible())
    assert higher.get_xlim()[0] < higher.get_xlim()[1]
    assert lower.get_xlim()[0] > lower.get_xlim()[1]
    assert [label.get_text() for label in higher.get_yticklabels()] == ["AE", "VMAE"]
    assert [len(ax.containers) for ax in (higher, lower)] == [2, 2]
