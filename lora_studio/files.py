"""Small files that somebody else may be reading."""

from __future__ import annotations

import os
import threading
from pathlib import Path


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
