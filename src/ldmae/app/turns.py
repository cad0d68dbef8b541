"""How visitors share one computer: in turns, with jobs that can be stopped.

One model computes at a time, or two busy visitors would both be slower than one after the other. A long job
hands the turn on whenever it reports (after every step of a solver), so that the picture which another
visitor waits for comes in between, and two long jobs go on side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any


class Stopped(Exception):
    """The visitor stopped the job, or left."""


LOADS = 2
"""Things that are loaded at once, out of turn: who stops a job that loads does not stop the loading."""


class Turns:
    """A lock that is given out in the order in which it was asked for."""

    def __init__(self) -> None:
        self.loads = threading.Semaphore(LOADS)
        self._changed = threading.Condition()
        self._line: deque[object] = deque()

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn]:
        """Waits for a turn and holds it."""
        turn = Turn(self._changed, self._line)
        turn.take()
        try:
            yield turn
        finally:
            turn.give()


class Turn:
    """A place in the line; whoever is first in it computes."""

    def __init__(self, changed: threading.Condition, line: deque[object]) -> None:
        self._changed, self._line = changed, line

    def take(self) -> None:
        """Queues up and waits."""
        with self._changed:
            self._line.append(self)
            self._changed.wait_for(lambda: self._line[0] is self)

    def give(self) -> None:
        """Lets the next one go on."""
        with self._changed:
            self._line.remove(self)
            self._changed.notify_all()

    def hand_on(self) -> None:
        """Lets all who wait go first, then goes on."""
        if len(self._line) > 1:
            self.give()
            self.take()


class Job:
    """What a job's function is given, to keep in touch."""

    def __init__(
        self,
        turn: Turn,
        stop: threading.Event,
        tell: Callable[[Any], None],
        loads: threading.Semaphore,
    ) -> None:
        self._turn, self._stop, self._tell, self._loads = turn, stop, tell, loads

    def report(self, news: Any) -> None:
        """Tells the visitor news, and lets others have their turn.

        Raises:
            Stopped: nobody wants the job any more.
        """
        self._tell(news)
        self._turn.hand_on()
        self._check()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Gives up the turn for something that does not compute, such as a download, and takes another.

        Raises:
            Stopped: nobody wants the job any more.
        """
        self._turn.give()
        try:
            with self._loads:
                self._check()
                yield
        finally:
            self._turn.take()
        self._check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped


async def followed(work: Callable[[Job], Any], turns: Turns) -> AsyncGenerator[Any, None]:
    """Runs a job in a thread of its own and yields what it reports, and at last what it returns.

    Of reports that came in while nobody asked, the newest is yielded.

    Whoever closes the generator, or cancels the task that waits for it, stops the job: its next report
    raises `Stopped`. While the job waits for its turn or computes, the event loop stays free.

    Args:
        work: the job. It is called in its turn.
        turns: whose turn it is.

    Raises:
        Exception: what the job raised.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    stop = threading.Event()

    def tell(kind: str, item: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the server with it
            loop.call_soon_threadsafe(news.put_nowait, (kind, item))

    def run() -> None:
        try:
            with turns.turn() as turn:
                if stop.is_set():
                    return
                result = work(Job(turn, stop, lambda item: tell("report", item), turns.loads))
            tell("result", result)
        except Stopped:
            pass
        except Exception as error:
            tell("error", error)

    threading.Thread(target=run, name="ldmae-job", daemon=True).start()
    try:
        while True:
            kind, item = await news.get()
            while kind == "report" and not news.empty():
                kind, item = news.get_nowait()
            if kind == "error":
                raise item
            yield item
            if kind == "result":
                return
    finally:
        stop.set()
