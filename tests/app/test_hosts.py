"""Which host names and which other sites the page answers to."""

import socket

import pytest

from ldmae.app.hosts import Hosts
from ldmae.core.errors import UserError

HERE = ("127.0.0.1", 7860)
LAN = ("192.168.1.5", 7860)


def answers(hosts: Hosts, host: str, origin: str | None = None, server: tuple[str, int] = HERE) -> bool:
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    return hosts.refuse({"headers": headers, "server": server}) is None


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "localhost."]
)
def test_a_page_for_this_machine_answers_to_its_own_names(host):
    assert answers(Hosts("127.0.0.1"), host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:7860",
        "evil.example",
        "192.168.1.5:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "evil.example#localhost",
        "local host",
        "[::1",
        "[localhost]x",
        "\xe4",
        "",
    ],
)
def test_a_name_that_another_has_pointed_here_is_refused(host):
    assert not answers(Hosts("127.0.0.1"), host)


def test_a_page_for_all_machines_answers_to_the_address_that_it_was_reached_by_and_to_the_machines_name():
    for hosts in (Hosts("0.0.0.0"), Hosts("::")):
        assert answers(hosts, "192.168.1.5:7860", server=LAN)
        assert answers(hosts, "192.168.1.5:7860", server=("::ffff:192.168.1.5", 7860))
        assert answers(hosts, f"{socket.gethostname()}:7860", server=LAN)
        assert answers(hosts, "localhost:7860")
        assert not answers(hosts, "192.168.1.6:7860", server=LAN)
        assert not answers(hosts, "evil.example:7860", server=LAN)
    assert not answers(Hosts("127.0.0.1"), "evil.example", server=LAN)


def test_a_named_host_is_answered_as_behind_a_reverse_proxy():
    hosts = Hosts("127.0.0.1", ["Demo.Example.org"])
    assert answers(hosts, "demo.example.org", "https://demo.example.org")
    assert answers(hosts, "127.0.0.1:7860", "https://demo.example.org")  # a proxy that puts its own Host
    assert not answers(hosts, "other.example.org")


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:7860", "file://", "x"],
)
def test_requests_from_other_sites_are_refused(origin):
    assert answers(Hosts("127.0.0.1"), "127.0.0.1:7860", "http://127.0.0.1:7860")
    assert not answers(Hosts("127.0.0.1"), "127.0.0.1:7860", origin)


def test_a_shared_address_is_answered_once_it_is_known():
    hosts = Hosts("127.0.0.1")
    assert not answers(hosts, "abc.gradio.live")
    hosts.add("https://abc.gradio.live")
    assert answers(hosts, "abc.gradio.live", "https://abc.gradio.live")


@pytest.mark.parametrize(
    "name", ["https://demo.example.org", "demo.example.org:80", "demo.example.org/x", ""]
)
def test_a_host_is_named_alone(name):
    with pytest.raises(UserError, match="without scheme, port and path"):
        Hosts("127.0.0.1", [name])
