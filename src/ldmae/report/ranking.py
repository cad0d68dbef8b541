"""Whether the paper's order of the autoencoders holds in our figures: computed, metric by metric."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ldmae.report import paper
from ldmae.report.formatting import join_words
from ldmae.report.tables import NOTHING, Table
from ldmae.report.units import Spread

FEWEST = 3
"""Autoencoders below which an order says nothing."""


@dataclass(frozen=True)
class Agreement:
    """The order by one of our figures against the order by the paper's."""

    ours: str
    """Our figure."""
    paper: str
    """The paper's."""
    order: list[str]
    """From best to worst, by ours."""
    paper_order: list[str]
    spearman: float
    kendall: float
    """Kendall's τ-b."""
    chance: float
    """How probable it is that a random order has at least this Spearman coefficient, in (0, 1]: a one-sided
    p-value from all orders, or of more than seven autoencoders from 10,000 of them. Columns aren't
    independent of each other, and it is not corrected for their number."""
    agreeing: list[tuple[str, str]]
    """Pairs of which the same is better in both; the better one stands first."""
    opposed: list[tuple[str, str]]
    """Pairs of which the other is better in ours; the one that is better in the paper stands first."""
    tied: list[tuple[str, str]]
    """Pairs that are equal in one of the two."""
    close: list[tuple[str, str]]
    """Pairs, of whichever kind, that differ by less than the spread of their difference over seeds."""
    says_nothing: bool = False
    """Whether ours are shares of images, each next to 0."""


def compare_orders(
    name: str, ours: Mapping[str, Spread], better: str, paper_name: str, theirs: Mapping[str, float]
) -> Agreement:
    """Compares two orders of the same things.

    Args:
        name: our figure's.
        ours: our figures.
        better: `higher` or `lower`, of ours.
        paper_name: the paper's column.
        theirs: the paper's figures, of the same keys.

    Returns:
        The comparison; its correlations and their chance are nan where all figures are equal.
    """
    from scipy.stats import kendalltau, spearmanr

    assert ours.keys() == theirs.keys(), f"{list(ours)} is not {list(theirs)}"
    names = list(ours)
    mine = {name: _rising(ours[name].mean, better) for name in names}
    printed = {name: _rising(theirs[name], paper.BETTER[paper_name]) for name in names}
    pairs: dict[str, list[tuple[str, str]]] = {"agreeing": [], "opposed": [], "tied": [], "close": []}
    for pair in itertools.combinations(names, 2):
        a, b = sorted(pair, key=lambda name: -printed[name])  # the paper's better one first
        gap, printed_gap = mine[a] - mine[b], printed[a] - printed[b]
        kind = "tied" if gap == 0 or printed_gap == 0 else "agreeing" if gap > 0 else "opposed"
        pairs[kind].append((a, b))
        spread = math.hypot(ours[a].deviation, ours[b].deviation)
        if abs(gap) < spread:  # never with one seed, whose deviation is nan
            pairs["close"].append((a, b))
    x, y = [mine[name] for name in names], [printed[name] for name in names]
    varied = len(set(x)) > 1 and len(set(y)) > 1
    spearman: Any = spearmanr(x, y) if varied else None
    kendall: Any = kendalltau(x, y) if varied else None
    return Agreement(
        ours=name,
        paper=paper_name,
        order=sorted(names, key=lambda name: -mine[name]),
        paper_order=sorted(names, key=lambda name: -printed[name]),
        spearman=float(spearman.statistic) if varied else math.nan,
        kendall=float(kendall.statistic) if varied else math.nan,
        chance=_chance(x, y) if varied else math.nan,
        agreeing=pairs["agreeing"],
        opposed=pairs["opposed"],
        tied=pairs["tied"],
        close=pairs["close"],
    )


def _chance(x: Sequence[float], y: Sequence[float]) -> float:
    import numpy as np
    from scipy.stats import permutation_test, rankdata

    ranks = rankdata(y)
    tested = permutation_test(
        (rankdata(x),),
        lambda permuted, axis: np.sum(permuted * ranks, axis=axis),  # rises with Spearman's coefficient
        permutation_type="pairings",
        alternative="greater",
        n_resamples=10_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def _rising(value: float, better: str) -> float:
    return value if better == "higher" else -value


def agreements(table: Table, figures: Mapping[str, Mapping[str, str]]) -> list[Agreement]:
    """Compares the order by each column with that of the paper's column it answers to.

    Args:
        table: ours.
        figures: the paper's, by autoencoder and column.

    Returns:
        One comparison a column that has at least three autoencoders in both.
    """
    found = []
    for k, column in enumerate(table.columns):
        theirs_name = column.metric.paper or column.metric.order_of
        if not theirs_name or not column.better:
            continue
        ours: dict[str, Spread] = {}
        theirs: dict[str, float] = {}
        for row in table.rows:
            spread, printed = row.cells[k].spread, figures.get(row.variant, {}).get(theirs_name)
            if spread is not None and printed is not None:
                ours[row.title], theirs[row.title] = spread, float(printed)
        if len(ours) >= FEWEST:
            order = compare_orders(column.title, ours, column.better, theirs_name, theirs)
            found.append(replace(order, says_nothing=table.says_nothing(k)))
    return found


def chance_of_full_agreement(count: int) -> str:
    """Returns how probable it is that `count` things come in a given order by chance."""
    return f"1 in {math.factorial(count):,}"


def summary(found: Sequence[Agreement]) -> str:
    """Returns how many pairs agree over all figures that say anything, or nothing where there is no order."""
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
