"""A text file as a stream of decoded text, without holding it."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from lora_studio.data.reading import encodings
from lora_studio.data.reading.encodings import HEAD_BYTES, MOST_NUL
from lora_studio.data.reading.rows import Position
from lora_studio.data.reading.streams import Opener
from lora_studio.errors import DatasetError

AUTO = "auto"
BLOCK_BYTES = 2**20
LONGEST_LINE = 64 * 2**20
"""Characters."""
MIB = 2**20
# Spellings of Unicode in names and source code, some of which give halves of characters.
NOT_OF_FILES = {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "utf-7"}


@dataclass(frozen=True, slots=True)
class Text:
    """A file that is known to be text."""

    opener: Opener
    file: str
    """Its name, for the errors."""
    encoding: str
    """As Python names it."""
    has_nul: bool
    """Whether NUL characters stand in it."""
    size: int
    """Bytes, unpacked."""
    position: Position = field(default_factory=Position, repr=False, compare=False)
    """How far it was read; that of its last reading, if there are several."""

    def blocks(self) -> Iterator[str]:
        r"""Yield the text in pieces, with `\n` as its only line end, without a byte order mark.

        Raises:
            DatasetError: If the file no longer is what it was when it was looked at.
        """
        # Translates the line ends too, also where one stands across two blocks.
        decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder(self.encoding)(), translate=True
        )
        is_first = True
        read = 0
        self.position.begin(self.size)
        with closing(self.opener()) as raw:
            while True:
                self.position.done = read  # another block is asked for: the one before is used up
                block = raw.read(BLOCK_BYTES)
                read += len(block)
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeError as error:
                    raise DatasetError(
                        "data.wrong_encoding", file=self.file, encoding=self.encoding, line=1
                    ) from error
                if is_first and text:
                    text, is_first = text.removeprefix("\ufeff"), False
                if text:
                    yield text
                if not block:
                    return

    def lines(self) -> Iterator[str]:
        """Yield the lines without their ends.

        Raises:
            DatasetError: For a line that is longer than any row.
        """
        number, parts, length = 1, [""], 0
        for text in self.blocks():
            first, *others = text.split("\n")
            parts.append(first)
            length += len(first)
            if length > LONGEST_LINE:
                limit = LONGEST_LINE // MIB
                raise DatasetError("data.long_line", file=self.file, line=number, limit=limit)
            if others:
                yield "".join(parts)
                number += len(others)
                parts = [others.pop()]
                length = len(parts[0])
                yield from others
        if length:
            yield "".join(parts)

    def whole(self, *, most_bytes: int, key: str) -> str:
        """Return all of the text.

        Args:
            most_bytes: How large the file may be.
            key: Of the sentence for a larger one.

        Raises:
            DatasetError: If it is larger.
        """
        if self.size > most_bytes:
            raise DatasetError(key, file=self.file, size=self.size // MIB, limit=most_bytes // MIB)
        return "".join(self.blocks())


@dataclass(frozen=True, slots=True)
class _Scan:
    """What one encoding makes of a whole file."""

    size: int = 0
    characters: int = 0
    nuls: int = 0
    is_blank: bool = True
    broken_line: int | None = None
    """Line of the first byte that does not fit, None if all do."""
    around: bytes = b""
    """What stands there, from the beginning of the line."""


def look_into(opener: Opener, *, file: str, encoding: str = AUTO) -> Text:
    """Find out a file's encoding and see that all of it fits.

    Args:
        opener: Opens the file.
        file: Its name, for the errors.
        encoding: What it is in; `auto` finds out.

    Raises:
        DatasetError: If there is nothing in it, it is no text, or the encoding does not fit.
    """
    head, is_whole = _head(opener)
    if not head:
        raise DatasetError("data.empty_file", file=file)
    if encoding == AUTO:
        encoding, scan = _settled(opener, head, is_whole=is_whole, file=file)
    else:
        encoding = _known(encoding, file=file)
        scan = _scanned(opener, encoding)
        if scan.broken_line is not None:
            raise _does_not_fit(scan.broken_line, encoding, file=file, head=(head, is_whole))
    if scan.is_blank:
        raise DatasetError("data.empty_file", file=file)
    if scan.nuls > MOST_NUL * scan.characters:
        raise DatasetError("data.binary_file", file=file)
    return Text(opener, file, encoding, bool(scan.nuls), scan.size)


def _head(opener: Opener) -> tuple[bytes, bool]:
    """Return the beginning of the file, and whether it is all of it."""
    parts: list[bytes] = []
    left = HEAD_BYTES
    with closing(opener()) as raw:
        while left and (block := raw.read(left)):
            parts.append(block)
            left -= len(block)
        return b"".join(parts), not raw.read(1)


def _settled(opener: Opener, head: bytes, *, is_whole: bool, file: str) -> tuple[str, _Scan]:
    """Return the encoding that all of the file fits, and what it makes of it."""
    encoding = encodings.detect(head, is_whole=is_whole)
    if encoding is None:
        raise DatasetError("data.binary_file", file=file)
    scan = _scanned(opener, encoding)
    if scan.broken_line is None:
        return encoding, scan
    for other in _others(head, scan.around, is_whole=is_whole):
        again = _scanned(opener, other) if other != encoding else scan
        if again.broken_line is None:
            return other, again
    raise DatasetError("data.wrong_encoding", file=file, encoding=encoding, line=scan.broken_line)


def _others(head: bytes, around: bytes, *, is_whole: bool) -> list[str]:
    """Return the encodings to try on a file that the one of its beginning does not fit.

    A beginning in plain ASCII says nothing: then the line that does not fit tells more.
    """
    if encodings.is_mostly_utf8(head + b"\n" + around):
        return []
    if head.isascii():
        return encodings.candidates(around, is_whole=False)
    return encodings.candidates(head, is_whole=is_whole)


def _scanned(opener: Opener, encoding: str) -> _Scan:
    decoder = codecs.getincrementaldecoder(encoding)()
    size, characters, nuls, lines, is_blank = 0, 0, 0, 1, True
    with closing(opener()) as raw:
        while True:
            block = raw.read(BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:
                line, around = _place(error, encoding)
                return _Scan(size, broken_line=lines + line, around=around)
            if not block:
                return _Scan(size, characters, nuls, is_blank)
            size += len(block)
            characters += len(text)
            nuls += text.count("\0")
            lines += text.count("\n")
            is_blank = is_blank and not text.removeprefix("\ufeff").strip()


def _place(error: UnicodeError, encoding: str) -> tuple[int, bytes]:
    """Return how many lines come before what does not fit, and the bytes from its line on."""
    if not isinstance(error, UnicodeDecodeError):
        return 0, b""
    before = error.object[: error.start]
    begin = before.rfind(b"\n") + 1
    lines = before.decode(encoding, "ignore").count("\n")
    return lines, error.object[begin : begin + BLOCK_BYTES // 8]


def _known(encoding: str, *, file: str) -> str:
    """Return an encoding's name as Python spells it."""
    try:
        "a".encode(encoding)  # refuses what is no encoding of text
        codecs.getincrementaldecoder(encoding)
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise DatasetError("data.unknown_encoding", file=file, encoding=encoding) from error
    if name in NOT_OF_FILES:
        raise DatasetError("data.unknown_encoding", file=file, encoding=encoding)
    return name


def _does_not_fit(line: int, encoding: str, *, file: str, head: tuple[bytes, bool]) -> DatasetError:
    """Name the place, and another encoding to choose."""
    found = encodings.detect(head[0], is_whole=head[1])
    other = found if found and codecs.lookup(found).name != encoding else AUTO
    return DatasetError("data.other_encoding", file=file, encoding=encoding, line=line, other=other)
