"""Names beside the points of a plot, where they hide neither each other nor points nor error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from ldmae.report.units import Spread

WIDTH, HEIGHT = 265, 210
"""Of a plot of σ² against ρ, in typographic points, about."""
LETTER, HALF_LINE = 6.2, 6
"""Width of a letter, and half the height of a line, in typographic points, about."""
AROUND = 6
"""How far a marker goes to either side."""
TELLING = 3
"""By how much a name must be nearer to its own point than to another's, not to seem that one's."""
MISTAKEN = 100
"""What a name that seems another's weighs, as an area that is hidden."""
BESIDE = ((9, 0, "left"), (-9, 0, "right"), (0, 13, "center"), (0, -13, "center"))
DIAGONAL = ((9, 10, "left"), (-9, 10, "right"), (9, -10, "left"), (-9, -10, "right"))

Place = tuple[float, float, str]
"""Where a name stands from its point, in typographic points, and how it is aligned there."""
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


@dataclass(frozen=True)
class NamedPoint:
    """A point and what stands beside it."""

    title: str
    x: Spread
    y: Spread
    colour: str


def name_points(ax: Axes, points: Sequence[NamedPoint]) -> None:
    """Writes the points' names beside them; the limits of the axes must not change afterwards."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    scale = WIDTH / (right - left), HEIGHT / (high - low)
    spots = [(scale[0] * (point.x.mean - left), scale[1] * (point.y.mean - low)) for point in points]
    reach = [(scale[0] * _size(point.x), scale[1] * _size(point.y)) for point in points]
    for point, (dx, dy, side) in zip(points, places([p.title for p in points], spots, reach), strict=True):
        ax.annotate(
            point.title, (point.x.mean, point.y.mean), (dx, dy), textcoords="offset points",
            color=point.colour, fontsize=9, fontweight="bold", ha=side, va="center",
        )  # fmt: skip


def places(
    titles: Sequence[str], spots: Sequence[tuple[float, float]], reach: Sequence[tuple[float, float]]
) -> list[Place]:
    """Chooses where names stand: each at the place that hides least, of such places the first.

    Args:
        titles: the names.
        spots: their points, from the plot's lower left corner, in typographic points.
        reach: how far the error bars go from them, to either side; 0 where there are none.
    """
    taken = [box for spot, bars in zip(spots, reach, strict=True) for box in _marks(spot, bars)]
    chosen = []
    for title, spot, bars in zip(titles, spots, reach, strict=True):
        length = LETTER * len(title)
        known = candidates(bars)
        boxes = [name_box(spot, place, length) for place in known]
        others = [other for other in spots if other != spot]
        hidden = [
            sum(overlap(box, other) for other in taken) + _beyond(box) + _mistaken(box, spot, others)
            for box in boxes
        ]
        best = hidden.index(min(hidden))
        taken.append(boxes[best])
        chosen.append(known[best])
    return chosen


def candidates(bars: tuple[float, float]) -> tuple[Place, ...]:
    """Returns where a name may stand, the preferred place first: with error bars above or below them."""
    if not any(bars):
        return (*BESIDE, *DIAGONAL)
    right, up = (reach + 8 for reach in bars)
    ends = ((0, up, "center"), (0, -up, "center"), (right, 0, "left"), (-right, 0, "right"))
    return (*DIAGONAL, *ends)


def name_box(spot: tuple[float, float], place: Place, length: float) -> Box:
    """Returns what a name of a length covers at a place."""
    (x, y), (dx, dy, side) = spot, place
    start = x + dx - {"left": 0, "center": length / 2, "right": length}[side]
    return start, y + dy - HALF_LINE, start + length, y + dy + HALF_LINE


def overlap(a: Box, b: Box) -> float:
    """Returns the area that two boxes share."""
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    return max(width, 0) * max(height, 0)


def _marks(spot: tuple[float, float], bars: tuple[float, float]) -> list[Box]:
    """Returns what a point and its two error bars need for themselves."""
    (x, y), (across, up) = spot, bars
    marker = (x - AROUND, y - AROUND, x + AROUND, y + AROUND)
    return [marker, (x - across, y - 2, x + across, y + 2), (x - 2, y - up, x + 2, y + up)]


def _beyond(box: Box) -> float:
    """Returns the area of a box that lies outside the plot."""
    return (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, (0, 0, WIDTH, HEIGHT))


def _mistaken(box: Box, spot: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    near = _distance(box, spot) + TELLING
    return MISTAKEN * sum(_distance(box, other) < near for other in others)


def _distance(box: Box, spot: tuple[float, float]) -> float:
    """Returns how far a point is from a box, 0 inside."""
    return math.hypot(*(max(box[k] - spot[k], spot[k] - box[k + 2], 0) for k in (0, 1)))


def _size(spread: Spread) -> float:
    return 0 if math.isnan(spread.deviation) else spread.deviation
