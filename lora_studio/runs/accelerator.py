"""Who has the accelerator: one job at a time, by a note on disk that any process can read.

The note holds the job's pid and start time; a note whose process is gone counts for nothing,
so a crash never locks anybody out.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from lora_studio.errors import RunError
from lora_studio.files import write_whole
from lora_studio.runs.process import is_running, pid_of, write_identity

LONG = ("training", "evaluate")
"""Kinds of jobs that give way to none; answers do."""


@dataclass(frozen=True, slots=True)
class Job:
    """Who holds the accelerator."""

    kind: str
    """`training`, `evaluate` or `compare`."""
    names: tuple[str, ...]
    """The run's id, or the names of the adapters that answer."""
    visitor: str | None = None
    """On a Space, whose run it is."""


class Accelerator:
    """The one place that is asked before a job starts.

    Args:
        home: The studio's home folder; the note lies there, whoever's run it is.
    """

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._note = home / "accelerator.json"
        self._identity = home / "accelerator-process.json"
        self._guard = FileLock(home / "accelerator.lock")

    def holder(self) -> Job | None:
        """Return the job that runs now, or None."""
        try:
            said = json.loads(self._note.read_text(encoding="utf-8"))
            job = Job(**said | {"names": tuple(said["names"])})
        except (FileNotFoundError, ValueError, TypeError, LookupError):
            return None
        return job if is_running(self._identity) else None

    def guard(self) -> FileLock:
        """Return the lock under which `check` and `assign` are one step."""
        return self._guard

    def check(self, visitor: str | None) -> None:
        """Raise RunError if a job is busy, naming it to `visitor` only if it is theirs."""
        job = self.holder()
        if job is None:
            return
        if job.visitor != visitor:
            raise RunError("run.busy_other")
        raise RunError(f"run.busy_{job.kind}", run=", ".join(job.names))

    def check_long(self, visitor: str | None) -> None:
        """Raise RunError if a job is busy that gives way to none, as `check` does."""
        job = self.holder()
        if job is not None and job.kind in LONG:
            self.check(visitor)

    def is_mine(self) -> bool:
        """Return whether the job runs in this very process."""
        return self.holder() is not None and pid_of(self._identity) == os.getpid()

    def assign(self, job: Job, pid: int) -> None:
        """Note that a process has the accelerator until it ends or `release` is called."""
        write_whole(self._note, json.dumps(asdict(job)))
        write_identity(self._identity, pid)

    def release(self, job: Job) -> None:
        """Give it back, if it is this job of this process that holds it."""
        with self._guard:
            if self.holder() == job and self.is_mine():
                self.clear()

    def clear(self) -> None:
        """Forget who holds it."""
        self._identity.unlink(missing_ok=True)
