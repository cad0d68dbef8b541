"""Which host names the page answers to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from ldmae.core.errors import UserError


class Hosts:
    """The names that a page on `host` answers to; `named` are those of a reverse proxy.

    A name of another's that leads here (DNS rebinding) is none of them. Without this, a site that a visitor
    has open could point its own name to this machine and read the page, as browsers keep sites apart by name.
    """

    def __init__(self, host: str, named: Iterable[str] = ()) -> None:
        self._named = {_checked(name) for name in named}
        self._own = {"localhost", host.lower()}
        if not is_loopback(host):
            machine = socket.gethostname().lower()
            self._own |= {machine, machine.partition(".")[0], f"{machine.partition('.')[0]}.local"}

    def add(self, address: str) -> None:
        """Allows the name in an address `https://NAME/`."""
        self._named.add(str(urlsplit(address).hostname))

    def refuse(self, scope: Any) -> str | None:
        """Returns why a request is refused for its Host or Origin, or None where it is not."""
        headers = dict(scope["headers"])
        host = _split(headers.get(b"host", b""))
        if not self._answers(host[0], scope):
            return (
                "this page does not answer to this host name; its owner can allow it with "
                "`ldmae app --allowed-host NAME`"
            )
        if b"origin" not in headers:
            return None
        scheme, _, rest = headers[b"origin"].partition(b"://")
        origin = _split(rest)
        if scheme in (b"http", b"https") and (origin == host or origin[0] in self._named):
            return None
        return "this page takes no requests from other sites"

    def _answers(self, name: str, scope: Any) -> bool:
        if name in self._own or name in self._named:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        reached = (scope.get("server") or ("",))[0]  # this machine's address that the request came in on
        return address.is_loopback or str(address) == str(reached).removeprefix("::ffff:")


def _split(value: bytes) -> tuple[str, int | None]:
    """Returns name and port of `NAME:PORT`, the name in lower case, or an empty one of what is none."""
    try:
        parts = urlsplit(f"//{value.decode('ascii')}")
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "", None


def _checked(name: str) -> str:
    found, port = _split(name.encode("ascii", "replace"))
    if not found or found != name.lower().strip("[]") or port is not None:
        raise UserError(
            f"a host name is given without scheme, port and path, such as demo.example.org, got {name!r}"
        )
    return found


def is_loopback(host: str) -> bool:
    """Says whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
