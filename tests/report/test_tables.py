import json
import math
from pathlib import Path

import numpy as np
import pytest

from ldmae.contracts import RESULTS_SCHEMA
from ldmae.evaluation.efficiency import _PAPER_COST
from ldmae.report import paper, tables
from ldmae.report.data import metrics_of, read_comparison, remarks
from ldmae.report.tables import _IN_THE_PAPER, DAGGER, make_table

from .drawn_units import edit, results_of, write_unit


def write_figures(folder: Path, variant: str, seed: int, results: list[dict]) -> None:
    """Writes a unit of nothing but figures."""
    unit = folder / "units" / variant / f"seed-{seed}"
    unit.mkdir(parents=True)
    record = {
        "schema": RESULTS_SCHEMA,
        "variant": variant,
        "seed": seed,
        "title": variant.upper(),
        "results": results,
    }
    (unit / "unit.json").write_text(json.dumps(record))


def figure(name: str, value: float, better: str = "higher", note: str = "", measurement: str = "") -> dict:
    kind = measurement or "reconstruction"
    return {"measurement": kind, "name": name, "value": value, "better": better, "note": note, "counts": {}}


def test_cells_are_means_and_sample_deviations_over_seeds(tmp_path: Path):
    names = ["ae", "vae", "vmae"]
    for name in names:
        for seed in (0, 1, 2):
            write_figures(tmp_path, name, seed, results_of(name, seed))
    comparison = read_comparison(tmp_path, [])
    for metrics in (tables.RECONSTRUCTION, tables.GENERATION, tables.COST, tables.COMPRESSION):
        table = make_table("", comparison, metrics)
        assert table.columns
        for name in names:
            for k, column in enumerate(table.columns):
                values = [
                    metric["value"] / column.wanted.divisor
                    for seed in (0, 1, 2)
                    for metric in results_of(name, seed)
                    if (metric["measurement"], metric["name"]) == (column.wanted.measurement, column.name)
                ]
                assert len(values) == 3
                assert table.mean.at[name, k] == pytest.approx(np.mean(values))
                assert table.std.at[name, k] == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_the_best_mean_is_bold_by_each_figures_own_direction(tmp_path: Path):
    for name, psnr, l1 in (("ae", 30.0, 0.02), ("vae", 25.0, 0.01)):
        write_figures(tmp_path, name, 0, [figure("PSNR", psnr), figure("L1", l1, "lower")])
    table = make_table("T", read_comparison(tmp_path, []), tables.RECONSTRUCTION)
    best = {column.name: list(table.best.index[table.best[k]]) for k, column in enumerate(table.columns)}
    assert best == {"L1": ["vae"], "PSNR": ["ae"]}
    text = table.markdown()
    assert "| AE | 1 | 0.0200 | **30** |" in text
    assert "| VAE | 1 | **0.0100** | 25 |" in text


def test_what_is_said_of_a_metric_is_said_once(tmp_path: Path):
    for seed in (0, 1, 2):
        note = f"share in [0, 1]; standard deviation 0.1{seed}; on held-out images"
        write_figures(
            tmp_path, "ae", seed, [figure("PSNR", 30.0, note=note), figure("L1", 1.0, note="[0, 1]")]
        )
    on = {c.name: c.on for c in make_table("T", read_comparison(tmp_path, []), tables.RECONSTRUCTION).columns}
    assert on["PSNR"] == "share in [0, 1]; on held-out images; other remarks differ from unit to unit"
    assert on["L1"] == "[0, 1]"


def test_figures_that_are_shown_alike_have_no_best(tmp_path: Path):
    for name, count in (("ae", 1_234_567), ("vae", 1_234_568)):
        write_figures(tmp_path, name, 0, [figure("parameters", count, "lower", measurement="efficiency")])
    table = make_table("T", read_comparison(tmp_path, []), tables.COST)
    assert list(table.table.frame.iloc[:, 1]) == ["1.235", "1.235"]
    assert not table.best.to_numpy().any()


