import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from ldmae.report import paper, ranking
from ldmae.report.ranking import compare_orders
from ldmae.report.units import Spread, spread_of

LPIPS = {name: float(row["LPIPS"]) for name, row in paper.RECONSTRUCTION.items()}


def spreads(*values: float, deviation: float = math.nan) -> dict[str, Spread]:
    count = 1 if math.isnan(deviation) else 3
    return {name: Spread(value, deviation, count) for name, value in zip(LPIPS, values, strict=True)}


def test_correlations_are_scipys():
    random = np.random.default_rng(0)
    for _ in range(20):
        values = random.normal(size=5)
        found = compare_orders("KID", spreads(*values), "lower", "LPIPS", LPIPS)
        assert found.spearman == pytest.approx(spearmanr(values, list(LPIPS.values())).statistic)
        assert found.kendall == pytest.approx(kendalltau(values, list(LPIPS.values())).statistic)


def test_chance_is_the_share_of_orders_that_agree_as_well():
    values = (0.3, 0.31, 0.5, 0.2, 0.1)
    found = compare_orders("d", spreads(*values), "lower", "LPIPS", LPIPS)
    paper_values = list(LPIPS.values())
    orders = [spearmanr(order, paper_values).statistic for order in itertools.permutations(values)]
    assert len(orders) == 120
    as_well = sum(rank >= found.spearman - 1e-9 for rank in orders)
    assert found.chance == pytest.approx(as_well / 120)
    reverse = {name: -value for name, value in LPIPS.items()}
    assert compare_orders("d", spreads(*reverse.values()), "lower", "LPIPS", LPIPS).chance == 1
    assert math.isnan(compare_orders("d", spreads(1, 1, 1, 1, 1), "lower", "LPIPS", LPIPS).chance)


def test_chance_of_many_autoencoders_is_estimated():
    names = [f"{i}" for i in range(12)]
    ours = {name: Spread(i, math.nan, 1) for i, name in enumerate(names)}
    found = compare_orders("d", ours, "lower", "LPIPS", {name: i for i, name in enumerate(names)})
    assert found.spearman == pytest.approx(1)
    assert 0 < found.chance < 0.001


def test_the_papers_own_figures_are_in_the_papers_order():
    found = compare_orders("LPIPS", spreads(*LPIPS.values()), "lower", "LPIPS", LPIPS)
    assert found.spearman == pytest.approx(1)
    assert found.order == found.paper_order == ["vmae", "sd-vae", "ae", "dae", "vae"]
    assert (len(found.agreeing), found.opposed, found.tied) == (10, [], [])


def test_directions_may_differ():
    rising = {name: -value for name, value in LPIPS.items()}
    found = compare_orders("probe", spreads(*rising.values()), "higher", "LPIPS", LPIPS)
    assert found.kendall == pytest.approx(1)


def test_pairs_say_which_agree_which_do_not_and_which_are_within_the_spread():
    # ae dae vae sd-vae vmae; the paper's: vmae, sd-vae, ae, dae, vae
    found = compare_orders("d", spreads(0.3, 0.31, 0.5, 0.1, 0.2, deviation=0.02), "lower", "LPIPS", LPIPS)
    assert found.order == ["sd-vae", "vmae", "ae", "dae", "vae"]
    assert found.opposed == [("vmae", "sd-vae")]
    assert len(found.agreeing) == 9
    assert found.close == [("ae", "dae")]
    alone = compare_orders("d", spreads(0.3, 0.31, 0.5, 0.1, 0.2), "lower", "LPIPS", LPIPS)
    assert alone.close == []  # one seed knows no spread


def test_ties_agree_with_nothing():
    found = compare_orders("d", spreads(0.3, 0.3, 0.5, 0.1, 0.2), "lower", "LPIPS", LPIPS)
    assert found.tied == [("ae", "dae")]
    equal = compare_orders("d", spreads(1, 1, 1, 1, 1), "lower", "LPIPS", LPIPS)
    assert math.isnan(equal.spearman)
    assert math.isnan(equal.kendall)
    assert len(equal.tied) == 10


def test_a_spread_is_numpys_sample_deviation():
    values = [1.5, 2.25, 7.0]
    spread = spread_of(values)
    assert spread is not None
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.deviation == pytest.approx(np.std(values, ddof=1))
    assert spread.count == 3
    one = spread_of([4.0])
    assert one is not None
    assert math.isnan(one.deviation)
    assert spread_of([]) is None


def test_pairs_are_counted_over_all_figures():
    found = [compare_orders("d", spreads(0.3, 0.31, 0.5, 0.1, 0.2), "lower", "LPIPS", LPIPS)] * 2
    assert ranking.summary(found) == "Over 2 metrics, 18 of 20 pairs follow the paper's ranking"
    silent = [replace(found[0], ours=name, says_nothing=True) for name in ("precision", "recall")]
    left_out = "not counted: precision and recall, whose means are all below 0.02"
    assert ranking.summary([*found, *silent]) == f"{ranking.summary(found)}; {left_out}"
    assert ranking.summary(silent) == left_out
    assert ranking.summary([]) == ""
    assert ranking.chance_of_full_agreement(5) == "1 in 120"
