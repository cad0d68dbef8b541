import json
import math
from pathlib import Path

import numpy as np
import pytest

from ldmae.evaluation.efficiency import PAPER_COST
from ldmae.report import paper, tables
from ldmae.report.markdown import table_markdown
from ldmae.report.tables import make_table
from ldmae.report.units import read_variants

from .drawn_units import results_of, write_unit


def write_figures(folder: Path, variant: str, seed: int, results: list[dict]) -> None:
    """Writes a unit of nothing but figures."""
    unit = folder / "units" / variant / f"seed-{seed}"
    unit.mkdir(parents=True)
    record = {"schema": 1, "variant": variant, "seed": seed, "title": variant.upper(), "results": results}
    (unit / "unit.json").write_text(json.dumps(record))


def figure(name: str, value: float, better: str = "higher", note: str = "", measurement: str = "") -> dict:
    kind = measurement or "reconstruction"
    return {"measurement": kind, "name": name, "value": value, "better": better, "note": note, "counts": {}}


def test_cells_are_means_and_sample_deviations_over_seeds(tmp_path: Path):
    names = ["ae", "vae", "vmae"]
    for name in names:
        for seed in (0, 1, 2):
            write_figures(tmp_path, name, seed, results_of(name, seed))
    variants = read_variants(tmp_path, [])
    for metrics in (tables.RECONSTRUCTION, tables.GENERATION, tables.COST, tables.COMPRESSION):
        table = make_table("", variants, metrics)
        assert table.columns
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                values = [
                    result["value"] / column.metric.divisor
                    for seed in (0, 1, 2)
                    for result in results_of(row.variant, seed)
                    if (result["measurement"], result["name"]) == (column.metric.measurement, column.name)
                ]
                assert cell.spread is not None
                assert cell.spread.mean == pytest.approx(np.mean(values))
                assert cell.spread.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-12)
                assert cell.spread.count == 3


def test_the_best_mean_is_bold_by_each_figures_own_direction(tmp_path: Path):
    for name, psnr, l1 in (("ae", 30.0, 0.02), ("vae", 25.0, 0.01)):
        write_figures(tmp_path, name, 0, [figure("PSNR", psnr), figure("L1", l1, "lower")])
    table = make_table("T", read_variants(tmp_path, []), tables.RECONSTRUCTION)
    best = {
        column.name: [row.variant for row in table.rows if row.cells[k].best]
        for k, column in enumerate(table.columns)
    }
    assert best == {"L1": ["vae"], "PSNR": ["ae"]}
    text = table_markdown(table)
    assert "| AE | 1 | 0.0200 | **30** |" in text
    assert "| VAE | 1 | **0.0100** | 25 |" in text


def test_figures_that_are_shown_alike_have_no_best(tmp_path: Path):
    for name, count in (("ae", 1_234_567), ("vae", 1_234_568)):
        write_figures(tmp_path, name, 0, [figure("parameters", count, "lower", measurement="efficiency")])
    table = make_table("T", read_variants(tmp_path, []), tables.COST)
    assert [row.cells[0].text for row in table.rows] == ["1.235", "1.235"]
    assert not any(row.cells[0].best for row in table.rows)


def test_one_seed_has_no_spread_and_a_figure_of_fewer_seeds_says_how_many(tmp_path: Path):
    write_figures(tmp_path, "ae", 0, [figure("PSNR", 30.25), figure("SSIM", 0.9)])
    for seed, psnr in ((0, 31.0), (1, 33.0)):
        results = [figure("PSNR", psnr), *([figure("SSIM", 0.8)] if seed else [])]
        write_figures(tmp_path, "vae", seed, results)
    table = make_table("T", read_variants(tmp_path, []), tables.RECONSTRUCTION)
    assert [(row.seeds, [cell.text for cell in row.cells]) for row in table.rows] == [
        ("one seed, no spread", ["30.25", "0.900"]),
        ("2 seeds", ["32.0 ± 1.4", "0.800 (n = 1)"]),
    ]
    assert "one seed, no spread" in table_markdown(table)


def test_a_value_that_is_no_number_is_named_and_left_out_of_its_mean(tmp_path: Path):
    for seed, value in ((0, 30.0), (1, math.nan), (2, 32.0)):
        write_figures(tmp_path, "ae", seed, [figure("PSNR", value)])
    problems: list[str] = []
    (row,) = make_table("T", read_variants(tmp_path, problems), tables.RECONSTRUCTION).rows
    assert row.cells[0].text == "31.0 ± 1.4 (n = 2)"
    assert problems == ["units/ae/seed-1/unit.json: PSNR is not a finite number and is left out"]


