"""How visitors wait: in a light and a heavy line, each fair to addresses and with limits per visitor.

Light requests (looking into the page's own autoencoder) never wait for heavy ones (generating, comparing):
the two lines compute at the same time. A line starts a few requests at once, which then take `turns`; the
others wait, see how many people are ahead of them, and are dropped when nobody listens to them any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ldmae.app.turns import Job, Stopped, Turns
from ldmae.core.errors import UserError

_UNHEARD = 10.0
"""Seconds after which a request that nobody listens to is dropped: a page listens soon after it asked."""
_TICK = 0.5
"""Seconds between two looks at whether somebody listens, and at how many people are ahead."""


@dataclass(frozen=True)
class Visitor:
    """Whose request it is."""

    session: str
    """Of one opened page."""
    address: str
    """Of the visitor's machine, or of the proxy in front of it."""


@dataclass(frozen=True)
class Waiting:
    """News of a request that has not started."""

    ahead: int
    """People whose requests come first."""


class Audience:
    """Counts who listens to the answers of the server, by session."""

    def __init__(self) -> None:
        self._listening: Counter[str] = Counter()

    @contextlib.contextmanager
    def listening(self, session: str) -> Iterator[None]:
        """Counts a listener while the context lasts."""
        self._listening[session] += 1
        try:
            yield
        finally:
            self._listening[session] -= 1
            if not self._listening[session]:
                del self._listening[session]

    def heard(self, session: str) -> bool:
        """Says whether anybody listens to a session."""
        return session in self._listening


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """How many requests a line takes."""

    running: int
    """Requests that run at once."""
    per_session: int
    """Requests of one opened page, running or waiting; and so on."""
    per_address: int
    in_all: int


HEAVY = _Bounds(running=3, per_session=3, per_address=64, in_all=128)
LIGHT = _Bounds(running=4, per_session=12, per_address=256, in_all=512)
"""A page that opens asks for seven views at once, and a class of pupils opens it from one address."""


class Line:
    """Requests that run or wait, across all visitors.

    The next to start is the earliest request of the address that has had the fewest before it, so that many
    requests from one address do not hold up the first one from another. `heard` says whether anybody listens
    to a session.
    """

    def __init__(self, bounds: _Bounds, heard: Callable[[str], bool] = lambda session: True) -> None:
        self.bounds, self.heard = bounds, heard
        self.turns = Turns()
        self._lock = threading.Lock()
        self._running: list[_Place] = []
        self._waiting: list[_Place] = []

    def join(self, visitor: Visitor, start: Callable[[], None]) -> _Place:
        """Adds a request at the end of the line; `start` is called once, when it may run.

        Raises:
            UserError: the session, its address or all visitors together have too many requests here already.
        """
        place = _Place(visitor, start)
        with self._lock:
            self._check(visitor)
            self._waiting.append(place)
        self._advance()
        return place

    def leave(self, place: _Place) -> None:
        """Removes a request that is over or given up; a second call does nothing."""
        with self._lock:
            for places in (self._waiting, self._running):
                if place in places:
                    places.remove(place)
        self._advance()

    def ahead(self, place: _Place) -> int:
        """Returns how many other people's requests run or start before a waiting one."""
        with self._lock:
            order = self._ordered()
            before = order[: order.index(place)] if place in order else []
            sessions = {each.visitor.session for each in [*self._running, *before]}
        return len(sessions - {place.visitor.session})

    def _check(self, visitor: Visitor) -> None:
        everyone = [each.visitor for each in [*self._running, *self._waiting]]
        addresses, sessions = [each.address for each in everyone], [each.session for each in everyone]

        def refuse(found: int, most: int, text: str) -> None:
            if found >= most:
                raise UserError(text.format(most))

        limit = "running or waiting, which is the limit;"
        refuse(len(everyone), self.bounds.in_all, "the page is busy with {} requests; try again in a minute")
        text = f"your network address has {{}} requests {limit} try again when some have finished"
        refuse(addresses.count(visitor.address), self.bounds.per_address, text)
        text = f"{{}} of your requests are {limit} wait for one to finish, or stop it"
        refuse(sessions.count(visitor.session), self.bounds.per_session, text)

    def _ordered(self) -> list[_Place]:
        """Returns the waiting requests in the order in which they will start."""
        before = Counter(each.visitor.address for each in self._running)
        rounds = {}
        for each in self._waiting:
            rounds[each] = before[each.visitor.address]
            before[each.visitor.address] += 1
        return sorted(self._waiting, key=rounds.__getitem__)  # which keeps the order of equals

    def _advance(self) -> None:
        with self._lock:
            free = self.bounds.running - len(self._running)
            started = self._ordered()[:free] if free > 0 else []
            for place in started:
                self._waiting.remove(place)
                self._running.append(place)
        for place in started:
            place.start()


@dataclass(frozen=True, eq=False)
class _Place:
    """One request in a line."""

    visitor: Visitor
    start: Callable[[], None]


async def followed(work: Callable[[Job], Any], line: Line, visitor: Visitor) -> AsyncGenerator[Any, None]:
    """Runs a job in a thread of its own and yields what it reports, and at last what it returns.

    While the job waits in the line, `Waiting` is yielded when the number of people ahead changes. Of reports
    that came in while nobody asked, the newest is yielded.

    Whoever closes the generator, or cancels the task that waits for it, stops the job: its next report raises
    `Stopped`. The job keeps its place in the line until then. The event loop stays free all the while.

    Raises:
        UserError: the line takes no more.
        Stopped: nobody listens to the visitor's session.
        Exception: what the job raised.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    stop, started = threading.Event(), False

    def tell(kind: str, item: Any = None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the server with it
            loop.call_soon_threadsafe(news.put_nowait, (kind, item))

    def run() -> None:
        try:
            with Job(line.turns, stop, lambda item: tell("report", item)) as job:
                if stop.is_set():
                    return
                result = work(job)
            tell("result", result)
        except Stopped:
            pass
        except Exception as error:
            tell("error", error)
        finally:
            line.leave(place)

    place = line.join(visitor, lambda: tell("start"))
    try:
        async with contextlib.aclosing(_attended(news, line, place)) as attended:
            async for kind, item in attended:
                if kind == "start":
                    threading.Thread(target=run, name="ldmae-job", daemon=True).start()
                    started = True
                    continue
                if kind == "error":
                    raise item
                yield item
                if kind == "result":
                    return
    finally:
        stop.set()
        if not started:
            line.leave(place)


async def _attended(
    news: asyncio.Queue[tuple[str, Any]], line: Line, place: _Place
) -> AsyncGenerator[tuple[str, Any], None]:
    """Yields news, also of the place in the line, as long as somebody listens."""
    heard, ahead, waits = time.monotonic(), None, True
    coming: asyncio.Task[tuple[str, Any]] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(news.get())
            await asyncio.wait([coming], timeout=_TICK)
            if line.heard(place.visitor.session):
                heard = time.monotonic()
            elif time.monotonic() - heard > _UNHEARD:
                raise Stopped("nobody listens")
            if coming.done():
                kind, item = coming.result()
                coming = None
                while kind == "report" and not news.empty():
                    kind, item = news.get_nowait()
                waits = waits and kind != "start"
                yield kind, item
            elif waits and (now := line.ahead(place)) != ahead:
                ahead = now
                yield "waiting", Waiting(ahead)
    finally:
        if coming is not None:
            coming.cancel()


async def answered(work: Callable[[Job], Any], line: Line, visitor: Visitor) -> Any:
    """Runs a job as `followed` does, and returns its result alone."""
    news = [item async for item in followed(work, line, visitor)]
    return news[-1]
