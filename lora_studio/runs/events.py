"""The events file: append-only JSON Lines, written by one worker, read by everybody else."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

RESERVE_BYTES = 65_536
BLOCK_BYTES = 65_536
"""Read at once: larger blocks are slower, as their memory is asked for anew each time."""
ENDS = frozenset({"finished", "stopped", "failed"})
"""Events after which a run is over."""


class EventWriter:
    """Appends events, each handed to the system before the next line of the worker runs.

    Nothing is buffered here: threads and a signal's handler may write too, and a line that the
    disk refused must not come a second time.

    A small reserve file is kept beside the events and given up when the disk is full, so that
    the event which says so can still be written.
    """

    def __init__(self, file: Path) -> None:
        self._reserve = file.with_suffix(".reserve")
        self._reserve.write_bytes(b"\0" * RESERVE_BYTES)
        self._out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if _is_torn(file):
            self._append(b"\n")
        self.at_end: Callable[[], None] | None = None
        """Called once the event that ends a run is written."""
        self._ending = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_over(self) -> bool:
        """Whether the event that ends a run was written, or is being written."""
        return self._ending.locked()

    def write(self, event: str, **fields: Any) -> bool:
        """Append one event; a number that is not finite becomes null, and its name is listed.

        A run ends once: of two threads that end it, or a thread and the handler of a signal, the
        first is heard.

        Returns:
            Whether it was written: False of an end where there was one before.

        Raises:
            OSError: If it cannot be written even with the reserve given up.
        """
        if event not in ENDS:
            self._write(event, fields)
            return True
        if not self._ending.acquire(blocking=False):
            return False
        try:
            self._write(event, fields)
        except OSError:
            self._ending.release()
            raise
        if self.at_end is not None:
            self.at_end()
        return True

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        broken = [name for name, value in fields.items() if _is_broken(value)]
        fields = {name: None if name in broken else value for name, value in fields.items()}
        if broken:
            fields["not_finite"] = broken
        entry = {"time": round(time.time(), 3), "event": event, **fields}
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        self._append(line.encode())

    def close(self) -> None:
        """Close the file and remove the reserve."""
        os.close(self._out)
        self._reserve.unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._out, line) :]
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._reserve.exists():
                    raise
                self._reserve.unlink()


def _is_torn(file: Path) -> bool:
    """Return whether the last line was left without its end, as a crash may do."""
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(size - 1, 0))
        return content.read() not in (b"", b"\n")


def read_events(file: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the events after a byte offset, and the offset to go on from."""
    events = []
    for lines, after in new_lines(file, offset):
        offset = after
        events += [event for event in map(parsed, lines) if event is not None]
    return events, offset


def new_lines(file: Path, offset: int) -> Iterator[tuple[list[bytes], int]]:
    """Yield whole lines after a byte offset, many at a time, and the offset behind them.

    A last line without its line end is still being written: it is left for the next read.
    """
    try:
        source = file.open("rb", buffering=0)
    except FileNotFoundError:
        return
    with source:
        source.seek(offset)
        rest = b""
        while block := source.read(BLOCK_BYTES):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            offset += len(block)
            yield lines, offset - len(rest)


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line, None for what is not one, as a write torn by a crash."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _is_broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
