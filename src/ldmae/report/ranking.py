"""Whether the paper's order of the autoencoders holds in our metrics: computed, metric by metric."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ldmae.report import paper
from ldmae.report.formatting import format_value, join_words
from ldmae.report.tables import NOTHING, ComparisonTable, Table

_FEWEST = 3
"""Autoencoders below which an order says nothing."""
_Pair = tuple[str, str]


@dataclass(frozen=True)
class _Agreement:
    """The order by one of our metrics against the order by the paper's."""

    ours: str
    """Our metric."""
    paper: str
    """The paper's."""
    order: list[str]
    """From best to worst, by ours."""
    spearman: float
    kendall: float
    """Kendall's τ-b."""
    chance: float
    """How probable it is that a random order has at least this Spearman coefficient, in (0, 1]: a one-sided
    p-value from all orders, or of more than seven autoencoders from 10,000 of them. Columns aren't
    independent of each other, and it is not corrected for their number."""
    agreeing: list[_Pair]
    """Pairs of which the same is better in both; the better one comes first."""
    opposed: list[_Pair]
    """Pairs of which the other is better in ours; the one that is better in the paper comes first."""
    tied: list[_Pair]
    """Pairs that are equal in one of the two."""
    close: list[_Pair]
    """Pairs, of whichever kind, that differ by less than the spread of their difference over seeds."""
    says_nothing: bool = False
    """Whether ours are shares of images, each next to 0."""


def _compare_orders(
    name: str, ours: pd.DataFrame, better: str, paper_name: str, says_nothing: bool = False
) -> _Agreement:
    """Compares our metric's order with that of the paper's column: by title, `mean`, `std` and `paper`.

    The correlations and their chance are nan where all values are equal.
    """
    from scipy.stats import kendalltau, spearmanr

    names = list(ours.index)
    mine = ours["mean"] if better == "higher" else -ours["mean"]
    printed = -ours["paper"] if paper_name in paper.LOWER_IS_BETTER else ours["paper"]
    pairs: dict[str, list[_Pair]] = {"agreeing": [], "opposed": [], "tied": [], "close": []}
    for pair in itertools.combinations(names, 2):
        a, b = sorted(pair, key=lambda title: -printed[title])  # the paper's better one first
        gap, printed_gap = mine[a] - mine[b], printed[a] - printed[b]
        kind = "tied" if gap == 0 or printed_gap == 0 else "agreeing" if gap > 0 else "opposed"
        pairs[kind].append((a, b))
        if abs(gap) < math.hypot(ours["std"][a], ours["std"][b]):  # never with one seed, whose std is nan
            pairs["close"].append((a, b))
    varied = mine.nunique() > 1 and printed.nunique() > 1
    spearman: Any = spearmanr(mine, printed) if varied else None
    kendall: Any = kendalltau(mine, printed) if varied else None
    return _Agreement(
        ours=name,
        paper=paper_name,
        order=sorted(names, key=lambda title: -mine[title]),
        spearman=float(spearman.statistic) if varied else math.nan,
        kendall=float(kendall.statistic) if varied else math.nan,
        chance=_chance(mine, printed) if varied else math.nan,
        says_nothing=says_nothing,
        **pairs,
    )


def _chance(x: pd.Series, y: pd.Series) -> float:
    from scipy.stats import permutation_test

    ranks = y.rank().to_numpy()
    tested = permutation_test(
        (x.rank().to_numpy(),),
        lambda permuted, axis: np.sum(permuted * ranks, axis=axis),  # rises with Spearman's coefficient
        permutation_type="pairings",
        alternative="greater",
        n_resamples=10_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def agreements(table: ComparisonTable, printed: Mapping[str, Mapping[str, str]]) -> list[_Agreement]:
    """Compares the order by each column of ours with that of the printed column that it answers to.

    Only columns are compared that have at least three autoencoders in both.
    """
    found = []
    for k, column in enumerate(table.columns):
        theirs = column.wanted.paper or column.wanted.order_of
        if not theirs or not column.better:
            continue
        values = {name: printed.get(name, {}).get(theirs) for name in table.titles}
        ours = pd.DataFrame(
            {"mean": table.mean[k], "std": table.std[k], "paper": pd.Series(values, dtype=float)}
        )
        ours = ours.dropna(subset=["mean", "paper"]).rename(index=table.titles)
        if len(ours) >= _FEWEST:
            silent = table.says_nothing(k)
            found.append(_compare_orders(column.title, ours, column.better, theirs, silent))
    return found


def order_table(found: Sequence[_Agreement]) -> Table:
    """Returns a row a comparison of orders."""

    def pairs(of: Sequence[_Pair]) -> str:
        return ", ".join("–".join(pair) for pair in of) or "none"

    rows = {
        "the paper's": [entry.paper for entry in found],
        "Spearman": [_coefficient(entry.spearman) for entry in found],
        "Kendall": [_coefficient(entry.kendall) for entry in found],
        "p": [_coefficient(entry.chance) for entry in found],
        "pairs that agree": [
            f"{len(entry.agreeing)} of {len(entry.agreeing) + len(entry.opposed) + len(entry.tied)}"
            for entry in found
        ],
        "our order, best first": [", ".join(entry.order) for entry in found],
        "pairs in the opposite order": [pairs(entry.opposed) for entry in found],
        "pairs within the spread": [pairs(entry.close) for entry in found],
    }
    words = [name for name in rows if name not in ("Spearman", "Kendall", "p", "pairs that agree")]
    return Table(
        pd.DataFrame(rows, index=pd.Index([entry.ours for entry in found], name="ours")), frozenset(words)
    )


def _coefficient(value: float) -> str:
    return "—" if math.isnan(value) else format_value(value)


def summary(found: Sequence[_Agreement]) -> str:
    """Returns how many pairs agree over all metrics that say anything, or nothing where there is no order."""
    counted = [entry for entry in found if not entry.says_nothing]
    silent = [entry.ours for entry in found if entry.says_nothing]
    agreeing = sum(len(entry.agreeing) for entry in counted)
    pairs = agreeing + sum(len(entry.opposed) + len(entry.tied) for entry in counted)
    parts = []
    if pairs:
        parts.append(f"Over {len(counted)} metrics, {agreeing} of {pairs} pairs follow the paper's ranking")
    if silent:
        parts.append(f"not counted: {join_words(silent)}, whose means are all below {NOTHING}")
    return "; ".join(parts)
