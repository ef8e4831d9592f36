"""Runs that wait for the accelerator: a note in each one's folder says its place in the line.

The line is these notes and nothing else, so it survives every process, and a run that is removed
has left it. A run whose worker is noted has been started, whether or not its starter lived to take
it out. Who is busy, and when the next may start, is not known here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from lora_studio.files import write_whole
from lora_studio.runs.folder import RunFolder
from lora_studio.settings import Settings

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
LAST = 2**31
"""The place of a run whose note cannot be read."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run in the line."""

    folder: RunFolder
    visitor: str | None
    """On a Space, whose run it is."""
    place: int
    """Who has the lowest is next; places of runs that left stay empty."""


class Queue:
    """The line of all who share a home folder.

    Args:
        settings: Those of any studio of this home.
    """

    def __init__(self, settings: Settings) -> None:
        self._home = replace(settings, visitor=None)
        self._guard = FileLock(settings.home / "queue.lock")

    def guard(self) -> FileLock:
        """Return the lock under which looking at the line and changing it are one step."""
        return self._guard

    def waiting(self) -> list[Waiting]:
        """Return who waits, the next first."""
        found = [
            Waiting(folder, visitor, _read(folder.queued))
            for visitor, runs in self._everybodys_runs()
            for folder in (RunFolder(note.parent) for note in runs.glob("*/queued"))
            if folder.waits()
        ]
        return sorted(found, key=lambda run: (run.place, run.folder.id))

    def add(self, folder: RunFolder) -> None:
        """Put a run at the end of the line; a worker that it had before is over and forgotten."""
        with self._guard:
            folder.process.unlink(missing_ok=True)
            last = max((run.place for run in self.waiting()), default=0)
            write_whole(folder.queued, str(last + 1))

    def remove(self, folder: RunFolder) -> None:
        """Take a run out of the line."""
        folder.queued.unlink(missing_ok=True)

    def move(self, run: RunFolder, *, to: int, visitor: str | None) -> None:
        """Move a run among those of one visitor; nobody else's run loses its place.

        Args:
            run: One that waits; another is left alone.
            to: Its new position among them, from 0; beyond either end is that end.
            visitor: Whose line it is.
        """
        with self._guard:
            own = [waits for waits in self.waiting() if waits.visitor == visitor]
            order = [waits.folder for waits in own]
            if run not in order:
                return
            order.remove(run)
            order.insert(max(to, 0), run)
            for folder, waits in zip(order, own, strict=True):
                if folder != waits.folder:
                    write_whole(folder.queued, str(waits.place))

    def _everybodys_runs(self) -> list[tuple[str | None, Path]]:
        visitors = [path.name for path in self._home.visitors.glob("*")]
        return [
            (None, self._home.runs),
            *((name, self._home.for_visitor(name).runs) for name in visitors),
        ]


class Dispatcher:
    """Asks for the next run to be started, again and again, in a thread of its own.

    Args:
        start_next: Starts the first in line if the accelerator is free.
        every_s: Seconds between two looks.
    """

    def __init__(self, start_next: Callable[[], object], *, every_s: float = LOOK_EVERY_S) -> None:
        self._start_next = start_next
        self._every_s = every_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dispatcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; whoever waits goes on waiting."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.wait(self._every_s):
            try:
                self._start_next()
            except OSError as error:
                # A disk that is full or gone for a moment must not end the line.
                log.warning("the line cannot be looked at: %s", error)


def _read(note: Path) -> int:
    with suppress(OSError, ValueError):
        return int(note.read_text(encoding="utf-8"))
    return LAST
