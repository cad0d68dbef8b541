"""How many threads are taken, of work that takes as long as it is told."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from ldmae.core.threads import TimedThreads, allowed_cores, fastest_threads, most_threads


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    """Puts the process's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float], int], TimedThreads]:
    """Returns what is chosen for work of so many milliseconds, by a clock that only this work moves."""
    now = 0.0

    def choose(milliseconds: dict[int, float], most: int) -> TimedThreads:
        def work() -> None:
            nonlocal now
            now += milliseconds[torch.get_num_threads()] / 1e3

        monkeypatch.setattr("ldmae.core.threads.time", SimpleNamespace(perf_counter=lambda: now))
        return fastest_threads(work, most, seconds=0)

    return choose


def test_more_threads_are_taken_where_they_are_faster(choice):
    found = choice({1: 12, 2: 4}, 2)
    assert found.count == 2
    assert found.seconds[1] > found.seconds[2] > 0


def test_one_thread_is_taken_where_more_are_slower_or_little_faster(choice):
    assert choice({1: 4, 2: 12}, 2).count == 1
    assert choice({1: 20, 2: 19.5}, 2).count == 1


def test_a_middle_number_of_threads_is_taken_where_all_are_too_many(choice):
    assert choice({1: 12, 4: 4, 6: 9}, 6).count == 4


def test_with_one_thread_allowed_nothing_is_timed():
    assert fastest_threads(lambda: pytest.fail("timed"), 1) == TimedThreads(1, {})


def test_no_more_threads_are_tried_than_cores_are_allowed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldmae.core.threads._AT_START", 8)
    cores = os.sched_getaffinity(0)
    assert most_threads() == min(8, len(cores))
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert (allowed_cores(), most_threads(), most_threads(processes=2)) == (1, 1, 1)
    finally:
        os.sched_setaffinity(0, cores)


def test_the_rates_seen_are_told():
    assert TimedThreads(2, {1: 0.5, 2: 0.25}).said(16) == "computing with 2 threads (64 images/s, 32 with 1)"
