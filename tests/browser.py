"""The real app in a process of its own, and the real browser that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Browser, Page, Playwright

from lora_studio.runs import process
from lora_studio.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
Visit = Callable[..., Page]
"""What the fixture `visit` is: takes an app, returns its page."""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_S = 240
# Loaded by every Python below it: on SIGUSR1 a process writes down what it has imported.
TELLER = """
import json, os, signal, sys
def tell(*_):
    partial = os.environ["TELL"] + f"/{os.getpid()}.partial"
    with open(partial, "w") as file:
        json.dump(sorted({name.partition(".")[0] for name in sys.modules}), file)
    os.replace(partial, partial.replace(".partial", ".json"))
signal.signal(signal.SIGUSR1, tell)
"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class App:
    """`python app.py` over a home folder of its own.

    Args:
        folder: An empty folder; the home and the log go into it.
        first: Python that each of its processes runs before anything else.
        environ: Set beside this process's environment.
    """

    def __init__(self, folder: Path, *, first: str = "", **environ: str) -> None:
        self.home = folder / "home"
        self.log = folder / "app.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._tell = folder / "tell"
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None
        self._tell.mkdir()
        (self.home / "models").mkdir(parents=True)
        (self._tell / "sitecustomize.py").write_text(TELLER + first)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def add_model(self, folder: Path) -> str:
        """Put a copy of a model among the app's own, as “tiny”; return where it lies."""
        return str(shutil.copytree(folder, self.home / "models" / "tiny"))

    def start(self) -> Self:
        """Start it and wait for its page."""
        clean = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        environ = {
            "LORA_STUDIO_HOME": str(self.home),
            "HF_HUB_OFFLINE": "1",
            "PIP_NO_INDEX": "1",  # a test that asks for the starter by mistake fails at once
            "LORA_STUDIO_READY_WORKER": "0",  # it would import beside every preview
            "PYTHONPATH": str(self._tell),
            "TELL": str(self._tell),
            **self._environ,
        }
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "app.py", "--port", str(self.port)],
                cwd=ROOT, env=clean | environ, stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(self.url, timeout=5).status_code < 500:
                    return self
            except httpx.TransportError:
                time.sleep(0.2)
        self.kill()  # a `with` that is not entered ends nothing
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        """End the app without a word, as a crash would; what trains goes on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """End the app, then every worker it has started."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self.end_runs()

    def end_runs(self) -> None:
        """End whatever still trains."""
        for folder in self.runs():
            process.end(folder, grace_s=1)

    def runs(self) -> list[RunFolder]:
        """Return every run folder, visitors' included."""
        return [RunFolder(file.parent) for file in self.home.rglob("runs/*/recipe.yaml")]

    def run(self, name: str) -> RunFolder:
        """Return one run's folder."""
        return RunFolder(self.home / "runs" / name)

    def imported(self) -> set[str]:
        """Return the names of the packages that the app's own process has imported."""
        file = self._tell / f"{self.pid}.json"
        file.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return set(json.loads(file.read_text()))

    def mapped(self) -> str:
        """Return the shared libraries in the app's memory, where the system tells."""
        maps = Path(f"/proc/{self.pid}/maps")
        return maps.read_text() if maps.exists() else ""


@contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Open the system's Chromium, else the one that Playwright installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
    try:
        yield browser
    finally:
        browser.close()


class Witness:
    """What a page must not do: complain, break, or talk to anybody but its own server."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.strangers: list[str] = []

    def watch(self, page: Page) -> None:
        """Listen to a page."""
        page.on("console", lambda said: self._heard(said.type, said.text))
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        page.on("request", lambda request: self._asked(request.url))

    def _heard(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            self.strangers.append(url)
