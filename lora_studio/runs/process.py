"""The worker process of a run: started in a session of its own, found again, ended.

Its output goes to a file and never to a pipe, so that nobody has to read for it to go on. It
outlives the app that started it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from lora_studio.files import write_whole
from lora_studio.hardware import usable_cores
from lora_studio.recipe import LaunchSpec
from lora_studio.runs import launching, standby
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.standby import StandBy

log = logging.getLogger(__name__)

WORKER = "lora_studio.training.worker"
GRACE_S = 3.0
SAME_S = 1.0
"""A process that began within so long of what was noted is the one that was noted."""
Wish = Literal["keep", "discard", "pause"]
# For a worker that is short of memory: every tensor gets pages of its own, given back when it is
# freed (mallopt(3), M_MMAP_THRESHOLD; other C libraries than glibc do not read it).
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def start(
    folder: RunFolder,
    *,
    environment: Mapping[str, str],
    resume: bool = False,
    ready: StandBy | None = None,
) -> int:
    """Start the worker of a run and note its pid and start time; return the pid.

    It is the pid of the launcher where the recipe has several processes.

    Args:
        folder: A run folder with its recipe.
        environment: Added to this process's environment; a token goes here and nowhere else.
        resume: Go on from the last checkpoint.
        ready: A worker that waits takes the run, if there is one as it would be started now.
    """
    launch = folder.read_recipe().launch
    arguments = [str(folder.path), *(["--resume"] if resume else [])]
    for file in folder.failures():
        file.unlink(missing_ok=True)
    env = _environment(launch, environment)
    written = folder.events.stat().st_size if folder.events.exists() else 0
    with folder.stdout.open("ab") as output:
        waiting = ready.take(_command([standby.FLAG], launch), env) if ready else None
        if waiting is not None:
            try:
                _note(folder, waiting, written)
                standby.hand_over(waiting, arguments, env)
            except OSError as error:
                log.info("the worker that waited cannot take the run: %s", error)
                standby.end(waiting)
            else:
                return waiting.pid
        started = subprocess.Popen(
            _command(arguments, launch),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    _note(folder, started, written)
    return started.pid


def make_ready(ready: StandBy, *, environment: Mapping[str, str]) -> None:
    """Have a worker wait that `start` will find for a run of one process.

    Args:
        ready: Who has it wait.
        environment: As in `start`.
    """
    alone = LaunchSpec()
    ready.prepare(_command([standby.FLAG], alone), _environment(alone, environment))


def _command(arguments: Sequence[str], launch: LaunchSpec) -> list[str]:
    return launching.command([WORKER, *arguments], launch, usable_cores())


def _environment(launch: LaunchSpec, environment: Mapping[str, str]) -> dict[str, str]:
    return launching.environment(launch, os.environ) | dict(environment)


def _note(folder: RunFolder, worker: subprocess.Popen[bytes], written: int) -> None:
    _CHILDREN[worker.pid] = worker
    write_identity(folder.process, worker.pid, written=written)


def write_identity(file: Path, pid: int, *, written: int = 0) -> None:
    """Write pid and start time, which together name a process for good, by rename.

    The start is noted by the clock and since boot: some systems count the one from the other, and
    move it when the clock is set.

    Args:
        file: Where to.
        pid: The process.
        written: Bytes of events that were there before it.
    """
    try:
        born = _birth(psutil.Process(pid))
    except psutil.NoSuchProcess:
        born = {"started": 0.0, "since_boot": 0.0}
    write_whole(file, json.dumps({"pid": pid, **born, "written": written}))


def is_running(file: Path) -> bool:
    """Return whether the process noted in `file` is still the one that was noted."""
    return _process(file) is not None


def written_before(file: Path) -> int:
    """Return how many bytes of events were there when the noted process was started."""
    try:
        return int(json.loads(file.read_text(encoding="utf-8")).get("written", 0))
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return 0


def pid_of(file: Path) -> int | None:
    """Return the pid of the noted process while it runs."""
    process = _process(file)
    return process.pid if process is not None else None


def request_stop(folder: RunFolder, wish: Wish) -> None:
    """Ask the worker to stop at its next step: to keep what it learned, to pause, or to drop it.

    A wish to discard is not weakened by a later one, and a wish is as old as when it was first
    uttered.
    """
    if folder.stop_wish() in (wish, "discard"):
        return
    write_whole(folder.stop, wish)


def stop_asked_s(folder: RunFolder) -> float:
    """Return how long ago somebody asked the run to stop, in seconds; 0 if nobody did."""
    try:
        return time.time() - folder.stop.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def end(
    folder: RunFolder, *, grace_s: float = GRACE_S, unless: Callable[[], bool] = lambda: False
) -> None:
    """End the worker and all it has started: by a request first, then by force.

    Args:
        folder: Whose worker.
        grace_s: Seconds that the request is given.
        unless: Asked after that; where it says yes, no force is used.
    """
    worker = _process(folder.process)
    if worker is None:
        return
    # Those in sessions of their own too: a signal to the group does not reach them.
    family = {worker, *_descendants(worker)}
    log.info("asking the group of %s to end", worker.pid)
    _signal_group(worker.pid, signal.SIGTERM)
    if _are_gone(folder.process, family, within_s=grace_s) or unless():
        return
    log.info("ending the group of %s by force", worker.pid)
    family |= set(_descendants(worker))
    for member in family:
        _kill(member)
    _are_gone(folder.process, family, within_s=grace_s)


def end_children() -> None:
    """End everybody whom this process has started, at once."""
    for child in _descendants(psutil.Process()):
        _kill(child)


def _are_gone(file: Path, family: Iterable[psutil.Process], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while is_running(file) or any(_is_alive(member) for member in family):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _descendants(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _signal_group(pid: int, sign: signal.Signals) -> None:
    try:
        os.killpg(pid, sign)
    except ProcessLookupError:
        log.info("process group %s is already gone", pid)


def _process(file: Path) -> psutil.Process | None:
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        _wait_for_child(noted["pid"])
        process = psutil.Process(noted["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            _wait_for_child(noted["pid"])  # it ended since the look above
            return None
        born = _birth(process)
        same = any(abs(when - noted.get(name, math.inf)) < SAME_S for name, when in born.items())
        return process if same else None
    except (FileNotFoundError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


def _birth(process: psutil.Process) -> dict[str, float]:
    """Return when a process began, in seconds since 1970 and since the system was booted."""
    started = process.create_time()
    return {"started": started, "since_boot": started - psutil.boot_time()}


def _wait_for_child(pid: int) -> None:
    """Take note of the end of a worker of this process, or it stays a zombie."""
    child = _CHILDREN.get(pid)
    if child is not None and child.poll() is not None:
        _CHILDREN.pop(pid, None)  # the number may be another's from now on


_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
