"""What the benchmark of growth writes, measures and fits, at the smallest size."""

import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "growth.py"))


def test_the_exponent_is_that_of_the_power_law_without_the_smallest_point(growth: dict[str, Any]) -> None:
    assert growth["exponent"]({10: 1e9, 100: 3e4, 1000: 3e6, 10_000: 3e8}) == pytest.approx(2)


def test_a_folder_and_shards_of_the_same_synthetic_images_are_measured(
    growth: dict[str, Any], tmp_path: Path
) -> None:
    growth["write_images"](tmp_path, 1000)
    results = {}
    for kind in ("folder", "shards"):
        results |= growth["index"](1000, tmp_path, kind) | growth["start"](1000, tmp_path, kind)
    assert set(results) == {f"{kind} {what}" for kind in ("folder", "shards") for what in WHAT}
    assert all(results[f"{kind} {what}"] > 0 for kind in ("folder", "shards") for what in ("index", "start"))
    table = growth["table"]({name: {1000: value} for name, value in results.items()})
    assert all(growth["LABELS"][name] in table for name in results)


WHAT = ("index", "index memory", "start")