def test_a_mean_that_is_shown_like_another_is_not_best_whatever_the_deviation(tmp_path: Path):
    for name, means in (("ae", (0.0553, 0.0593)), ("vae", (0.0572, 0.0574))):
        for seed, mean in enumerate(means):
            write_figures(tmp_path, name, seed, [figure("SSIM", mean)])
    table = make_table("T", read_comparison(tmp_path, []), tables.RECONSTRUCTION)
    assert table.table.frame.iloc[:, 1].tolist() == ["0.0573 ± 0.0028", "0.05730 ± 0.00014"]
    assert not table.best.to_numpy().any()


def test_a_mean_without_deviation_says_nothing_of_the_others_digits(tmp_path: Path):
    for name, means in (("ae", (1, 1)), ("vae", (0.62, 0.64)), ("vmae", (0, 0))):
        for seed, mean in enumerate(means):
            write_figures(tmp_path, name, seed, [figure("SSIM", mean)])
    table = make_table("T", read_comparison(tmp_path, []), tables.RECONSTRUCTION)
    assert table.best.iloc[:, 0].to_dict() == {"ae": True, "vae": False, "vmae": False}


def test_precisions_floor_says_how_many_images_it_is_of(tmp_path: Path):
    of = {"counts": {"one half": 1534, "other half": 1535}}
    results = [figure("precision", 0.5, measurement="samples"), figure("floor precision", 0.9) | of]
    results[1]["measurement"] = "floor"
    write_figures(tmp_path, "ae", 0, results)
    table = make_table("T", read_comparison(tmp_path, []), tables.GENERATION)
    assert any("between real halves: 1,534 one half, 1,535 other half" in note for note in table.notes)


def test_one_seed_has_no_spread_and_a_figure_of_fewer_seeds_says_how_many(tmp_path: Path):
    write_figures(tmp_path, "ae", 0, [figure("PSNR", 30.25), figure("SSIM", 0.9)])
    for seed, psnr in ((0, 31.0), (1, 33.0)):
        results = [figure("PSNR", psnr), *([figure("SSIM", 0.8)] if seed else [])]
        write_figures(tmp_path, "vae", seed, results)
    table = make_table("T", read_comparison(tmp_path, []), tables.RECONSTRUCTION)
    assert table.table.frame.to_numpy().tolist() == [
        ["1", "30.25", "**0.900**"],
        ["2", "**32.0 ± 1.4**", "0.800 (n = 1)"],
    ]
    assert "one seed, no spread" in table.markdown()


def test_a_value_that_is_no_number_is_named_and_left_out_of_its_mean(tmp_path: Path):
    for seed, value in ((0, 30.0), (1, math.nan), (2, 32.0)):
        write_figures(tmp_path, "ae", seed, [figure("PSNR", value)])
    problems: list[str] = []
    table = make_table("T", read_comparison(tmp_path, problems), tables.RECONSTRUCTION)
    assert table.table.frame.to_numpy().tolist() == [["3", "31.0 ± 1.4 (n = 2)"]]
    assert problems == ["units/ae/seed-1/unit.json: PSNR is not a finite number and is left out"]


def test_figures_on_different_networks_never_share_a_column(tmp_path: Path):
    write_figures(tmp_path, "ae", 0, results_of("ae", 0))
    write_figures(tmp_path, "vae", 0, results_of("vae", 0, features="other"))
    inception = [figure("FID", 3.0, "lower", measurement="samples"), figure("LPIPS-vgg", 0.1, "lower")]
    write_figures(tmp_path, "vmae", 0, inception)
    comparison = read_comparison(tmp_path, [])
    names = [column.name for column in make_table("T", comparison, tables.GENERATION[:1]).columns]
    assert names == ["FD-efficientnet_lite0", "FD-other", "FID"]
    names = [column.name for column in make_table("T", comparison, tables.RECONSTRUCTION[3:4]).columns]
    assert names == ["ST-LPIPS-alex", "LPIPS-vgg"]


