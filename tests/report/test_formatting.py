import math

import pytest

from ldmae.report.formatting import format_count, format_seconds, format_spread, format_value, join_words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (21.93471, "21.93"),
        (0.89324, "0.893"),
        (0.0123456, "0.0123"),
        (-0.000123, "−0.000123"),
        (1.5e-7, "1.50 × 10⁻⁷"),
        (12345.678, "12,346"),
        (3.2e20, "3.20 × 10²⁰"),
        (1037, "1,037"),
        (0.0, "0"),
        (math.nan, "not a number"),
        (-math.inf, "−∞"),
        (None, "—"),
        ("<b>", "—"),
        (True, "—"),
    ],
)
def test_values_have_the_digits_that_matter(value: object, text: str):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.43, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (144, "2 min 24 s"),
        (7300, "2 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(12, "12"), (4_812_304, "4.8 M"), (675_000_000, "675 M"), (999_999, "1.0 M"), (1.6e9, "1.6 B")],
)
def test_parameter_counts_are_short(number: float, text: str):
    assert format_count(number) == text


def test_words_join_as_in_a_sentence():
    assert [join_words(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (31.5234, 0.1449, "31.52 ± 0.14"),
        (0.0123456, 0.000996, "0.0123 ± 0.0010"),
        (1234.5, 123.4, "1,234 ± 123"),
        (-0.0042, 0.00031, "−0.00420 ± 0.00031"),
        (20.0, 9.96, "20 ± 10"),
        (31.52, math.nan, "31.52"),
        (3.0, 0.0, "3 ± 0"),
    ],
)
def test_a_spread_ends_where_its_deviations_second_digit_does(mean: float, deviation: float, text: str):
    assert format_spread(mean, deviation) == text
