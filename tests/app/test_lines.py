"""How visitors wait: fair lines, a light and a heavy one, and jobs that can be stopped."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise

import pytest

from ldmae.app import lines
from ldmae.app.lines import HEAVY, Audience, Line, Visitor, Waiting, _Bounds, followed
from ldmae.app.turns import _LOADS, Job, Stopped
from ldmae.core.errors import UserError

from .test_turns import in_thread, wait_until

ONE = Visitor("one", "192.0.2.1")
HERE = Visitor("here", "127.0.0.1")


def line(running: int = 8, **bounds: int) -> Line:
    limits = {"per_session": 99, "per_address": 99, "in_all": 99} | bounds
    return Line(_Bounds(running=running, **limits))


def empty(waited: Line) -> bool:
    return not (waited._running or waited._waiting)


def jobs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ldmae-job"]


async def follow(work: Callable[[Job], object], waited: Line | None = None) -> list:
    """Returns all that a job tells, and at last its result."""
    return [item async for item in followed(work, waited or line(), ONE)]


async def cancel_soon(following: Coroutine[None, None, list]) -> None:
    task = asyncio.create_task(following)
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_followed_yields_reports_and_at_last_the_result():
    def work(job: Job) -> str:
        for k in range(3):
            job.report(k)
            time.sleep(0.05)
        return "done"

    assert asyncio.run(follow(work)) == [0, 1, 2, "done"]


def test_followed_skips_news_that_are_old_when_it_is_asked():
    def work(job: Job) -> str:
        for k in range(100):
            job.report(k)
        return "done"

    async def follow_slowly() -> list:
        seen = []
        async for item in followed(work, line(), ONE):
            seen.append(item)
            await asyncio.sleep(0.2)
        return seen

    seen = asyncio.run(follow_slowly())
    assert seen[-1] == "done"
    assert len(seen) < 10


def test_followed_raises_what_the_job_raised():
    def work(job: Job) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(follow(work))


def endless(steps: list[int]) -> Callable[[Job], None]:
    def work(job: Job) -> None:
        while len(steps) < 3000:
            steps.append(1)
            job.report(len(steps))
            time.sleep(0.01)

    return work


def test_closing_stops_the_job_within_a_step():
    steps: list[int] = []

    async def follow_and_close() -> None:
        stream = followed(endless(steps), line(), ONE)
        async for _ in stream:
            if len(steps) > 3:
                break
        await stream.aclose()

    asyncio.run(follow_and_close())
    wait_until(lambda: not jobs())
    assert 3 < len(steps) < 20


def test_cancelling_the_task_that_waits_stops_the_job():
    steps: list[int] = []
    asyncio.run(cancel_soon(follow(endless(steps))))
    wait_until(lambda: not jobs())
    assert 0 < len(steps) < 100


def test_a_job_that_is_stopped_while_it_waits_never_begins():
    waited, begun = line(), []
    with Job(waited.turns):
        asyncio.run(cancel_soon(follow(lambda job: begun.append(1), waited)))
    wait_until(lambda: not jobs())
    assert begun == []


def test_two_jobs_go_on_side_by_side():
    waited, order = line(), []

    def work(name: str) -> Callable[[Job], None]:
        def steps(job: Job) -> None:
            for _ in range(10):
                order.append(name)
                time.sleep(0.01)
                job.report(name)

        return steps

    async def both() -> None:
        await asyncio.gather(follow(work("a"), waited), follow(work("b"), waited))

    asyncio.run(both())
    changes = sum(x != y for x, y in pairwise(order))
    assert changes > 10


def test_what_is_done_aside_holds_up_nobody():
    waited, order = line(), []

    def download(job: Job) -> None:
        with job.aside():
            wait_until(lambda: order == ["other"])
        order.append("back")

    def other() -> None:
        with Job(waited.turns):
            order.append("other")

    async def download_and_let_another_in() -> None:
        task = asyncio.create_task(follow(download, waited))
        await asyncio.sleep(0.05)
        in_thread(other)
        await task

    asyncio.run(download_and_let_another_in())
    assert order == ["other", "back"]
    wait_until(lambda: empty(waited))


def test_what_is_stopped_while_it_loads_holds_its_place_until_it_is_loaded():
    waited, loading, done = line(), [], threading.Event()

    def load(job: Job) -> None:
        with job.aside():
            loading.append(None)
            done.wait(10)

    async def start_and_stop() -> None:
        for _ in range(_LOADS + 3):
            task = asyncio.create_task(anext(followed(load, waited, ONE)))
            await asyncio.sleep(0.03)
            task.cancel()
        await asyncio.sleep(0.1)

    asyncio.run(start_and_stop())
    assert len(loading) == _LOADS
    done.set()
    wait_until(lambda: empty(waited))
    assert len(loading) == _LOADS


# ---- who comes when


class Held:
    """Requests that run until they are let go."""

    def __init__(self, waited: Line) -> None:
        self.line, self.started, self.places = waited, [], {}

    def ask(self, name: str, address: str = "192.0.2.1", session: str = "") -> None:
        visitor = Visitor(session or name, address)
        self.places[name] = self.line.join(visitor, lambda: self.started.append(name))

    def finish(self, name: str) -> None:
        self.line.leave(self.places[name])


def test_many_requests_from_one_address_do_not_hold_up_the_first_from_another():
    held = Held(line(running=2))
    for k in range(5):
        held.ask(f"flood {k}", "192.0.2.1")
    held.ask("other", "192.0.2.2")
    assert held.started == ["flood 0", "flood 1"]
    assert held.line.ahead(held.places["other"]) == 2
    assert held.line.ahead(held.places["flood 4"]) == 5
    for k in range(3):
        held.finish(f"flood {k}")
    assert held.started == ["flood 0", "flood 1", "other", "flood 2", "flood 3"]


def test_those_of_one_address_start_in_the_order_in_which_they_came():
    held = Held(line(running=1))
    for k in range(4):
        held.ask(str(k))
    for k in range(4):
        held.finish(str(k))
    assert held.started == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("bounds", "same", "message"),
    [
        ({"per_session": 2}, {"session": "s", "address": "a"}, "2 of your requests are running or waiting"),
        ({"per_address": 2}, {"address": "a"}, "your network address has 2 requests running or waiting"),
        ({"in_all": 2}, {}, "the page is busy with 2 requests; try again"),
    ],
)
def test_a_request_beyond_a_limit_is_told_and_one_after_another_ended_is_taken(bounds, same, message):
    held = Held(line(running=1, **bounds))
    for k in range(2):
        held.ask(str(k), **({"address": str(k)} | same))
    with pytest.raises(UserError, match=message):
        held.ask("third", **({"address": "x"} | same))
    if "in_all" not in bounds:
        held.ask("another visitor's", "far", "other")
    held.finish("0")
    held.ask("fourth", **({"address": "y"} | same))


def test_neither_one_page_nor_one_address_can_fill_the_line():
    held = Held(Line(HEAVY))
    for k in range(HEAVY.per_session):
        held.ask(str(k), session="forged")
    with pytest.raises(UserError, match="your requests"):
        held.ask("one more", session="forged")
    for k in range(HEAVY.per_address - HEAVY.per_session):
        held.ask(f"session {k}")
    with pytest.raises(UserError, match="your network address"):
        held.ask("one session more")
    held.ask("somebody else", "192.0.2.2")


def test_who_waits_learns_how_many_people_are_ahead(monkeypatch):
    monkeypatch.setattr(lines, "_TICK", 0.01)
    held, news = Held(line(running=2)), []
    for name in ("a", "b", "c"):
        held.ask(name)

    async def wait() -> None:
        async for item in followed(lambda job: "done", held.line, ONE):
            news.append(item)
            if isinstance(item, Waiting):
                held.finish("cba"[item.ahead - 1])

    asyncio.run(asyncio.wait_for(wait(), 10))
    assert news == [Waiting(3), Waiting(2), "done"]


def test_a_request_that_nobody_listens_to_is_dropped_whether_it_waits_or_runs(monkeypatch):
    monkeypatch.setattr(lines, "_TICK", 0.01)
    monkeypatch.setattr(lines, "_UNHEARD", 0.1)
    audience, steps = Audience(), []
    waited = Line(_Bounds(running=1, per_session=9, per_address=9, in_all=9), audience.heard)

    async def follow_as(session: str) -> str:
        try:
            async for _ in followed(endless(steps), waited, Visitor(session, "192.0.2.1")):
                if session == "heard" and len(steps) > 40:
                    return "left by itself"
        except Stopped:
            return "dropped"
        return "ended"

    async def all_three() -> list[str]:
        with audience.listening("heard"):
            return await asyncio.gather(*map(follow_as, ("runs unheard", "waits unheard", "heard")))

    assert asyncio.run(asyncio.wait_for(all_three(), 20)) == ["dropped", "dropped", "left by itself"]
    wait_until(lambda: empty(waited) and not jobs())
    assert not audience.heard("heard")


def test_a_light_request_does_not_wait_for_a_long_pass_of_a_heavy_one(bench):
    passing, done = threading.Event(), threading.Event()

    def one_long_pass(job: Job) -> None:
        passing.set()
        done.wait(10)

    async def both() -> None:
        heavy = asyncio.create_task(anext(followed(one_long_pass, bench.heavy, HERE)))
        await asyncio.to_thread(passing.wait, 5)
        light = followed(lambda job: "seen", bench.light, HERE)
        assert await asyncio.wait_for(anext(light), 5) == "seen"
        done.set()
        await heavy

    with bench.audience.listening(HERE.session):
        asyncio.run(both())
