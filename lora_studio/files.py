"""Small files that somebody else may be reading, the room that files take, and a full disk."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

DISK_FULL = (
    ("No space left on device",),
    ("Disk quota exceeded",),
    ("inline_container.cc", "unexpected pos"),
)
"""What safetensors says of a full disk, and torch's own writer, which leaves the reason out."""


def reason_of(error: Exception) -> str:
    """Return why a file could not be read or written: in words of the system, or a library's."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return said or type(error).__name__


def write_whole(file: Path, text: str) -> None:
    """Write a file aside and rename it, so that it is there whole or as it was.

    Raises:
        OSError: If the folder does not take it; nothing is left behind.
    """
    aside = file.with_name(f".{os.getpid()}-{threading.get_native_id()}.partial")
    try:
        with aside.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def is_disk_full(error: BaseException) -> bool:
    """Return whether the disk took no more, whichever library wrote."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return any(all(word in text for word in words) for words in DISK_FULL)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 if it is gone.

    Links are not followed, and what goes meanwhile or is not ours to read does not count.
    """
    total, left = 0, [str(path)]
    while left:
        place = left.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        total += _bytes(entry)
        except NotADirectoryError:
            total += _bytes(Path(place))
        except (FileNotFoundError, PermissionError):
            continue
    return total


def _bytes(file: Path | os.DirEntry[str]) -> int:
    try:
        return file.stat(follow_symlinks=False).st_size
    except (FileNotFoundError, PermissionError):
        return 0
