"""Bytes of files, of compressed files and of members of archives, never more than is safe.

A small archive can unpack to more than any disk holds. What comes out is counted while it is
read, whatever the archive says of itself.
"""

from __future__ import annotations

import gzip
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from lora_studio.errors import DatasetError

MOST_ENTRIES = 10_000
MOST_UNPACKED_BYTES = 4 * 2**30
MOST_RATIO = 200
"""Unpacked bytes per packed one, above `FREE_OF_RATIO_BYTES`."""
FREE_OF_RATIO_BYTES = 100 * 2**20
# An entry of the directory is 46 bytes and a name; an end record is the last 22 bytes, or stands
# before a comment (APPNOTE 6.3.10, sections 4.3.12 and 4.3.16).
LARGEST_DIRECTORY_BYTES = MOST_ENTRIES * 1024
END_RECORD = struct.Struct("<4s4H2LH")
END_MARK = b"PK\5\6"
LONGEST_COMMENT = 2**16
# All that the standard library raises for broken or unknown archives.
BROKEN = (
    OSError, EOFError, ValueError, RuntimeError, OverflowError, IndexError, MemoryError,
    struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, zipfile.LargeZipFile,
)  # fmt: skip


class Stream(Protocol):
    """What readers need of a file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""

    def close(self) -> None:
        """Let go of it."""


Opener = Callable[[], Stream]
"""Opens the same content anew, from its beginning."""


class Unpacked:
    """What comes out of something packed, counted.

    Args:
        raw: The stream that unpacks.
        file: Name of what is unpacked, for the errors.
        packed_bytes: Says how many packed bytes went in so far, or in all.
        below: What `raw` reads from, closed with it.
    """

    def __init__(
        self, raw: Any, *, file: str, packed_bytes: Callable[[], int], below: Stream | None = None
    ) -> None:
        self._raw = raw
        self._file = file
        self._packed_bytes = packed_bytes
        self._below = below
        self.total = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end.

        Raises:
            DatasetError: If it is broken, or unpacks to more than is safe.
        """
        try:
            block: bytes = self._raw.read(size)
        except BROKEN as error:
            raise DatasetError("data.broken_archive", file=self._file) from error
        self.total += len(block)
        check_unpacked(self.total, file=self._file)
        ratio = self.total / max(1, self._packed_bytes())
        if self.total > FREE_OF_RATIO_BYTES and ratio > MOST_RATIO:
            raise _bomb(self._file)
        return block

    def close(self) -> None:
        """Let go of it and of what it reads from."""
        self._raw.close()
        if self._below is not None:
            self._below.close()


def check_unpacked(total: int, *, file: str) -> None:
    """Refuse more unpacked bytes than are safe.

    Raises:
        DatasetError: If there are.
    """
    if total > MOST_UNPACKED_BYTES:
        raise _bomb(file)


def open_file(path: Path, *, file: str) -> Stream:
    """Open a file of the disk.

    Raises:
        DatasetError: If it is not there, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DatasetError("data.unreadable", file=file, reason="not a regular file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise DatasetError("data.missing_file", file=printable(str(path))) from error
    except (OSError, ValueError) as error:
        raise unreadable(error, file=file) from error


def unreadable(error: Exception, *, file: str) -> DatasetError:
    """Say what the system says of a file that cannot be read."""
    reason = getattr(error, "strerror", None) or str(error)
    return DatasetError("data.unreadable", file=file, reason=reason)


def gunzipped(opener: Opener, *, file: str) -> Opener:
    """Return what opens the content of a gzip file."""

    def unpack() -> Stream:
        packed = Counted(opener())
        fileobj: Any = packed  # gzip reads it and no more, but its stubs want the rest of a file
        raw = gzip.GzipFile(fileobj=fileobj, mode="rb")
        return Unpacked(raw, file=file, packed_bytes=lambda: packed.total, below=packed)

    return unpack


class Counted:
    """A stream that knows how much was read from it."""

    def __init__(self, raw: Stream) -> None:
        self._raw = raw
        self.total = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        block = self._raw.read(size)
        self.total += len(block)
        return block

    def close(self) -> None:
        """Let go of it."""
        self._raw.close()


def members(path: Path, *, file: str, until: ExitStack) -> list[tuple[str, int, Opener]]:
    """Return the files in a zip archive: names in it, bytes as it states them, what opens them.

    Args:
        path: The archive.
        file: Its name, for the errors.
        until: What the archive stays open for.

    Raises:
        DatasetError: If it is broken, has too many entries, or one that is encrypted, a link, or
            named so that unpacking it would write elsewhere.
    """
    _check_directory(path, file=file)
    try:
        archive = until.enter_context(zipfile.ZipFile(path))
        entries = archive.infolist()
    except BROKEN as error:
        raise DatasetError("data.broken_archive", file=file) from error
    if len(entries) > MOST_ENTRIES:
        raise DatasetError("data.too_many_files", file=file, limit=MOST_ENTRIES)
    for entry in entries:
        _check_entry(entry, file=file)
    return [
        (_shown(entry), entry.file_size, _member(archive, entry, file=f"{file}/{_shown(entry)}"))
        for entry in entries
        if not entry.is_dir()
    ]


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, *, file: str) -> Opener:
    def unpack() -> Stream:
        try:
            raw = archive.open(entry)
        except BROKEN as error:
            raise DatasetError("data.broken_archive", file=file) from error
        return Unpacked(raw, file=file, packed_bytes=lambda: entry.compress_size)

    return unpack


def _check_directory(path: Path, *, file: str) -> None:
    """Refuse a directory so large that only reading it would fill the memory."""
    with path.open("rb") as raw:
        size = raw.seek(0, 2)
        raw.seek(max(0, size - END_RECORD.size - LONGEST_COMMENT))
        tail = raw.read()
    at = tail.rfind(END_MARK)
    if at < 0 or len(tail) - at < END_RECORD.size:
        raise DatasetError("data.broken_archive", file=file)
    if END_RECORD.unpack_from(tail, at)[5] > LARGEST_DIRECTORY_BYTES:
        raise DatasetError("data.too_many_files", file=file, limit=MOST_ENTRIES)


def _check_entry(entry: zipfile.ZipInfo, *, file: str) -> None:
    name = entry.orig_filename.replace("\\", "/")
    has_drive = len(name) > 1 and name[1] == ":" and name[0].isalpha()
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    if name.startswith("/") or has_drive or is_link or ".." in PurePosixPath(name).parts:
        raise DatasetError("data.unsafe_archive", file=file, entry=_shown(entry))
    if entry.flag_bits & 0x1:
        raise DatasetError("data.encrypted_archive", file=file)


def _shown(entry: zipfile.ZipInfo) -> str:
    """Return the entry's name as it was meant: old Korean programs write cp949 without saying."""
    name = entry.filename.replace("\\", "/")
    is_utf8 = entry.flag_bits & 0x800
    if is_utf8 or name.isascii():
        return printable(name)
    raw = name.encode("cp437", "replace")
    for encoding in ("utf-8", "cp949"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return printable(name)


def printable(name: str) -> str:
    """Return a file's name without bytes that are no text in this system's encoding."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _bomb(file: str) -> DatasetError:
    limit = MOST_UNPACKED_BYTES // 2**30
    return DatasetError("data.archive_too_large", file=file, limit=limit)
