"""Real workers, started as the page and the command line start them, and how to wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_studio.cases.machine import Machine
from lora_studio.runs import process
from lora_studio.runs.history import History
from lora_studio.settings import Settings
from lora_studio.studio import Studio

WAIT_S = 240.0


def open_studio(home: Path, **about: Any) -> Studio:
    """Open a studio over a home folder, as an app or a command does; `about` as in Settings."""
    settings = Settings(home=home, offline=True, **about)
    return Studio(settings, Machine.open(settings, isolated=False))


def until(history: History, *, holds: Callable[[History], Any]) -> History:
    """Wait until something holds of a run; a run that ends before is shown with its log."""
    deadline = time.monotonic() + WAIT_S
    while not holds(history.update()):
        log = history.folder.stdout
        assert not history.is_over or holds(history.update()), log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, f"{history.status}, {history.stage}"
        time.sleep(0.05)
    return history


def finish(studio: Studio, run: str) -> History:
    """Wait until a run is over and its worker, which says so before it tidies up, is gone."""
    history = until(studio.runs.history(run), holds=lambda found: found.is_over)
    deadline = time.monotonic() + WAIT_S
    while process.is_running(history.folder.process):
        assert time.monotonic() < deadline, history.folder.stdout.read_text(encoding="utf-8")
        time.sleep(0.05)
    return history
