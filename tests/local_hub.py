"""A Hub made of a web server on this machine, which can go away and come back.

Files are taken as huggingface_hub sends them without Xet (huggingface_hub 2.4).
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
from huggingface_hub import constants

from lora_studio.models import hub as models_hub

SHA = "a" * 40
REPOSITORY = "owner/name"


class Hub:
    """Answers as huggingface.co does for one repository, `owner/name`, made of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refusal: tuple[int, str] | None = None
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.sent: list[str] = []
        """The files that it began to send."""
        self.breaks_at: tuple[str, int] | None = None
        """The connection over which it sends this file breaks after so many bytes,"""
        self.is_leaving = True
        """and it goes away with that."""
        self.token: str | None = None
        """Who comes with it may write under `owner`,"""
        self.made: dict[str, Made] = {}
        """and make repositories,"""
        self.deleted: list[str] = []
        self.blobs: dict[str, bytes] = {}
        """whose large files come here first, by their SHA-256."""
        self.datasets: set[str] = set()
        """Datasets that everybody may see."""
        self.goes_at: str | None = None
        """It goes away when something is asked of an address that has this in it."""
        self.is_late = False
        """It does what is asked of it before it goes."""
        self.refuses: tuple[str, int] | None = None
        """What it answers to something asked of an address that has this in it."""
        self.port = 0
        self._server: Server | None = None
        self._changing = Lock()
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def files(self) -> dict[str, bytes]:
        return {
            str(file.relative_to(self.folder)): file.read_bytes()
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }

    def come_back(self) -> None:
        """Listen, where it did before."""
        with self._changing:
            if self._server is None:
                self._server = Server(self, self.port)
                self.port = self._server.server_port
                Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def go_away(self) -> None:
        """Listen no more; not to be called by the thread that listens."""
        with self._changing:
            if self._server is not None:
                self._server.shutdown()
                self._server.server_close()
                self._server = None


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for this Hub as long as the machine takes: it answers, or it is gone at once."""
    monkeypatch.setattr(models_hub, "ANSWER_WITHIN_S", 120.0)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 120)
        monkeypatch.setenv(name, "120")  # for a worker


@dataclass
class Made:
    """A repository that was made here."""

    asked: dict[str, Any]
    """What it was asked for with; `visibility` is what it has."""
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub, port: int) -> None:
        super().__init__(("127.0.0.1", port), Answer)
        self.hub = hub


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server.hub, self.path.partition("?")[0]
        hub.asked.append(path)
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refusal is not None:
            status, code = hub.refusal
            self.answer(b"", status, {"X-Error-Code": code} if code else {})
        elif path.removeprefix("/api/models/") in hub.made:
            self.describe(path.removeprefix("/api/models/"))
        elif path.removeprefix("/api/datasets/") in hub.datasets:
            self.tell({"id": path.removeprefix("/api/datasets/"), "private": False})
        elif path == "/.well-known/openid-configuration":
            self.tell({"authorization_endpoint": f"{hub.url}/oauth/authorize", "issuer": hub.url})
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            tree = [_entry(name, data) for name, data in hub.files.items()]
            self.answer(json.dumps(tree).encode())
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            info = {"id": REPOSITORY, "sha": SHA}
            info["siblings"] = [
                {"rfilename": name, "size": len(data)} for name, data in hub.files.items()
            ]
            self.answer(json.dumps(info).encode())
        elif path.startswith(f"/{REPOSITORY}/resolve/"):
            self.send(path.partition(f"{SHA}/")[2])
        else:
            self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        hub, path = self.server.hub, self.path.partition("?")[0]
        hub.asked.append(path)
        hub.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.goes_at is not None and hub.goes_at in path:
            self.close_connection = True
            if hub.is_late:
                self.take(path, body)
            hub.go_away()
        elif hub.refuses is not None and hub.refuses[0] in path:
            self.answer(b"", hub.refuses[1])
        elif path == "/api/validate-yaml":
            self.tell({"errors": [], "warnings": []})
        elif hub.refusal is not None:
            self.answer(b"", hub.refusal[0])
        elif self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.answer(b"", 401)
        elif path == "/api/repos/create":
            self.make(json.loads(body))
        elif path.endswith("/preupload/main"):
            self.tell({"files": [self.mode(file) for file in json.loads(body)["files"]]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.tell({"transfer": "basic", "objects": self.wanted(json.loads(body)["objects"])})
        else:
            name = self.take(path, body)
            self.tell({"commitUrl": f"{hub.url}/{name}/commit/{SHA}", "commitOid": SHA})

    def do_PUT(self) -> None:
        """Take a large file where it was told to go."""
        hub, path = self.server.hub, self.path
        hub.asked.append(path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.goes_at is not None and hub.goes_at in path:
            self.close_connection = True
            hub.go_away()
            return
        hub.blobs[path.rpartition("/")[2]] = content
        self.answer(b"")

    def do_DELETE(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = f"{asked['organization']}/{asked['name']}"
        self.server.hub.made.pop(name)
        self.server.hub.deleted.append(name)
        self.answer(b"")

    def describe(self, name: str) -> None:
        """Say what a repository that was made here is, to who may know of it."""
        made, came_with = self.server.hub.made[name], self.headers.get("Authorization")
        is_private = made.asked.get("visibility") == "private"
        if came_with not in (None, f"Bearer {self.server.hub.token}"):
            said = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self.answer(b"", 401, said)
        elif is_private and came_with is None:
            self.answer(b"", 401, {"X-Error-Code": "RepoNotFound"})
        else:
            files = [{"rfilename": file} for file in (".gitattributes", *made.files)]
            self.tell({"id": name, "sha": SHA, "private": is_private, "siblings": files})

    def make(self, asked: dict[str, Any]) -> None:
        """Make a repository, unless it is there or somebody else's."""
        name = f"{asked.get('organization')}/{asked['name']}"
        if name in self.server.hub.made:
            self.answer(b"", 409)
        elif asked.get("organization") != "owner":
            self.answer(b"", 403)
        else:
            self.server.hub.made[name] = Made(asked)
            self.tell({"url": f"{self.server.hub.url}/{name}", "id": name})

    def mode(self, file: dict[str, Any]) -> dict[str, Any]:
        """Say how a file is to be sent."""
        is_large = file["path"].endswith((".safetensors", ".png"))
        how = "lfs" if is_large else "regular"
        return {"path": file["path"], "uploadMode": how, "shouldIgnore": False}

    def wanted(self, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Say where large files are to go."""
        url = self.server.hub.url
        return [
            {**one, "actions": {"upload": {"href": f"{url}/lfs/{one['oid']}"}}} for one in objects
        ]

    def take(self, path: str, body: bytes) -> str:
        """Take all files of a commit at once; return whose they are."""
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        made = self.server.hub.made[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                made.commits.append(value["summary"])
            elif line["key"] == "deletedFile":
                del made.files[value["path"]]
            elif line["key"] == "file":
                made.files[value["path"]] = base64.b64decode(value["content"])
            else:
                made.files[value["path"]] = self.server.hub.blobs[value["oid"]]
        return name

    def tell(self, said: Any) -> None:
        """Answer in JSON, to whatever was asked."""
        body = json.dumps(said).encode()
        self.head(len(body), 200, {"Content-Type": "application/json"})
        self.wfile.write(body)

    def send(self, name: str) -> None:
        """Send a file, or the end of it that is asked for."""
        hub = self.server.hub
        whole = hub.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        begin = int(asked[1]) if asked else 0
        about = {"ETag": f'"{hash(whole):x}"'}
        if begin:
            about["Content-Range"] = f"bytes {begin}-{len(whole) - 1}/{len(whole)}"
        if self.command == "GET":
            hub.sent.append(name)
            if hub.breaks_at is not None and hub.breaks_at[0] == name:
                self.break_off(whole, hub.breaks_at[1], about)
                return
        self.answer(whole[begin:], 206 if begin else 200, about)

    def break_off(self, body: bytes, at: int, headers: dict[str, str]) -> None:
        """Promise a whole body and send its beginning."""
        self.server.hub.breaks_at = None
        self.head(len(body), 200, headers)
        self.wfile.write(body[:at])
        self.wfile.flush()
        if self.server.hub.is_leaving:
            self.server.hub.go_away()
        self.close_connection = True

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.head(len(body), status, headers or {})
        if self.command == "GET":
            self.wfile.write(body)

    def head(self, length: int, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}
