import threading
import time
from collections.abc import Callable

import pytest

from ldmae.app.turns import Job, Turns


def in_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def wait_until(true: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def test_turns_are_given_in_the_order_in_which_they_were_asked_for():
    turns, order = Turns(), []
    with Job(turns):
        threads = []
        for k in range(4):

            def work(k: int = k) -> None:
                with Job(turns):
                    order.append(k)

            threads.append(in_thread(work))
            wait_until(lambda k=k: len(turns.line) == k + 2)
        assert order == []
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3]


def test_never_do_two_compute_at_once():
    turns, inside, most = Turns(), [], []

    def work() -> None:
        with Job(turns) as turn:
            for _ in range(20):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()
                turn.hand_on()

    threads = [in_thread(work) for _ in range(4)]
    for thread in threads:
        thread.join(10)
    assert len(most) == 80
    assert max(most) == 1


def test_a_long_job_lets_a_short_one_in_between_two_of_its_steps():
    turns, order = Turns(), []

    def short() -> None:
        with Job(turns):
            order.append("short")

    with Job(turns) as turn:
        order.append("step 1")
        turn.hand_on()  # nobody waits: goes on at once
        thread = in_thread(short)
        wait_until(lambda: len(turns.line) == 2)
        order.append("step 2")
        turn.hand_on()
        order.append("step 3")
    thread.join(5)
    assert order == ["step 1", "step 2", "short", "step 3"]


def test_a_failed_turn_is_given_back():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), Job(turns):
        _ = 1 / 0
    assert not turns.line
