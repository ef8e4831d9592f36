"""What is forgotten, so that downloads and a Space's visitors cannot fill the disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lora_studio.runs.folder import RunFolder

UNSEEN_S = 24 * 3600.0
AWAY_S = 15 * 60.0
"""Longer than a Space's training may take: who is away that long has nothing going on."""
LEAST_FREE_BYTES = 5_000_000_000


def drop_old(folders: Iterable[Path], *, age_s: float) -> None:
    """Remove the folders that did not change for so long."""
    for folder in folders:
        if folder.is_dir() and time.time() - _changed(folder) > age_s:
            shutil.rmtree(folder, ignore_errors=True)


def keep_newest(folder: Path, most: int) -> None:
    """Remove all but the `most` newest entries of a folder."""
    for path in _oldest_first(folder)[: -most or None]:
        shutil.rmtree(path, ignore_errors=True)


def drop_results(run: RunFolder) -> None:
    """Remove what a run has learned; its settings and what it went through stay."""
    for folder in (run.checkpoints, run.adapter, run.path / "adapter.partial"):
        shutil.rmtree(folder, ignore_errors=True)


def note_seen(visitor: Path) -> None:
    """Remember that the visitor with this folder, if they have one yet, was here now."""
    with suppress(FileNotFoundError):
        os.utime(visitor)


def drop_unseen(visitors: Path) -> None:
    """Remove visitors that were not seen for a day; when the disk is full, those just away."""
    for folder in _oldest_first(visitors):
        away_s = time.time() - _changed(folder)
        is_full = shutil.disk_usage(visitors).free < LEAST_FREE_BYTES
        if away_s > UNSEEN_S or (is_full and away_s > AWAY_S):
            shutil.rmtree(folder, ignore_errors=True)


def _oldest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*") if path.is_dir()), key=_changed)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
