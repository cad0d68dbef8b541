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
    """A lock that is given out in the order in which it was asked for."""

    def __init__(self) -> None:
        self.loads = threading.Semaphore(_LOADS)
        self._changed = threading.Condition()
        self._line: deque[object] = deque()

    @contextlib.contextmanager
    def turn(self) -> Iterator[_Turn]:
        """Waits for a turn and holds it."""
        turn = _Turn(self._changed, self._line)
        turn.take()
        try:
            yield turn
        finally:
            turn.give()


class _Turn:
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
        turn: _Turn,
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
        self.hand_on()

    def hand_on(self) -> None:
        """Lets others have their turn.

        Raises:
            Stopped: nobody wants the job any more.
        """
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
