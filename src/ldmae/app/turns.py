"""How running jobs share one computer: in turns, each handed on whenever a job reports.

One job of a line computes at a time, or two busy visitors would both be slower than one after the other. A
long job hands the turn on after every step of a solver, so that several long jobs advance side by side.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class Stopped(Exception):
    """The visitor stopped the job, or left."""


_LOADS = 2
"""Things that are loaded at once, out of turn: who stops a job that loads does not stop the loading."""


class Turns:
    """Whose turn it is to compute, in the order in which it was asked for."""

    def __init__(self) -> None:
        self.loads = threading.Semaphore(_LOADS)
        self.changed = threading.Condition()
        self.line: deque[Job] = deque()


class Job:
    """A job, which computes in a `with` block when its turn comes; what its function keeps in touch by.

    `stop` is set when nobody wants the job any more; `tell` takes news for the visitor.
    """

    def __init__(
        self,
        turns: Turns,
        stop: threading.Event | None = None,
        tell: Callable[[Any], None] = lambda news: None,
    ) -> None:
        self._turns, self._stop, self._tell = turns, stop or threading.Event(), tell

    def __enter__(self) -> Job:
        with self._turns.changed:
            self._turns.line.append(self)
            self._turns.changed.wait_for(lambda: self._turns.line[0] is self)
        return self

    def __exit__(self, *_: object) -> None:
        with self._turns.changed:
            self._turns.line.remove(self)
            self._turns.changed.notify_all()

    def report(self, news: Any) -> None:
        """Tells the visitor news and hands on the turn; see `hand_on`."""
        self._tell(news)
        self.hand_on()

    def hand_on(self) -> None:
        """Lets all who wait go first.

        Raises:
            Stopped: nobody wants the job any more.
        """
        if len(self._turns.line) > 1:
            self.__exit__()
            self.__enter__()
        self._check()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Gives up the turn for something that does not compute, such as a download, and takes another.

        Raises:
            Stopped: nobody wants the job any more.
        """
        self.__exit__()
        try:
            with self._turns.loads:
                self._check()
                yield
        finally:
            self.__enter__()
        self._check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped
