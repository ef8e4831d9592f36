"""A worker that is ready: it has imported what any training needs, and waits for its run.

Half of the time from a click to the first step goes into imports, so an app has one process do
them beforehand. Its run comes through its stdin, which ends with the app. Until then it holds no
run, no accelerator and no token, so it may be ended at any time.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, cast

import psutil

FLAG = "--stand-by"
IDLE_S = 600.0
"""A worker that nobody needs for so long is ended."""
LATE = frozenset(
    {"HF_TOKEN", "LORA_STUDIO_HOME", "LORA_STUDIO_MAX_TRAINING_S", "LORA_STUDIO_WEBHOOK"}
)
"""Variables that are read when a run begins or the Hub is asked. Any other may have been read by an
import, so it has to be the same from the start."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A worker without a run, and how it was started."""

    process: subprocess.Popen[bytes]
    command: Sequence[str]
    environment: Mapping[str, str]


class StandBy:
    """The one worker of an app that waits, if there is one.

    Args:
        idle_s: Seconds that it waits after it was last wanted.
    """

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._waiting: _Waiting | None = None
        self._timer: threading.Timer | None = None

    @property
    def held_bytes(self) -> int:
        """RAM that is free again when the worker that waits is ended, or is a run's own."""
        waiting = self._waiting
        if waiting is None:
            return 0
        try:
            memory = psutil.Process(waiting.process.pid).memory_info()
        except psutil.NoSuchProcess:
            return 0
        return int(memory.rss) - getattr(memory, "shared", 0)

    def prepare(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Have a worker wait; one that waits already goes on if it was started in the same way.

        Args:
            command: What starts it.
            environment: That of the run which is expected; what is in LATE is not passed on yet.
        """
        early = _early(environment)
        with self._lock:
            if not self._suits(command, early):
                self._end()
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=early,
                    start_new_session=True,
                )
                self._waiting = _Waiting(process, command, early)
            self._wait_anew()

    def take(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | None:
        """Return the worker that waits for such a run, which is the caller's from now on.

        One that does not suit is ended: it would take memory from the run that starts without it.
        """
        with self._lock:
            if not self._suits(command, _early(environment)):
                self._end()
            waiting, self._waiting = self._waiting, None
            return waiting.process if waiting is not None else None

    def dismiss(self) -> None:
        """End the worker that waits, if there is one."""
        with self._lock:
            self._end()

    def _suits(self, command: Sequence[str], early: Mapping[str, str]) -> bool:
        found = self._waiting
        return (
            found is not None
            and found.process.poll() is None
            and (found.command, found.environment) == (command, early)
        )

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            end(waiting.process)

    def _wait_anew(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        timer = threading.Timer(self._idle_s, lambda: self._dismiss_after(timer))
        timer.daemon = True
        timer.start()
        self._timer = timer

    def _dismiss_after(self, timer: threading.Timer) -> None:
        """End the worker, unless somebody wanted it while the timer waited for its turn."""
        with self._lock:
            if timer is self._timer:
                self._end()


def hand_over(
    process: subprocess.Popen[bytes], arguments: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Give a worker that waits its run.

    Args:
        process: As `StandBy.take` returned it.
        arguments: Those of the worker.
        environment: The run's, of which the worker lacks what is in LATE.

    Raises:
        OSError: If it has died.
    """
    late = {name: environment[name] for name in sorted(LATE & environment.keys())}
    message = json.dumps({"arguments": list(arguments), "environment": late})
    with cast("IO[bytes]", process.stdin) as pipe:
        pipe.write(message.encode() + b"\n")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a worker that has no run."""
    with process:  # closes its stdin and waits for it
        process.kill()


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in LATE}
