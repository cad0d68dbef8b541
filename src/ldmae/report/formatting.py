"""Numbers as a reader likes them."""

import math
from typing import Any

from ldmae.core.progress import duration

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def format_value(value: Any) -> str:
    """Formats a measured figure: four significant digits from 1 on, three below, whole numbers whole."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "—"
    if math.isnan(value):
        return "not a number"
    size = abs(value)
    if math.isinf(value):
        text = "∞"
    elif value == 0 or (size < 1e15 and value == int(value)):
        text = f"{int(size):,}"
    elif 1e-4 <= size < 1e15:
        digits = 3 if size >= 1 else 2
        text = f"{size:,.{max(0, digits - math.floor(math.log10(size)))}f}"
    else:
        mantissa, exponent = f"{size:.2e}".split("e")
        text = f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return "−" + text if value < 0 else text


def format_seconds(seconds: float | None) -> str:
    """Formats a duration by its two largest units, below ten seconds to a tenth."""
    if seconds is None:
        return "—"
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def format_count(number: float) -> str:
    """Formats a number of parameters: 4,812,304 is 4.8 M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f} {unit}"
    return f"{number:.0f}"


def join_words(words: list[str]) -> str:
    """Joins words as a sentence does: `a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def format_spread(mean: float, deviation: float) -> str:
    """Formats a mean and its standard deviation: the deviation's two first digits say where both end.

    A deviation that is no number (one seed) or 0 leaves the mean as `format_value` has it; 0 is said.
    """
    if math.isnan(deviation):
        return format_value(mean)
    if not deviation or not math.isfinite(mean) or not 1e-7 < deviation < 1e6:
        return f"{format_value(mean)} ± {format_value(deviation)}"
    digits = 1 - math.floor(math.log10(deviation))
    if float(f"{deviation:.1e}") >= 10 ** (2 - digits):  # 0.0996 is 0.10
        digits -= 1
    digits = max(0, digits)
    return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}".replace("-", "−")
