"""Progress bars, and plain lines where nobody watches a terminal."""

import io

import pytest
from rich.console import Console

from ldmae.core import progress
from ldmae.core.progress import duration, progress_bar


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.6, "1 h"),
        (18_600, "5 h 10 min"),
        (86_399.9, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_read_as_a_reader_wants_them(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever the time is asked for."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


@pytest.fixture
def written(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=stream, width=200, highlight=False))
    return stream


def test_off_a_terminal_a_line_is_printed_every_tenth_with_rate_and_time_left(written, clock):
    with progress_bar("encoding", 40, "images") as advance:
        for _ in range(40):
            advance(1, "loss 1.0")
    lines = [line for line in written.getvalue().splitlines() if line.strip()]
    assert 9 <= len(lines) <= 10
    assert lines[-1] == "encoding: 40/40, 1.0 images/s, 0 s left loss 1.0"


def test_a_resumed_bar_counts_its_rate_from_where_it_went_on(written, clock):
    with progress_bar("training", 100, "steps", start=90) as advance:
        advance(5, "")
        advance(5, "")
    lines = [line for line in written.getvalue().splitlines() if line.strip()]
    assert lines == ["training: 100/100, 5.0 steps/s, 0 s left"]


def test_other_processes_than_the_main_one_print_nothing(written, clock):
    with progress_bar("encoding", 4, "images", show=False) as advance:
        advance(4, "")
    assert written.getvalue().strip() == ""


def test_what_takes_less_than_a_second_prints_nothing(written):
    with progress_bar("encoding", 4, "images") as advance:
        advance(4, "")
    assert written.getvalue().strip() == ""
