import asyncio
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from ldmae.app.turns import LOADS, Job, Turns, followed


def in_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def wait_until(true: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def waiting(turns: Turns) -> int:
    return len(turns._line)


def jobs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ldmae-job"]


def test_turns_are_given_in_the_order_in_which_they_were_asked_for():
    turns, order = Turns(), []
    with turns.turn():
        threads = []
        for k in range(4):

            def work(k: int = k) -> None:
                with turns.turn():
                    order.append(k)

            threads.append(in_thread(work))
            wait_until(lambda k=k: waiting(turns) == k + 2)
        assert order == []
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3]


def test_never_do_two_compute_at_once():
    turns, inside, most = Turns(), [], []

    def work() -> None:
        with turns.turn() as turn:
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
    turns, order, ready = Turns(), [], threading.Event()

    def short() -> None:
        with turns.turn():
            order.append("short")

    with turns.turn() as turn:
        order.append("step 1")
        turn.hand_on()  # nobody waits: goes on at once
        thread = in_thread(short)
        wait_until(lambda: waiting(turns) == 2)
        order.append("step 2")
        turn.hand_on()
        order.append("step 3")
    thread.join(5)
    ready.set()
    assert order == ["step 1", "step 2", "short", "step 3"]


def test_a_failed_turn_is_given_back():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.turn():
        _ = 1 / 0
    assert waiting(turns) == 0


def test_followed_yields_reports_and_at_last_the_result():
    def work(job: Job) -> str:
        for k in range(3):
            job.report(k)
            time.sleep(0.05)
        return "done"

    async def follow() -> list:
        return [item async for item in followed(work, Turns())]

    assert asyncio.run(follow()) == [0, 1, 2, "done"]


def test_followed_skips_news_that_are_old_when_it_is_asked():
    def work(job: Job) -> str:
        for k in range(100):
            job.report(k)
        return "done"

    async def follow() -> list:
        seen = []
        async for item in followed(work, Turns()):
            seen.append(item)
            await asyncio.sleep(0.2)
        return seen

    seen = asyncio.run(follow())
    assert seen[-1] == "done"
    assert len(seen) < 10


def test_followed_raises_what_the_job_raised():
    def work(job: Job) -> None:
        raise ValueError("broken")

    async def follow() -> None:
        async for _ in followed(work, Turns()):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(follow())


def endless(steps: list[int]) -> Callable[[Job], None]:
    def work(job: Job) -> None:
        while len(steps) < 3000:
            steps.append(1)
            job.report(len(steps))
            time.sleep(0.01)

    return work


def test_closing_stops_the_job_within_a_step():
    steps: list[int] = []

    async def follow() -> None:
        stream = followed(endless(steps), Turns())
        async for _ in stream:
            if len(steps) > 3:
                break
        await stream.aclose()

    asyncio.run(follow())
    wait_until(lambda: not jobs())
    assert 3 < len(steps) < 20


def test_cancelling_the_task_that_waits_stops_the_job():
    steps: list[int] = []

    async def follow() -> None:
        async for _ in followed(endless(steps), Turns()):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(follow())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    wait_until(lambda: not jobs())
    assert 0 < len(steps) < 100


def test_a_job_that_is_stopped_while_it_waits_never_begins():
    turns, begun = Turns(), []

    async def follow() -> None:
        async for _ in followed(lambda job: begun.append(1), turns):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(follow())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with turns.turn():
        asyncio.run(cancel())
    wait_until(lambda: not jobs())
    assert begun == []


def test_two_jobs_go_on_side_by_side():
    turns, order = Turns(), []

    def work(name: str) -> Callable[[Job], None]:
        def steps(job: Job) -> None:
            for _ in range(10):
                order.append(name)
                time.sleep(0.01)
                job.report(name)

        return steps

    async def follow(name: str) -> None:
        async for _ in followed(work(name), turns):
            pass

    async def both() -> None:
        await asyncio.gather(follow("a"), follow("b"))

    asyncio.run(both())
    changes = sum(x != y for x, y in pairwise(order))
    assert changes > 10


def test_what_is_done_aside_holds_up_nobody():
    turns, order = Turns(), []

    def download(job: Job) -> None:
        with job.aside():
            wait_until(lambda: order == ["other"])
        order.append("back")

    def other() -> None:
        with turns.turn():
            order.append("other")

    async def follow() -> None:
        task = asyncio.create_task(anext(followed(download, turns)))
        await asyncio.sleep(0.05)
        in_thread(other)
        await task

    asyncio.run(follow())
    assert order == ["other", "back"]
    assert waiting(turns) == 0


def test_what_is_stopped_while_it_loads_holds_its_place_until_it_is_loaded():
    turns, loading, done = Turns(), [], threading.Event()

    def load(job: Job) -> None:
        with job.aside():
            loading.append(None)
            done.wait(10)

    async def start_and_stop() -> None:
        for _ in range(LOADS + 3):
            task = asyncio.create_task(anext(followed(load, turns)))
            await asyncio.sleep(0.03)
            task.cancel()
        await asyncio.sleep(0.1)

    asyncio.run(start_and_stop())
    assert len(loading) == LOADS
    done.set()
    wait_until(lambda: waiting(turns) == 0)
    assert len(loading) == LOADS
