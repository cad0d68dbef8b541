"""What reaches the server of the tiny run, asked as a browser and as an unfriendly visitor would."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ldmae.app import gatekeeper
from ldmae.app.gatekeeper import _MOST_AT_ONCE, _MOST_FROM_ONE, _OPEN, Gatekeeper, _open_route
from ldmae.app.hosts import Hosts
from ldmae.app.lines import Audience
from ldmae.app.uploads import KEPT_FOR, Limits

from .conftest import serving

SECONDS = 20
CLOSED = {
    "GET": {
        "/openapi.json",
        "/logout",
        "/monitoring",
        "/monitoring/summary",
        "/monitoring/{key}",
        "/pwa_icon",
        "/pwa_icon/{size}",
        "/config/",
        "/gradio_api/app_id",
        "/gradio_api/call/v2/{api_name}/{event_id}",
        "/gradio_api/call/{api_name}/{event_id}",
        "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}",
        "/gradio_api/deep_link",
        "/gradio_api/dev/reload",
        "/gradio_api/file/{path:path}",
        "/gradio_api/file={path_or_url:path}",
        "/gradio_api/info",
        "/gradio_api/login_check",
        "/gradio_api/openapi.json",
        "/gradio_api/proxy={url_path:path}",
        "/gradio_api/queue/status",
        "/gradio_api/run-history/buckets",
        "/gradio_api/run-history/records",
        "/gradio_api/run-history/records/{endpoint}/{record_id}/assets/{asset_id}",
        "/gradio_api/runs",
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file",
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8",
        "/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}",
        "/gradio_api/theme.css",
        "/gradio_api/token",
        "/gradio_api/user",
        "/gradio_api/vibe-code",
    },
    "HEAD": {"/openapi.json", "/gradio_api/file={path_or_url:path}", "/gradio_api/proxy={url_path:path}"},
    "POST": {
        "/login",
        "/gradio_api/api/{api_name}",
        "/gradio_api/call/v2/{api_name}",
        "/gradio_api/call/{api_name}",
        "/gradio_api/component_server",
        "/gradio_api/process_recording",
        "/gradio_api/run-history/connect",
        "/gradio_api/reset/",
        "/gradio_api/run/{api_name}/",
        "/gradio_api/stream/{event_id}",
        "/gradio_api/stream/{event_id}/close",
        "/gradio_api/undo-vibe-edit",
        "/gradio_api/vibe-code",
        "/gradio_api/vibe-edit",
        "/gradio_api/vibe-starter-queries",
    },
}
"""Gradio's routes that the page does not need, with and without a slash at the end. One that is in no list is
new: look at what it does."""


@pytest.fixture(scope="module")
def served(bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    uploads = tmp_path_factory.mktemp("uploads")
    with (
        serving(bench, uploads) as (address, page),
        httpx.Client(base_url=address, timeout=SECONDS) as client,
    ):
        yield SimpleNamespace(client=client, page=page, bench=bench)


def routes_of(app: Any, prefix: str = "") -> set[tuple[str, str]]:
    """Returns method and path of all routes of an application."""
    found = set()
    for route in app.routes:
        inner = getattr(route, "original_router", None)  # newer FastAPI keeps an included router whole
        if inner is not None:
            found |= routes_of(inner)
        elif hasattr(route, "methods"):
            found |= {(method, route.path) for method in route.methods}
        else:
            found.add(("ANY", route.path))
    return found


def test_every_route_of_gradio_is_known_to_be_open_or_closed(served):
    found = routes_of(served.page.app)
    assert len(found) > 60
    for method, path in sorted(found):
        closed = CLOSED.get(method, set())
        is_open, is_closed = path in _OPEN.get(method, ()), bool({path, path.removesuffix("/")} & closed)
        assert is_open != is_closed, f"{method} {path} is a route that nobody has looked at"
    assert {(method, path) for method, paths in _OPEN.items() for path in paths} <= found


def test_every_closed_route_is_refused(served):
    for method, paths in CLOSED.items():
        for path in [*paths, *(f"{path}/" for path in paths)]:
            for filled in (path.replace("{", "").replace("}", "").replace(":path", ""), path):
                assert _open_route(method, filled) is None
            answer = served.client.request(method, path.replace("{", "").replace("}", ""))
            assert answer.status_code == 403, path


@pytest.mark.parametrize(
    "path", ["file={}", "file/{}", "FILE={}", "file%3D{}", "file%2F{}", "proxy={}", "./file={}"]
)
def test_neither_what_visitors_sent_nor_what_lies_elsewhere_is_served(served, path):
    files = [("files", ("secret.txt", b"what a visitor sent"))]
    (sent,) = served.client.post("/gradio_api/upload", files=files).json()
    for target in (sent, "/etc/hostname", "https://example.org/x"):
        answer = served.client.get(f"/gradio_api/{path.format(target)}")
        assert answer.status_code == 403
        assert "visitor sent" not in answer.text


def test_a_site_that_points_its_name_here_reads_and_does_nothing(served):
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload")):
            answer = served.client.request(method, path, headers=headers)
            assert answer.status_code == 403
            assert "LDMAE" not in answer.text
    own = {"origin": str(served.client.base_url).rstrip("/")}
    assert served.client.get("/config", headers=own).status_code == 200


def test_forged_requests_are_answered_in_a_line_and_leave_no_traceback(served, capfd):
    functions = served.page.fns.items()
    known, fn = next((key, fn) for key, fn in functions if fn.queue and len(fn.inputs) > 5)
    instant = next(key for key, fn in functions if not fn.queue and fn.inputs)
    session = {"session_hash": "forged"}
    bodies = [
        {"fn_index": 999, "data": [], **session},
        {"fn_index": -1, "data": [], **session},
        {"fn_index": True, "data": [], **session},
        {"fn_index": [1], "data": [], **session},
        {"fn_index": "0", "data": [], **session},
        {"data": [], **session},
        {"fn_index": known, "data": []},
        {"fn_index": known, "data": [], "session_hash": "../" * 99},
        [],
        None,
    ]
    for route in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        for body in bodies:
            assert served.client.post(route, json=body).status_code == 400, body
        assert served.client.post(route, content=b"{" * 5000).status_code == 400
        assert served.client.post(route, content=b" " * 70_000).status_code == 413
    wrong = [[], [None], ["x"] * len(fn.inputs), [{"path": "/etc/passwd"}] * len(fn.inputs), [[[]]] * 30]
    for data in wrong:
        body = {"fn_index": known, "data": data, "session_hash": "forged"}
        assert served.client.post("/gradio_api/queue/join", json=body).status_code == 200
        direct = {"fn_index": instant, "data": data, "session_hash": "forged"}
        assert served.client.post("/gradio_api/run/predict", json=direct).status_code in (200, 500)
    assert served.client.post("/gradio_api/run/predict", json=body).status_code == 404  # only queued
    lost = served.client.get("/gradio_api/queue/data", params={"session_hash": "nobody"})
    assert "Traceback" not in lost.text
    time.sleep(0.5)
    told = capfd.readouterr()
    assert "Traceback" not in told.out + told.err


def test_requests_that_nobody_listens_to_leave_the_page_free_for_others(served, monkeypatch):
    """Sixty-seven of them filled the old queue for everyone."""
    monkeypatch.setattr("ldmae.app.lines._UNHEARD", 1.0)
    functions = served.page.fns.items()
    index, fn = next((key, fn) for key, fn in functions if fn.queue and len(fn.inputs) > 5)
    values = [each.value for each in fn.inputs]
    values[3] = 250  # steps
    for k in range(70):
        body = {"fn_index": index, "data": values, "session_hash": f"unheard{k % 10}"}
        assert served.client.post("/gradio_api/queue/join", json=body).status_code == 200
    body = {"fn_index": index, "data": [*values[:3], 1, *values[4:]], "session_hash": "heard"}
    assert served.client.post("/gradio_api/queue/join", json=body).status_code == 200
    with served.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "heard"}) as answers:
        messages = [json.loads(line[5:]) for line in answers.iter_lines() if line.startswith("data:")]
    done = next(each for each in messages if each["msg"] == "process_completed")
    assert done["success"], done
    deadline = time.monotonic() + 10
    while served.bench.heavy._running or served.bench.heavy._waiting:
        assert time.monotonic() < deadline, "requests of nobody still run"
        time.sleep(0.1)


# ---- the gatekeeper alone

LIMITS = Limits(bytes=200_000, pixels=10_000)


async def passed(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.fixture
def keeper(tmp_path) -> Gatekeeper:
    page = SimpleNamespace(fns={})
    return Gatekeeper(passed, page, LIMITS, Hosts("127.0.0.1"), Audience(), tmp_path)


def ask(keeper: Gatekeeper, path: str, size: int = 0, address: str = "192.0.2.1") -> int:
    """Returns the status of the answer to a POST, 200 where it is passed on."""
    headers = [(b"content-length", str(size).encode()), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": (address, 1)}
    return answers_to(keeper, scope)[0]["status"]


def answers_to(keeper: Gatekeeper, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what is sent to a request."""
    sent: list[Any] = []

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(keeper(scope, None, send))
    return sent


