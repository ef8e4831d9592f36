"""A Hub made of a web server on this machine, which can go away and come back."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

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
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}
                for name, data in hub.files.items()
            ]
            self.answer(json.dumps(tree).encode())
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            info = {"id": REPOSITORY, "sha": SHA}
            info["siblings"] = [{"rfilename": name} for name in hub.files]
            self.answer(json.dumps(info).encode())
        elif path.startswith(f"/{REPOSITORY}/resolve/"):
            self.send(path.partition(f"{SHA}/")[2])
        else:
            self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

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
