"""`summary.json`: what a command can check a comparison's claims with."""

import json
import re
import statistics

import pytest

from ldmae.report.comparison import render_comparison

from ..drawings import leave_blank
from .drawn_units import edit, results_in, write_unit
from .test_results_format import DOCUMENT
from .test_tables import figure

LITE2, LITE0 = "efficientnet_lite2", "efficientnet_lite0"


def judged(unit, kid):
    """Makes a drawn unit one of an arena: judged by two networks, beside its floor."""
    measured = (
        ("samples", f"KID-{LITE2}", kid),
        ("samples", f"MIND-{LITE2}", 10 * kid),
        ("ifid", f"iKID-{LITE2}", 2 * kid),
        ("copies", "copies", 0.1),
        ("smoothness", f"rKID-{LITE2}(eps=0.2)", 3 * kid),
        ("floor", f"floor KID-{LITE2}", 0.0001),
        ("floor", f"floor MIND-{LITE2}", 0.3),
    )
    results = [figure(name, value, "lower", measurement=kind) for kind, name, value in measured]
    settings = {"evaluation": {"features": LITE2, "second_features": LITE0}}
    edit(unit, settings=settings, results=results_in(unit) + results)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    for seed, kid in ((0, 0.10), (1, 0.14), (2, 0.12)):
        judged(write_unit(folder, "vmae", seed, size=32, tiles=2), kid)
    judged(write_unit(folder, "sd-vae", 0, size=32, tiles=2), 0.2)
    with pytest.MonkeyPatch.context() as patch:
        leave_blank(patch)
        render_comparison(folder)
    return folder


def test_the_summary_has_means_and_deviations_over_seeds_on_the_network_that_decides(folder):
    summary = json.loads((folder / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["rows"]}
    assert list(rows) == ["sd-vae", "vmae"]
    assert summary["judges"] == [LITE2, LITE0]
    assert rows["vmae"]["seeds"] == 3
    kid = rows["vmae"]["KID"]
    assert kid["mean"] == pytest.approx(0.12)
    assert kid["std"] == pytest.approx(statistics.stdev([0.10, 0.14, 0.12]))
    assert rows["sd-vae"]["KID"] == {"mean": 0.2, "std": None}
    assert rows["vmae"]["MIND"]["mean"] == pytest.approx(1.2)
    assert rows["vmae"][f"KID ({LITE0})"]["mean"] != kid["mean"]
    assert rows["vmae"]["rKID(eps=0.2)"]["mean"] == pytest.approx(0.36)
    assert rows["vmae"]["parameters"] > 0 < rows["vmae"]["flops"]
    assert rows["sd-vae"]["seconds"] == 201.5
    assert summary["floor"]["MIND"] == {"mean": pytest.approx(0.3), "std": pytest.approx(0)}


def test_the_floor_is_a_row_of_each_table_that_judges_samples_and_never_the_best(folder):
    tables = (folder / "tables.md").read_text()
    lines = [line for line in tables.splitlines() if "real half against real half" in line]
    assert len(lines) == 2, "of the samples, and of the ablation, where VMAE itself is the last row"
    assert "**" not in "".join(lines)
    assert "real half against real half" in (folder / "comparison.html").read_text()


def test_every_field_of_a_summary_is_documented(folder):
    summary = json.loads((folder / "summary.json").read_text())
    text = DOCUMENT.split("## A comparison's summary")[1]
    documented = set(re.findall(r"`([^`]+)`", text))
    for key in {*summary, *(key for row in summary["rows"] for key in row), *summary["floor"]}:
        name = re.sub(r"eps=[^)]+", "eps=<eps>", key).replace(LITE0, "<features>")
        assert name in documented, key


def test_a_comparison_without_units_has_an_empty_summary(tmp_path):
    render_comparison(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["rows"] == []