def test_the_papers_figures_stand_beside_the_row_and_column_they_belong_to(tmp_path: Path):
    for name in paper.TITLES:
        write_figures(tmp_path, name, 0, results_of(name, 0))
    comparison = read_comparison(tmp_path, [])
    table = make_table("T", comparison, tables.RECONSTRUCTION, paper.RECONSTRUCTION)
    shown = table.table.frame.loc[_IN_THE_PAPER].to_numpy()[:, 1:].tolist()
    assert (
        shown
        == [  # another metric's, LPIPS's and rFID's, are named
            [
                f"*{value}*"
                for value in (*list(row.values())[:3], f"LPIPS {row['LPIPS']}", f"rFID {row['rFID']}")
            ]
            for row in (paper.RECONSTRUCTION[variant.name] for variant in comparison.variants)
        ]
    )
    both = make_table("T", comparison, tables.GENERATION, paper.GENERATION)
    printed = ("gFID 5.98", "", "sFID 5.16", "IS 185.5", "precision 0.844", "recall 0.435")
    assert both.table.frame.iloc[-1, 1:].tolist() == [f"*{text}*" if text else "" for text in printed]
    assert table.missing == []
    two = comparison.only(["ae", "dae"], [])
    assert make_table("T", two, tables.RECONSTRUCTION, paper.RECONSTRUCTION).missing == [
        "VAE",
        "SD-VAE",
        "VMAE",
    ]


def test_figures_judged_by_the_metric_that_taught_bear_a_mark(tmp_path: Path):
    for name in ("ae", "sd-vae"):
        write_figures(tmp_path, name, 0, results_of(name, 0))
    table = make_table("T", read_comparison(tmp_path, []), tables.RECONSTRUCTION)
    marked = table.table.frame.map(lambda cell: cell.endswith(DAGGER))
    assert list(marked.columns[marked.any()]) == ["ST-LPIPS-alex\u00a0↓"]
    assert list(marked.index[marked.any(axis=1)]) == ["SD-VAE"]
    assert "† the autoencoder was trained on this metric." in table.markdown()


def test_training_seconds_are_summed_over_the_autoencoders_stages(tmp_path: Path):
    unit = write_unit(tmp_path, "vmae", 0, size=32, tiles=2)
    edit(unit, seconds={"autoencoder.pretraining": 100.0, "autoencoder.tuning": 20.5, "diffusion": 300.0})
    table = make_table("T", read_comparison(tmp_path, []), tables.COST[-2:])
    assert table.table.frame.to_numpy().tolist() == [["1", "120.5", "300"]]


def test_the_papers_tables_hold_what_the_paper_says_of_vmae():
    led, total = paper.columns_led_by("vmae")
    assert (led, total) == (7, 10)
    assert paper.columns_led_by("ae") == (3, 10)
    assert {tuple(row) for row in paper.RECONSTRUCTION.values()} == {("L1", "PSNR", "SSIM", "LPIPS", "rFID")}


def test_the_papers_costs_are_those_that_the_evaluation_knows():
    convolutional, vmae, share = (row for _, row in paper.COST.iterrows())
    for row, known in zip((convolutional, vmae), _PAPER_COST.values(), strict=True):
        assert float(row["printed MB"]) == known["weights in MB"]
        assert float(row["printed GFLOPs"].replace(",", "")) == known["GFLOPs"]
    for column in ("counted here: M parameters", "counted here: G multiply-adds"):
        ratio = float(vmae[column]) / float(convolutional[column])
        assert float(share[column].removesuffix(" %")) == pytest.approx(100 * ratio, abs=0.05)
    # MiB of float32 weights
    parameters = float(vmae["counted here: M parameters"])
    assert parameters * 4e6 / 2**20 == pytest.approx(float(vmae["printed MB"]), abs=0.05)


def test_a_metrics_table_is_the_same_in_the_terminal_and_in_markdown():
    shown = tables.metrics_table(
        metrics_of(
            {
                "results": [
                    figure("PSNR", 30.0) | {"unit": "dB", "trained_on_metric": True, "counts": {"images": 9}}
                ]
            }
        )
    )
    assert shown.terminal() == "PSNR  30 dB  ↑  9 images  the autoencoder was trained on this metric"
    assert "| PSNR | 30 dB | ↑ | 9 images | the autoencoder was trained on this metric |" in shown.markdown()


def test_remarks_say_spread_and_reference():
    entry = {"note": "of 9", "spread": {"standard deviation": 0.0123}, "reference": {"chance": 0.1}}
    assert remarks(entry) == "of 9; standard deviation 0.0123; chance: 0.100"
