"""A server on this machine that speaks the few endpoints of the Hub that uploads and downloads use."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from ..serving import Quiet

TOKEN, COMMIT = "hf_of_a_test", "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Keeps what is uploaded to it, by repository and path."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        hub = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                hub.get(self)

            do_HEAD = do_GET

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                hub.post(self, self.rfile.read(length))

        self.handler, self.url = Handler, ""

    def get(self, request: Any) -> None:
        path = request.path.partition("?")[0].strip("/")
        parts = path.split("/")
        if path == "api/whoami-v2":
            known = request.headers.get("Authorization") == f"Bearer {TOKEN}"
            return _json(
                request, {"name": "me"} if known else {"error": "Invalid token"}, 200 if known else 401
            )
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.files:
                return _json(
                    request, {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}
                )
            if "tree" in parts:
                files = self.files[name].items()
                return _json(
                    request, [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files]
                )
            siblings = [{"rfilename": p} for p in self.files[name]]
            return _json(request, {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})
        name, file = "/".join(parts[:2]), "/".join(parts[4:])  # OWNER/NAME/resolve/REVISION/FILE
        content = self.files.get(name, {}).get(file)
        if content is None:
            return _json(request, {}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return _send(request, content, 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})

    def post(self, request: Any, body: bytes) -> None:
        path = request.path.partition("?")[0].strip("/")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _json(request, {"error": "Invalid token"}, 401)
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name.startswith("another/"):
                return _json(request, {"error": "You don't have the rights to create a model there"}, 403)
            self.files.setdefault(name, {})
            self.private[name] = asked.get("private") is True or asked.get("visibility") == "private"
            return _json(request, {"url": f"{self.url}/{name}"})
        if path == "api/validate-yaml":
            return _json(request, {"errors": [], "warnings": []})
        name = "/".join(path.split("/")[2:4])
        if "preupload" in path:
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            return _json(request, {"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return _json(request, {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/{name}"})


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _json(request: Any, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
    _send(
        request, json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})}
    )


def _send(request: Any, content: bytes, status: int, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(content))}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
