import importlib.metadata
import importlib.util
import math
import os
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request

import pytest
from packaging.requirements import Requirement

from ldmae.app.serve import _FIRST_PORT, _GRADIO, _PORTS, _free_port, _may_name_sources, serve
from ldmae.core.errors import UserError


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_in_use_is_told(taken):
    with pytest.raises(UserError, match=f"port {taken} on 127.0.0.1 is in use; name another with --port"):
        _free_port("127.0.0.1", taken)


def test_without_a_port_the_first_free_one_is_taken(monkeypatch, taken):
    assert _free_port("127.0.0.1", None) in range(_FIRST_PORT, _FIRST_PORT + _PORTS)
    monkeypatch.setattr("ldmae.app.serve._FIRST_PORT", taken)
    monkeypatch.setattr("ldmae.app.serve._PORTS", 1)
    with pytest.raises(UserError, match="are all in use"):
        _free_port("127.0.0.1", None)
    assert _free_port("127.0.0.1", 0) > 0


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("203.0.113.7", 8123, "cannot listen on 203.0.113.7"),
        ("no.such.host.invalid", 8123, "cannot listen on no.such.host.invalid"),
        ("127.0.0.1", 70000, "a port is a number from 0 to 65535"),
        ("127.0.0.1", -1, "a port is a number from 0 to 65535"),
    ],
)
def test_an_address_that_is_none_of_this_machine_is_told(host, port, message):
    with pytest.raises(UserError, match=message):
        _free_port(host, port)


def test_without_gradio_the_command_that_installs_it_is_told(monkeypatch):
    """It names Gradio itself, as the extra does: no distribution `ldmae` is on PyPI."""
    required = [Requirement(text) for text in importlib.metadata.requires("ldmae") or ()]
    assert {each.specifier for each in required if each.name == "gradio"} == {Requirement(_GRADIO).specifier}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    with pytest.raises(UserError, match=f'pip install "{_GRADIO}"'):
        serve("nowhere")


@pytest.mark.parametrize(
    "limits",
    [{"max_upload_mb": 0}, {"max_megapixels": -1}, {"max_upload_mb": math.nan}, {"max_megapixels": math.inf}],
)
def test_limits_must_leave_room(limits):
    with pytest.raises(UserError, match="positive --max-upload-mb and --max-megapixels"):
        serve("nowhere", port=0, **limits)


@pytest.mark.parametrize(
    ("host", "share", "allowed"),
    [
        ("127.0.0.1", False, True),
        ("localhost", False, True),
        ("::1", False, True),
        ("127.0.0.1", True, False),
        ("0.0.0.0", False, False),
        ("192.168.1.5", False, False),
        ("example.org", False, False),
    ],
)
def test_only_visitors_from_this_machine_may_name_sources(host, share, allowed):
    assert _may_name_sources(host, share) is allowed


def test_a_wrong_host_name_is_told_before_anything_is_loaded():
    with pytest.raises(UserError, match="without scheme, port and path"):
        serve("nowhere", port=0, allowed_hosts=("https://demo.example.org",))


def test_a_wrong_source_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "put back afterwards")
    with pytest.raises(UserError, match="there is no nowhere"):
        serve("nowhere", port=0)
    assert list(tmp_path.glob("ldmae-app-*")) == []


def test_the_command_serves_until_it_is_told_to_end(server, folders, tmp_path):
    """In a process of its own, as a user starts it; everything else is tested in this one."""
    words = ("app", folders.pipeline, "--port", "0", "--device", "cpu", "--only-offered")
    started = server.start(*words, cwd=tmp_path, environment={"TMPDIR": str(tmp_path)})
    try:
        while "web app: " not in started.stdout:
            assert started.poll() is None, started.output
            time.sleep(0.05)
        first, second = started.stdout.splitlines()[:2]
        assert first.startswith("opening ")
        assert second.startswith("web app: http://127.0.0.1:")
        address = second.removeprefix("web app: ").strip()
        with urllib.request.urlopen(address, timeout=20) as answer:
            text = answer.read()
        assert b"LDMAE" in text
        assert b"Only one autoencoder is available" in text
        for hidden in ("monitoring", "gradio_api/info", "gradio_api/runs"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"{address}{hidden}", timeout=20)
        (private,) = tmp_path.glob("ldmae-app-*")
        assert private.stat().st_mode & 0o077 == 0
    finally:
        os.kill(started.process, signal.SIGINT)
        code = started.wait(30)
    assert code in (0, 130)
    assert list(tmp_path.glob("ldmae-app-*")) == []
