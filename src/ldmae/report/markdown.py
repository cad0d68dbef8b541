"""The comparison's tables as Markdown, to lie in a repository's documentation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ldmae.report import paper
from ldmae.report.formatting import format_value
from ldmae.report.ranking import Agreement, summary
from ldmae.report.tables import Table
from ldmae.report.units import DAGGER, TRAINED_ON

MEANS = "Means ± sample standard deviations over seeds; bold is the best mean."
COST_COLUMNS = (
    "",
    "printed MB",
    "printed GFLOPs",
    "printed training hours",
    "counted here: M parameters",
    "counted here: G multiply-adds",
)
ORDER_COLUMNS = (
    "ours",
    "the paper's",
    "Spearman",
    "Kendall",
    "p",
    "pairs that agree",
    "our order, best first",
    "pairs in the opposite order",
    "pairs within the spread",
)


def comparison_markdown(
    heading: str,
    facts: Sequence[tuple[str, str]],
    against: str,
    made: dict[str, Table],
    orders: Sequence[Agreement],
    ablation_order: str,
    missing: Sequence[str],
) -> str:
    """Writes all that a comparison says in words and figures.

    Args:
        heading: the page's.
        facts: what was compared, as names and texts.
        against: what the paper measured on, and we, or nothing.
        made: the tables.
        orders: our orders against the paper's.
        ablation_order: how far the ablation's order is the paper's, or nothing.
        missing: what is not there yet, in words.
    """
    lines = [f"# {_text(heading)}", "", *(f"- {name}: {_text(text)}" for name, text in facts), ""]
    lines += [_text(f"{MEANS} {against}"), ""]
    for name, table in made.items():
        lines += [table_markdown(table)]
        if name == "ablation" and ablation_order:
            lines += [f"{ablation_order}, within the ablation.", ""]
        if name == "cost":
            lines += ["### At the paper's size", "", _line(COST_COLUMNS), _rule(COST_COLUMNS)]
            lines += [*(_line(row) for row in paper.COST), "", paper.COST_NOTE, ""]
    lines += ["## Does the paper's ranking hold?", ""]
    if orders:
        lines += [
            f"{_text(summary(orders))}.",
            "",
            _line(ORDER_COLUMNS),
            _rule(ORDER_COLUMNS, left=(0, 1, 6, 7, 8)),
        ]
        lines += [_order_line(entry) for entry in orders]
    else:
        lines += ["A ranking needs three autoencoders."]
    if missing:
        lines += ["", "## Not done yet", "", *(f"- {_text(text)}" for text in missing)]
    return "\n".join(lines) + "\n"


def _order_line(entry: Agreement) -> str:
    pairs = len(entry.agreeing) + len(entry.opposed) + len(entry.tied)
    cells = [
        entry.ours,
        entry.paper,
        format_value(entry.spearman),
        format_value(entry.kendall),
        format_value(entry.chance),
        f"{len(entry.agreeing)} of {pairs}",
        ", ".join(entry.order),
        ", ".join("–".join(pair) for pair in entry.opposed) or "none",
        ", ".join("–".join(pair) for pair in entry.close) or "none",
    ]
    return _line([_text(cell) for cell in cells])


def _rule(columns: Sequence[str], left: Sequence[int] = (0,)) -> str:
    return _line(["---" if i in left else "---:" for i in range(len(columns))])


def table_markdown(table: Table) -> str:
    """Writes a table as Markdown; the paper's figures stand in a row of their own below ours."""
    if not table.columns:
        return f"## {table.title}\n\nNot measured yet.\n"
    lines = [
        _line(["", "seeds", *(_text(column.heading) for column in table.columns)]),
        _line(["---", "---", *("---:" for _ in table.columns)]),
    ]
    for row in table.rows:
        texts = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
        marked = [text + cell.mark for text, cell in zip(texts, row.cells, strict=True)]
        seeds = "1" if row.seeds.startswith("one") else row.seeds.split()[0]
        lines.append(_line([_text(row.title), seeds, *marked]))
        if any(cell.paper for cell in row.cells):
            lines.append(
                _line(["*in the paper*", "", *(f"*{c.paper}*" if c.paper else "" for c in row.cells)])
            )
    if table.floor is not None:
        lines.append(_line([f"*{table.floor.title}*", "", *(cell.text for cell in table.floor.cells)]))
    return "\n".join([f"## {table.title}", "", *lines, "", *_remarks(table)])


def _remarks(table: Table) -> list[str]:
    remarks = []
    if table.missing:
        remarks += [f"Not done yet: {', '.join(table.missing)}.", ""]
    if any(row.seeds.startswith("one") for row in table.rows):
        remarks += ["Rows of 1 seed: one seed, no spread.", ""]
    if table.marked:
        remarks += [f"{DAGGER} the autoencoder was {TRAINED_ON}.", ""]
    for text in table.footnotes:
        remarks += [text, ""]
    return remarks


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(text: str) -> str:
    """Returns a name that Markdown takes as text."""
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))