def test_one_address_and_all_visitors_together_send_only_so_much_in_a_while(keeper, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(gatekeeper.time, "monotonic", lambda: now[0])
    largest = LIMITS.bytes + gatekeeper._FORM

    def send(address: str) -> list[int]:
        return [ask(keeper, "/gradio_api/upload", largest, address) for _ in range(_MOST_FROM_ONE + 2)]

    assert send("192.0.2.1") == [200] * _MOST_FROM_ONE + [429] * 2
    others = [status for k in range(2, 6) for status in send(f"192.0.2.{k}")]
    assert others.count(200) == _MOST_AT_ONCE - _MOST_FROM_ONE
    assert others[-1] == 503
    assert ask(keeper, "/gradio_api/cancel", 100) == 200  # what is no upload goes on
    now[0] += KEPT_FOR + gatekeeper.CLEANED_EVERY + 1
    assert ask(keeper, "/gradio_api/upload", LIMITS.bytes) == 200


def test_folders_of_uploads_that_were_emptied_are_removed(keeper, tmp_path: Path):
    old = time.time() - KEPT_FOR - 10
    for name in ("empty", "full", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "picture.png").write_bytes(b"x")
    for name in ("empty", "full"):
        os.utime(tmp_path / name, (old, old))
    assert ask(keeper, "/gradio_api/upload", 100) == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "new"]


def test_a_websocket_is_closed(keeper):
    closed = answers_to(keeper, {"type": "websocket", "path": "/", "headers": []})
    assert closed == [{"type": "websocket.close"}]
