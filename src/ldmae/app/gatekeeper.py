"""What reaches the server: which host names, which of Gradio's routes, requests of which form and size."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections import deque
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import compile_path

from ldmae.app.hosts import Hosts
from ldmae.app.lines import Audience
from ldmae.app.uploads import CLEANED_EVERY, KEPT_FOR, Limits, too_large

logger = logging.getLogger(__name__)

_JOIN, _RUN, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/run/{api_name}", "/gradio_api/upload"
_LISTEN = "/gradio_api/queue/data"
_OPEN = {
    "GET": (
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/robots.txt",
        "/manifest.json",
        "/assets/{path:path}",
        "/static/{path:path}",
        "/svelte/{path:path}",
        "/gradio_api/startup-events",
        "/gradio_api/heartbeat/{session_hash}",
        "/gradio_api/upload_progress",
        _LISTEN,
    ),
    "HEAD": ("/",),
    "POST": (_JOIN, _RUN, _UPLOAD, "/gradio_api/cancel", "/gradio_api/reset"),
}
"""The routes that the page needs, by method. All others are closed, those too that a later Gradio brings:
some read files, fetch addresses or show what other visitors do."""
_PATTERNS = {
    method: [(route, compile_path(route)[0]) for route in routes] for method, routes in _OPEN.items()
}

_FORM = 1 << 16
"""Bytes of a request without a file, and those that a form may have around a file."""
_MOST_AT_ONCE, _MOST_FROM_ONE = 50, 20
"""Files of the largest size that all visitors, and those of one address, may send within the time for which
files are kept."""
_ONLY_FROM_HERE = b"img-src 'self' data: blob:; media-src 'self' data: blob:"
"""The header's policy that keeps browsers from fetching what a model's card names."""


def _open_route(method: str, path: str) -> str | None:
    """Returns the open route that a request goes to, or None where there is none."""
    return next((route for route, pattern in _PATTERNS.get(method, ()) if pattern.match(path)), None)


class Gatekeeper:
    """ASGI middleware that passes on the requests which the page itself makes, and answers all others.

    It refuses foreign hosts and sites (`Hosts`), closed routes (`_OPEN`), requests which say no size or too
    large a one, those that no page sends, and uploads when many came lately. It tells the audience who
    listens, and removes empty folders of uploads.
    """

    def __init__(
        self, app: Any, page: Any, limits: Limits, hosts: Hosts, audience: Audience, uploads: Path
    ) -> None:
        self.app, self.page, self.limits = app, page, limits
        self.hosts, self.audience, self.uploads = hosts, audience, uploads
        self._lately: deque[tuple[float, int, str]] = deque()
        """When uploads came, their bytes, and from which address."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page has no WebSocket
            return await send({"type": "websocket.close"})
        route = _open_route(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")))
        refused = self._refused(scope, route)
        if refused is None and route in (_JOIN, _RUN):
            try:
                body = await Request(scope, receive).body()
            except ClientDisconnect:
                return None
            receive = _once_more(body, receive)
            refused = self._forged(body)
        if refused is not None:
            return await PlainTextResponse(*refused)(scope, receive, send)
        listens: Any = contextlib.nullcontext()
        if route == _LISTEN:
            listens = self.audience.listening(Request(scope).query_params.get("session_hash", ""))
        with listens:
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def send_with_policy(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], (b"content-security-policy", _ONLY_FROM_HERE)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_policy)
        except Exception as error:  # Gradio raises on requests that no page sends
            logger.warning("%s %s failed: %s", scope["method"], scope["path"], _told(error))
            if begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                answer = PlainTextResponse("the page can't answer this request; reload it", 400)
                await answer(scope, receive, send)

    def _refused(self, scope: Any, route: str | None) -> tuple[str, int] | None:
        """Returns what to answer to a request that is not passed on, and the status; else None."""
        foreign = self.hosts.refuse(scope)
        if foreign is not None:
            return foreign, 403
        if route is None:
            return "this page has nothing at this address", 403
        if scope["method"] != "POST":
            return None
        said = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if not said.isdecimal():
            return "the request must say its size (Content-Length)", 411
        size = int(said)
        if route != _UPLOAD:
            refused = f"the request has {size} bytes; at most {_FORM} are accepted"
            return None if size <= _FORM else (refused, 413)
        if size > self.limits.bytes + _FORM:
            return str(too_large(size, self.limits)), 413
        self._sweep()
        return self._too_many(size, (scope.get("client") or ("",))[0])

    def _forged(self, body: bytes) -> tuple[str, int] | None:
        """Returns what to answer to a request for a function that the page does not have; else None."""
        try:
            asked = json.loads(body)
            known = asked["fn_index"] in self.page.fns and type(asked["fn_index"]) is int
            session = asked.get("session_hash")
            known &= isinstance(session, str) and re.fullmatch(r"[\w-]{1,64}", session) is not None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            known = False
        return None if known else ("the page does not know this request; reload it", 400)

    def _too_many(self, size: int, address: str) -> tuple[str, int] | None:
        now = time.monotonic()
        while self._lately and self._lately[0][0] < now - KEPT_FOR - CLEANED_EVERY:
            self._lately.popleft()
        size = max(size, _FORM)  # many small files fill a disk too
        largest = self.limits.bytes + _FORM
        sent = [(each, sender) for _, each, sender in self._lately]
        if size + sum(each for each, _ in sent) > _MOST_AT_ONCE * largest:
            return "too many files were sent to this page lately; try again in a few minutes", 503
        if size + sum(each for each, sender in sent if sender == address) > _MOST_FROM_ONE * largest:
            return "too many files were sent from your network address; try again in a few minutes", 429
        self._lately.append((now, size, address))
        return None

    def _sweep(self) -> None:
        """Removes the folders of uploads that Gradio has emptied."""
        old = time.time() - KEPT_FOR
        with contextlib.suppress(OSError):
            for folder in self.uploads.iterdir():
                with contextlib.suppress(OSError):  # it holds a file, or another has removed it
                    if folder.is_dir() and folder.stat().st_mtime < old:
                        folder.rmdir()


def _once_more(body: bytes, receive: Any) -> Any:
    """Returns a `receive` that gives a body which was read already, then what comes after it."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _told(error: Any) -> str:
    while getattr(error, "exceptions", None):  # a group of them
        error = error.exceptions[0]
    return f"{type(error).__name__}: {str(error)[:200]}"
