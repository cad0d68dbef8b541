import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from ldmae.report import paper, ranking
from ldmae.report.ranking import _compare_orders

LPIPS = pd.Series({name: float(row["LPIPS"]) for name, row in paper.RECONSTRUCTION.items()})


def table(*values: float, std: float = math.nan) -> pd.DataFrame:
    """Returns values beside the paper's."""
    return pd.DataFrame({"mean": values, "std": std, "paper": LPIPS})


def compared(*values: float, std: float = math.nan, better: str = "lower") -> ranking._Agreement:
    return _compare_orders("d", table(*values, std=std), better, "LPIPS")


def test_correlations_are_scipys():
    random = np.random.default_rng(0)
    for _ in range(20):
        values = random.normal(size=5)
        found = compared(*values)
        assert found.spearman == pytest.approx(spearmanr(values, list(LPIPS)).statistic)
        assert found.kendall == pytest.approx(kendalltau(values, list(LPIPS)).statistic)


def test_chance_is_the_share_of_orders_that_agree_as_well():
    values = (0.3, 0.31, 0.5, 0.2, 0.1)
    found = compared(*values)
    paper_values = list(LPIPS)
    orders = [spearmanr(order, paper_values).statistic for order in itertools.permutations(values)]
    assert len(orders) == 120
    as_well = sum(rank >= found.spearman - 1e-9 for rank in orders)
    assert found.chance == pytest.approx(as_well / 120)
    assert compared(*-LPIPS).chance == 1
    assert math.isnan(compared(1, 1, 1, 1, 1).chance)


def test_chance_of_many_autoencoders_is_estimated():
    names = [f"{i}" for i in range(12)]
    ours = pd.DataFrame({"mean": range(12), "std": math.nan, "paper": range(12)}, index=names)
    found = _compare_orders("d", ours, "lower", "LPIPS")
    assert found.spearman == pytest.approx(1)
    assert 0 < found.chance < 0.001


def test_the_papers_own_figures_are_in_the_papers_order():
    found = compared(*LPIPS)
    assert found.spearman == pytest.approx(1)
    assert found.order == ["vmae", "sd-vae", "ae", "dae", "vae"]
    assert (len(found.agreeing), found.opposed, found.tied) == (10, [], [])


def test_directions_may_differ():
    found = compared(*-LPIPS, better="higher")
    assert found.kendall == pytest.approx(1)


def test_pairs_say_which_agree_which_do_not_and_which_are_within_the_spread():
    # ae dae vae sd-vae vmae; the paper's: vmae, sd-vae, ae, dae, vae
    found = compared(0.3, 0.31, 0.5, 0.1, 0.2, std=0.02)
    assert found.order == ["sd-vae", "vmae", "ae", "dae", "vae"]
    assert found.opposed == [("vmae", "sd-vae")]
    assert len(found.agreeing) == 9
    assert found.close == [("ae", "dae")]
    alone = compared(0.3, 0.31, 0.5, 0.1, 0.2)
    assert alone.close == []  # one seed knows no spread


def test_ties_agree_with_nothing():
    found = compared(0.3, 0.3, 0.5, 0.1, 0.2)
    assert found.tied == [("ae", "dae")]
    equal = compared(1, 1, 1, 1, 1)
    assert math.isnan(equal.spearman)
    assert math.isnan(equal.kendall)
    assert len(equal.tied) == 10


def test_pairs_are_counted_over_all_figures():
    found = [compared(0.3, 0.31, 0.5, 0.1, 0.2)] * 2
    assert ranking.summary(found) == "Over 2 metrics, 18 of 20 pairs follow the paper's ranking"
    silent = [replace(found[0], ours=name, says_nothing=True) for name in ("precision", "recall")]
    left_out = "not counted: precision and recall, whose means are all below 0.02"
    assert ranking.summary([*found, *silent]) == f"{ranking.summary(found)}; {left_out}"
    assert ranking.summary(silent) == left_out
    assert ranking.summary([]) == ""
