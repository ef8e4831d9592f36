"""Who reads which adapter's files now: a note on disk for each use, which any process can read.

A note names the process that reads; one whose process is gone counts for nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_studio.runs.process import is_running, write_identity

MARK = "~"
"""Between an adapter's name and what tells its uses apart."""


class Uses:
    """The adapters of one person that are being read.

    Args:
        folder: Of the notes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Have it known for as long as the block takes that an adapter's files are read."""
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / f"{name}{MARK}{secrets.token_hex(8)}.json"
        write_identity(note, os.getpid())
        try:
            yield
        finally:
            note.unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Return the adapters that are read now; notes of processes that are gone are removed."""
        found = set()
        for note in self._folder.glob(f"*{MARK}*.json"):
            if is_running(note):
                found.add(note.name.rpartition(MARK)[0])
            else:
                note.unlink(missing_ok=True)
        return found
