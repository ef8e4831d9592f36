"""What every reader gives besides records: a row that cannot be read, and mended odd values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lora_studio.errors import DatasetError

NAN = object()
"""Stands for NaN and the infinities until `tidy` makes them None."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One row that cannot be read; the rest of the file can."""

    file: str
    """Name of the file as the person knows it."""
    number: int
    """Where the row stands, counted as in `Record`."""
    error: DatasetError
    """Why it cannot be read."""


@dataclass(slots=True)
class Position:
    """How far a file was read, in what its kind can tell: bytes, rows, parts."""

    done: int = 0
    """Those that were read and used up."""
    whole: int = 0
    """All; 0 while nothing can be said."""

    @property
    def share(self) -> float:
        """How much of the file was read, 0 to 1."""
        return min(self.done / self.whole, 1.0) if self.whole else 0.0

    def begin(self, whole: int = 0) -> None:
        """Start anew, with so much to read."""
        self.done, self.whole = 0, whole

    def end(self) -> None:
        """Note that all was read."""
        self.done = self.whole = 1


class Repeated(dict[str, Any]):
    """An object of JSON in which a key stood twice, until `tidy` makes it a plain one."""


def tidy(value: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the value without odd parts, at any depth, and the names of what was mended.

    NaN and infinities become None (`nan`), a `Repeated` becomes a dict (`duplicate_key`), NUL
    characters go (`nul`). Lone surrogates, which no encoding can write, become U+FFFD unnamed.
    """
    found: dict[str, None] = {}
    return _tidied(value, found), tuple(found)


def _tidied(value: Any, found: dict[str, None]) -> Any:
    if isinstance(value, str):
        return _readable(value, found)
    if isinstance(value, dict):
        if isinstance(value, Repeated):
            found["duplicate_key"] = None
        return {_tidied(key, found): _tidied(item, found) for key, item in value.items()}
    if isinstance(value, list):
        return [_tidied(item, found) for item in value]
    if value is NAN or (isinstance(value, float) and not math.isfinite(value)):
        found["nan"] = None
        return None
    return value


def _readable(text: str, found: dict[str, None]) -> str:
    if "\0" in text:
        found["nul"] = None
        text = text.replace("\0", "")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
