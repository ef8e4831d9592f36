"""How long LoRA Studio takes to its first page, against an empty Gradio page.

python benchmarks/startup.py [--rounds 5] [--browser]

Both are started in turns, so that whatever else the machine does meets both alike. Time runs from
the start of the process to the last byte of the page, its settings and its style; with `--browser`,
to the moment when Chromium shows the page's content.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
EMPTY = """
import os, sys
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr
with gr.Blocks(analytics_enabled=False) as page:
    gr.Markdown("An empty page", elem_id="start")
page.launch(
    server_name="127.0.0.1", server_port=int(sys.argv[1]), share=False, ssr_mode=False, quiet=True
)
"""
COMMANDS = {
    "LoRA Studio": [sys.executable, str(ROOT / "app.py"), "--port"],
    "empty page": [sys.executable, "-c", EMPTY],
}
PATHS = ("/", "/config", "/theme.css")
PATIENCE_S = 180
TARGET = 1.3


def main() -> int:
    """Measure, print, and return 1 if the target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--browser", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
    for number in range(options.rounds + 1):
        for name, command in COMMANDS.items():
            figures = measure(command, browser=options.browser)
            if number:  # the first round fills the disk cache
                found[name].append(figures)
                wall, cpu, memory = figures
                print(f"{name:12} {wall:6.2f} s  {cpu:6.2f} CPU s  {memory:5.0f} MB", flush=True)
    print(f"\nmedians of {options.rounds}")
    medians = {
        name: list(map(statistics.median, zip(*rows, strict=True))) for name, rows in found.items()
    }
    for name, (wall, cpu, memory) in medians.items():
        print(f"{name:12} {wall:6.2f} s  {cpu:6.2f} CPU s  {memory:5.0f} MB")
    ours, empty = medians.values()
    ratio = ours[0] / empty[0]
    print(f"ratio        {ratio:6.2f}    {ours[1] / empty[1]:6.2f}          target {TARGET}")
    return int(ratio > TARGET)


def measure(command: list[str], *, browser: bool) -> tuple[float, float, float]:
    """Start a page once; return seconds, CPU seconds and resident megabytes at the first page."""
    home = tempfile.mkdtemp(prefix="startup-")
    port = free_port()
    environment = os.environ | {"LORA_STUDIO_HOME": home, "HF_HUB_OFFLINE": "1"}
    try:
        with chromium() if browser else nothing() as show:
            began = time.perf_counter()
            process = subprocess.Popen(
                [*command, str(port)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
            )
            try:
                fetch(f"http://127.0.0.1:{port}", process)
                if show is not None:
                    show(f"http://127.0.0.1:{port}")
                wall = time.perf_counter() - began
                seen = psutil.Process(process.pid)
                times = seen.cpu_times()
                return wall, times.user + times.system, seen.memory_info().rss / 1e6
            finally:
                process.terminate()
                process.wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def fetch(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the page answers, then read it whole."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            for path in PATHS:
                with urllib.request.urlopen(address + path, timeout=PATIENCE_S) as answer:
                    answer.read()
        except urllib.error.URLError:
            time.sleep(0.02)
        else:
            return
    message = f"no page at {address}"
    raise SystemExit(message)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def nothing() -> Iterator[None]:
    """Stand in for the browser."""
    yield None


@contextmanager
def chromium() -> Iterator[object]:
    """Open a browser beforehand; yield what waits until it shows a page."""
    with chromium_browser() as opened:

        def show(address: str) -> None:
            page = opened.new_page()
            page.goto(address)
            page.wait_for_selector("#start", state="visible", timeout=PATIENCE_S * 1000)

        yield show


@contextmanager
def chromium_browser() -> Iterator[Browser]:
    """Open the system's browser."""
    from playwright.sync_api import sync_playwright

    binary = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=binary, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


if __name__ == "__main__":
    sys.exit(main())
