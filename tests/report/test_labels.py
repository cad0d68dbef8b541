import math

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Annotation

from ldmae.report import labels
from ldmae.report.labels import NamedPoint, name_box, name_points, overlap, places
from ldmae.report.units import Spread


def test_a_name_alone_stands_beside_its_point_and_clear_of_its_bars():
    assert places(["AE"], [(100, 100)], [(0, 0)]) == [(9, 0, "left")]
    (place,) = places(["AE"], [(100, 100)], [(30, 40)])
    box = name_box((100, 100), place, 2 * labels.LETTER)
    assert box[1] > 100
    assert not overlap(box, (70, 99, 130, 101))
    assert not overlap(box, (99, 60, 101, 140))


@pytest.mark.parametrize("bars", [(0, 0), (20, 0), (0, 25), (20, 25)])
def test_names_hide_no_point_no_bar_and_no_other_name(bars: tuple[float, float]):
    titles = ["AE", "DAE", "SD-VAE", "VMAE"]
    spots = [(60, 120), (58, 135), (95, 85), (150, 95)]
    chosen = places(titles, spots, [bars] * 4)
    boxes = [name_box(*each, labels.LETTER * len(t)) for *each, t in zip(spots, chosen, titles, strict=True)]
    marks = [(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    marks += [(x - bars[0], y - 0.5, x + bars[0], y + 0.5) for x, y in spots]
    marks += [(x - 0.5, y - bars[1], x + 0.5, y + bars[1]) for x, y in spots]
    for k, box in enumerate(boxes):
        assert not any(overlap(box, mark) for mark in marks), titles[k]
        assert not any(overlap(box, other) for other in boxes[:k]), titles[k]


def test_a_name_stays_in_the_plot_and_seems_no_others():
    ((_, _, side),) = places(["VMAE"], [(labels.WIDTH - 10, 100)], [(0, 0)])
    assert side == "right"
    spots = [(100, 100), (100, 110)]
    for name, (spot, other), place in zip(
        ["AE", "DAE"], [spots, spots[::-1]], places(["AE", "DAE"], spots, [(5, 5)] * 2), strict=True
    ):
        box = name_box(spot, place, labels.LETTER * len(name))
        middle = (box[1] + box[3]) / 2
        assert abs(middle - spot[1]) < abs(middle - other[1])


def test_names_are_written_in_the_points_colours():
    figure, ax = plt.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    one_seed, three = Spread(0.5, math.nan, 1), Spread(0.2, 0.1, 3)
    name_points(ax, [NamedPoint("AE", one_seed, one_seed, "#123456"), NamedPoint("DAE", three, three, "red")])
    written = [text for text in ax.texts if isinstance(text, Annotation)]
    assert [(text.get_text(), text.get_color()) for text in written] == [("AE", "#123456"), ("DAE", "red")]
    assert [text.xy for text in written] == [(0.5, 0.5), (0.2, 0.2)]
    plt.close(figure)
