"""Checkpoints as files: which of them are whole, which one a run goes on from. No torch.

checkpoints/
  checkpoint-40/     the adapter, the optimizer and all else a run goes on with
    manifest.json    size and SHA-256 of every file, written last
  partial-60/        one that is being written, or removed
  initial/           PiSSA's untrained adapter
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_studio.runs.folder import RunFolder

MANIFEST = "manifest.json"
PARTIAL = "partial-"

Stamp = tuple[str, int, int]
"""A file's path, its bytes, and when it was written in nanoseconds."""


def partial(place: Path) -> Path:
    """Return where a checkpoint is written before it is renamed to `place`."""
    return place.with_name(f"{PARTIAL}{place.name.rpartition('-')[2]}")


def seal(checkpoint: Path, *, needs: Iterable[Path] = ()) -> int:
    """Write the manifest of a checkpoint that holds all its other files; return their bytes.

    Args:
        checkpoint: The folder, of which every file is listed.
        needs: Files beside the folder that it is of no use without.
    """
    inside = (file for file in checkpoint.rglob("*") if file.is_file())
    names = [file.relative_to(checkpoint).as_posix() for file in inside]
    names += [f"../{file.relative_to(checkpoint.parent).as_posix()}" for file in needs]
    files = {name: _described(checkpoint / name) for name in sorted(names)}
    (checkpoint / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    return sum(entry["bytes"] for entry in files.values())


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint has a manifest and every file is as it was written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(
            # The size is known without reading.
            (checkpoint / name).stat().st_size == entry["bytes"]
            and _described(checkpoint / name) == entry
            for name, entry in files.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def newest_whole(folder: RunFolder) -> int | None:
    """Return the step of a run's newest checkpoint that is whole, None if there is none."""
    return next((step for step in _newest_first(folder) if is_whole(folder.checkpoint(step))), None)


def newest_known(folder: RunFolder) -> int | None:
    """Return what `newest_whole` does, reading again only files that changed since the last call.

    For a page that asks every few seconds.
    """
    steps = _newest_first(folder)
    return next((step for step in steps if _is_known(folder.checkpoint(step))), None)


def drop_after(folder: RunFolder, step: int) -> None:
    """Remove the checkpoints of later steps, and what was left half written."""
    for later in folder.checkpoint_steps():
        if later > step:
            _remove(folder.checkpoint(later))
    for left in folder.checkpoints.glob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


def drop_old(folder: RunFolder, *, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the newest ones and the best.

    Args:
        folder: The run.
        keep: How many of the newest stay, 1 or more.
        best: The step of the best; it stays, however old it is.
    """
    for step in folder.checkpoint_steps()[:-keep]:
        if step != best:
            _remove(folder.checkpoint(step))


def _newest_first(folder: RunFolder) -> list[int]:
    return folder.checkpoint_steps()[::-1]


def _remove(place: Path) -> None:
    """Remove a checkpoint; one that is half gone never goes by its name."""
    going = partial(place)
    shutil.rmtree(going, ignore_errors=True)
    place.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def _described(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _is_known(checkpoint: Path) -> bool:
    try:
        files = [*checkpoint.rglob("*"), *(checkpoint.parent / "initial").glob("*.safetensors")]
        return _is_whole_with(checkpoint, tuple(map(_stamp, sorted(files))))
    except FileNotFoundError:  # it is being removed
        return False


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return str(file), found.st_size, found.st_mtime_ns


@lru_cache(maxsize=256)
def _is_whole_with(checkpoint: Path, _: tuple[Stamp, ...]) -> bool:
    return is_whole(checkpoint)
