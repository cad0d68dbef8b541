"""A web server of a test's own on the loopback address."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Quiet(SimpleHTTPRequestHandler):
    """Serves the files of a folder, and prints nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: Callable[..., Quiet]) -> Iterator[str]:
    """Yields the address of a server that lives as long."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
