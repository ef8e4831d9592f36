"""Folders of results that can be made again, each under the hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

KEPT = 8
MOST_BYTES = 10 * 2**30
"""So many results of so many bytes together are kept; those not used for longest make room."""
ABANDONED_S = 24 * 3600
"""A half-made result this old belongs to a process that was killed."""


class Cache:
    """Makes folders, or finds those made before.

    Args:
        folder: Where they lie; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, depends_on: Any, make: Callable[[Path], None]) -> Path:
        """Return the folder that `make` has filled for the same dependencies, now or before.

        What is half made when `make` raises is removed.

        Args:
            depends_on: Plain values; equal ones give the same folder.
            make: Fills an empty folder.
        """
        text = json.dumps(depends_on, sort_keys=True, ensure_ascii=False)
        place = self._folder / hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if not _is_used(place):
            self._make(place, make)
            _is_used(place)
        with suppress(FileNotFoundError):  # somebody else makes room at the same time
            self._make_room()
        return place

    def _make(self, place: Path, make: Callable[[Path], None]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=self._folder, prefix="."))
        try:
            make(partial)
            with suppress(OSError):  # somebody else may have made it meanwhile
                partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self) -> None:
        """Remove what was not used for longest; open files of it stay readable.

        The newest stays, however large it is.
        """
        entries = sorted(self._folder.iterdir(), key=_last_used, reverse=True)
        made = [entry for entry in entries if not entry.name.startswith(".")]
        half = [entry for entry in entries if entry.name.startswith(".")]
        totals = accumulate(map(_size, made))
        fitting = sum(total <= MOST_BYTES for total in islice(totals, KEPT))
        abandoned = time.time() - ABANDONED_S
        killed = [entry for entry in half if _last_used(entry) < abandoned]
        for old in [*made[max(fitting, 1) :], *killed]:
            shutil.rmtree(old, ignore_errors=True)


def _is_used(place: Path) -> bool:
    """Note that a folder is used now; return whether it was there for that."""
    try:
        os.utime(place)
    except FileNotFoundError:
        return False
    return True


def _last_used(entry: Path) -> float:
    return entry.stat().st_mtime


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*"))
