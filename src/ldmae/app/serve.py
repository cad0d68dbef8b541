"""Opens the page: checks what it needs, loads the models, serves."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable

from ldmae.app.hosts import Hosts, is_loopback
from ldmae.app.uploads import MIB, Limits
from ldmae.core.errors import UserError
from ldmae.core.imports import require

_FIRST_PORT, _PORTS = 7860, 40
"""Where a free port is looked for if none is named."""
_GRADIO = "gradio>=6.31,<7"
"""What the extra `app` installs."""


def serve(
    source: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    device: str = "auto",
    perceptual: str = "st-lpips-alex",
    compare: tuple[str, ...] = (),
    only_offered: bool = False,
    max_upload_mb: float = 10,
    max_megapixels: float = 50,
    open_browser: bool = False,
    allowed_hosts: tuple[str, ...] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serves the page until it is interrupted; the options are those of `ldmae app`.

    On an address that other machines reach, and where the page is shared, visitors can compare only the
    autoencoders in `compare`: see `_may_name_sources`.

    Raises:
        UserError: Gradio is missing, the port can't be had, an allowed host is no host name, or the source
            is none.
    """
    require("the web app", "gradio", install=f'"{_GRADIO}"')
    largest, pixels = max_upload_mb * MIB, max_megapixels * 1e6
    if not (1 <= largest < math.inf and 1 <= pixels < math.inf):
        raise UserError(
            f"upload limits must be at least 1 byte and 1 pixel, got {max_upload_mb} MiB and "
            f"{max_megapixels} megapixels; use a positive --max-upload-mb and --max-megapixels"
        )
    limits = Limits(bytes=int(largest), pixels=int(pixels))
    hosts = Hosts(host, allowed_hosts)
    port = _free_port(host, port)
    say(f"opening {source} …")
    with contextlib.ExitStack() as stack:
        # uploads and pictures go to a folder that only this user can read, and that does not outlive the page
        folder = tempfile.TemporaryDirectory(prefix="ldmae-app-", ignore_cleanup_errors=True)
        os.environ["GRADIO_TEMP_DIR"] = stack.enter_context(folder)
        from diffusers.utils.logging import disable_progress_bar

        from ldmae.app.page import build_page, launch
        from ldmae.app.workbench import open_workbench
        from ldmae.core.device import reuse_freed_memory

        reuse_freed_memory()
        disable_progress_bar()  # one for each loaded part of a pipeline says nothing
        bench = open_workbench(
            source,
            device=device,
            perceptual=perceptual,
            offered=compare,
            may_name=_may_name_sources(host, share) and not only_offered,
            limits=limits,
        )
        page = build_page(bench)
        stack.callback(page.close, verbose=False)
        for address in launch(page, bench, host, port, hosts, share, open_browser):
            say(f"web app: {address}")
        say("Press Ctrl+C to stop")
        _wait_for_interrupt()


def _may_name_sources(host: str, share: bool) -> bool:
    """Says whether visitors may name folders and Hub names of their own.

    Only where the page answers to this machine alone. Whoever names a folder learns whether it exists and
    what the model in it makes of an image, and whoever names a repository on the Hub fills the owner's disk
    and memory; visitors from elsewhere therefore choose among what the owner offers. Nobody, not even on this
    machine, may name `package.module:Name` on the page: that would run code.
    """
    return not share and is_loopback(host)


def _wait_for_interrupt() -> None:
    ended = threading.Event()
    with contextlib.suppress(ValueError):  # not the main thread: somebody else handles signals
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with contextlib.suppress(KeyboardInterrupt):
        while not ended.wait(1):
            pass


def _free_port(host: str, port: int | None) -> int:
    """Returns a port that can be listened on: the one given, any for 0, the first free one for None.

    Raises:
        UserError: the port is in use or not allowed, no port is free, or the address is not this machine's.
    """
    if port is not None and not 0 <= port <= 65535:
        raise UserError(f"a port is a number from 0 to 65535, got {port}; leave it out to take a free one")
    for number in range(_FIRST_PORT, _FIRST_PORT + _PORTS) if port is None else [port]:
        try:
            return _bound(host, number)
        except PermissionError as error:
            raise UserError(f"port {number} is reserved for the system; choose one from 1024") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"cannot listen on {host} ({error.strerror or error}); give --host an address of this "
                    "machine: 127.0.0.1 (this machine alone) or 0.0.0.0 (all)"
                ) from error
            if port is not None:
                raise UserError(
                    f"port {number} on {host} is in use; name another with --port, or leave it out to take a "
                    "free one"
                ) from error
    raise UserError(
        f"ports {_FIRST_PORT} to {_FIRST_PORT + _PORTS - 1} on {host} are all in use; name one with --port"
    )


def _bound(host: str, port: int) -> int:
    """Binds a port for a moment and returns its number."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        if os.name != "nt":  # as uvicorn: a port whose last connections are still closing is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return probe.getsockname()[1]
