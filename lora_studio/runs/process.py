"""The worker process of a run: started in a session of its own, found again, ended.

Its output goes to a file and never to a pipe, so that nobody has to read for it to go on. It
outlives the app that started it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from lora_studio.runs.folder import RunFolder

log = logging.getLogger(__name__)

WORKER = "lora_studio.training.worker"
GRACE_S = 5.0
# For a worker that is short of memory: every tensor gets pages of its own, given back when it is
# freed (mallopt(3), M_MMAP_THRESHOLD; other C libraries than glibc do not read it).
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def start(folder: RunFolder, *, environment: Mapping[str, str]) -> int:
    """Start the worker of a run and note its pid and start time; return the pid.

    Args:
        folder: A run folder with its recipe.
        environment: Added to this process's environment; a token goes here and nowhere else.
    """
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with folder.stdout.open("ab") as output:
        worker = subprocess.Popen(
            [sys.executable, "-u", "-m", WORKER, str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    _CHILDREN[worker.pid] = worker
    write_identity(folder.process, worker.pid)
    return worker.pid


def write_identity(file: Path, pid: int) -> None:
    """Write pid and start time, which together name a process for good, by rename."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started = 0.0
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"pid": pid, "started": started}), encoding="utf-8")
    partial.replace(file)


def is_running(file: Path) -> bool:
    """Return whether the process noted in `file` is still the one that was noted."""
    return _process(file) is not None


def pid_of(file: Path) -> int | None:
    """Return the pid of the noted process while it runs."""
    process = _process(file)
    return process.pid if process is not None else None


def request_stop(folder: RunFolder, *, keep: bool) -> None:
    """Ask the worker to stop at its next step and keep what it has, or to drop it.

    A wish to discard is not weakened by a later wish to keep.
    """
    if keep and folder.stop.exists():
        return
    partial = folder.stop.with_suffix(".partial")
    partial.write_text("keep" if keep else "discard", encoding="utf-8")
    partial.replace(folder.stop)


def end(folder: RunFolder, *, grace_s: float = GRACE_S) -> None:
    """End the worker's whole group: a request first, then force."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        process = _process(folder.process)
        if process is None:
            return
        log.info("sending %s to the group of %s", sign.name, process.pid)
        _signal_group(process.pid, sign)
        _wait(folder.process, grace_s)


def _wait(file: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and is_running(file):
        time.sleep(0.05)


def _signal_group(pid: int, sign: signal.Signals) -> None:
    try:
        os.killpg(pid, sign)
    except ProcessLookupError:
        log.info("process group %s is already gone", pid)


def _process(file: Path) -> psutil.Process | None:
    try:
        identity = json.loads(file.read_text(encoding="utf-8"))
        # A worker of this process must be waited for, or it stays a zombie.
        child = _CHILDREN.get(identity["pid"])
        if child is not None and child.poll() is not None:
            return None
        process = psutil.Process(identity["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            if child is not None:
                child.wait()  # it ended since the look above
            return None
        same = abs(process.create_time() - identity["started"]) < 1
        return process if same else None
    except (FileNotFoundError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