def test_figures_on_different_networks_never_share_a_column(tmp_path: Path):
    write_figures(tmp_path, "ae", 0, results_of("ae", 0))
    write_figures(tmp_path, "vae", 0, results_of("vae", 0, features="other"))
    inception = [figure("FID", 3.0, "lower", measurement="samples"), figure("LPIPS-vgg", 0.1, "lower")]
    write_figures(tmp_path, "vmae", 0, inception)
    variants = read_variants(tmp_path, [])
    names = [column.name for column in make_table("T", variants, tables.GENERATION[:1]).columns]
    assert names == ["FD-efficientnet_lite0", "FD-other", "FID"]
    names = [column.name for column in make_table("T", variants, tables.RECONSTRUCTION[3:4]).columns]
    assert names == ["ST-LPIPS-alex", "LPIPS-vgg"]


def test_the_papers_figures_stand_beside_the_row_and_column_they_belong_to(tmp_path: Path):
    for name in paper.TITLES:
        write_figures(tmp_path, name, 0, results_of(name, 0))
    variants = read_variants(tmp_path, [])
    table = make_table("T", variants, tables.RECONSTRUCTION, paper.RECONSTRUCTION)
    shown = {row.variant: [cell.paper for cell in row.cells] for row in table.rows}
    assert (
        shown
        == {  # there is no Fréchet distance here: rFID stands, by its name, at the kernel distance
            name: [*list(row.values())[:4], f"rFID {row['rFID']}"]
            for name, row in paper.RECONSTRUCTION.items()
        }
    )
    both = make_table("T", variants, tables.GENERATION, paper.GENERATION)
    shown = {row.variant: [cell.paper for cell in row.cells] for row in both.rows}
    assert shown["vmae"] == ["5.98", "", "5.16", "185.5", "0.844", "0.435"]
    assert table.missing == []
    assert make_table("T", variants[:2], tables.RECONSTRUCTION, paper.RECONSTRUCTION).missing == [
        "VAE",
        "SD-VAE",
        "VMAE",
    ]


def test_figures_judged_by_the_metric_that_taught_bear_a_mark(tmp_path: Path):
    for name in ("ae", "sd-vae"):
        write_figures(tmp_path, name, 0, results_of(name, 0))
    table = make_table("T", read_variants(tmp_path, []), tables.RECONSTRUCTION)
    marks = {
        row.variant: {column.name for column, cell in zip(table.columns, row.cells, strict=True) if cell.mark}
        for row in table.rows
    }
    assert marks == {"ae": set(), "sd-vae": {"ST-LPIPS-alex"}}
    assert "† the autoencoder was trained on this metric." in table_markdown(table)


def test_training_seconds_are_summed_over_the_autoencoders_stages(tmp_path: Path):
    unit = write_unit(tmp_path, "vmae", 0, size=32, tiles=2)
    record = json.loads((unit / "unit.json").read_text())
    record["seconds"] = {"autoencoder.pretraining": 100.0, "autoencoder.tuning": 20.5, "diffusion": 300.0}
    (unit / "unit.json").write_text(json.dumps(record))
    (row,) = make_table("T", read_variants(tmp_path, []), tables.COST[-2:]).rows
    assert [cell.text for cell in row.cells] == ["120.5", "300"]


def test_the_papers_tables_hold_what_the_paper_says_of_vmae():
    led, total = paper.columns_led_by("vmae")
    assert (led, total) == (7, 10)
    assert paper.columns_led_by("ae") == (3, 10)
    assert {tuple(row) for row in paper.RECONSTRUCTION.values()} == {("L1", "PSNR", "SSIM", "LPIPS", "rFID")}


def test_the_papers_costs_are_those_that_the_evaluation_knows():
    convolutional, vmae, share = paper.COST
    for entry, known in zip((convolutional, vmae), PAPER_COST.values(), strict=True):
        assert float(entry.printed_megabytes) == known["weights in MB"]
        assert float(entry.printed_gflops.replace(",", "")) == known["GFLOPs"]
    for shown, column in ((share.parameters, "parameters"), (share.multiply_adds, "multiply_adds")):
        ratio = float(getattr(vmae, column)) / float(getattr(convolutional, column))
        assert float(shown.removesuffix(" %")) == pytest.approx(100 * ratio, abs=0.05)
    # MiB of float32 weights
    assert float(vmae.parameters) * 4e6 / 2**20 == pytest.approx(float(vmae.printed_megabytes), abs=0.05)
