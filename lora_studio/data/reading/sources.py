"""Files into records, one after the other. It knows kinds of files, not what a row means."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_studio.data.examples import Record
from lora_studio.data.reading import columnar, delimited, json_rows, streams
from lora_studio.data.reading.locations import (
    COLUMNAR,
    DOCUMENTS,
    KNOWN,
    TABLES,
    TEXTS,
    ZIP,
    Location,
    is_hidden,
    is_known,
    kind_of,
    known_kinds,
    locate,
)
from lora_studio.data.reading.rows import Position, Unreadable
from lora_studio.data.reading.streams import Opener
from lora_studio.data.reading.texts import AUTO, MIB, Text, look_into
from lora_studio.errors import DatasetError

__all__ = ["KNOWN", "Source", "Unreadable", "fingerprint", "open_sources"]

LARGEST_TEXT_BYTES = 64 * MIB
LARGEST_DOCUMENT_BYTES = 256 * MIB
COPY_BYTES = MIB

Rows = Iterator[Record | Unreadable]


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read: of the disk, or a member of an archive."""

    name: str
    """As the person knows it; a member of an archive has the archive's name before it."""
    kind: str
    """The file's ending in small letters without `.gz`, as `.csv`."""
    encoding: str | None
    """Detected or chosen, as Python names it; None for kinds that are not plain text."""
    size: int
    """Bytes, unpacked from an archive or from `.gz`."""
    position: Position = field(repr=False, compare=False)
    """How far it was read; that of the last reading, if there are several."""
    _read: Callable[[str], Rows] = field(repr=False, compare=False)
    """Reads anew; takes the name."""

    def records(self) -> Rows:
        """Yield every row, or the whole document, in order; each call begins anew.

        Raises:
            DatasetError: If what follows cannot be read; it names the file and the row.
        """
        self.position.begin()
        try:
            yield from self._read(self.name)
        except (OSError, MemoryError) as error:
            raise streams.unreadable(error, file=self.name) from error
        self.position.end()


@contextmanager
def open_sources(paths: Sequence[Path], *, encoding: str = AUTO) -> Iterator[list[Source]]:
    """Give the files of paths, folders and archives, in order.

    Plain text is read through once to see that its encoding fits all of it.

    Args:
        paths: Files, folders and zip archives; endings say how files are read (`KNOWN`).
        encoding: What the text files are in; `auto` finds out for each.

    Yields:
        The sources, which can be read until the context ends; temporary files go then.

    Raises:
        DatasetError: If there are no files, or one is of no known kind or cannot be read.
    """
    with ExitStack() as until:
        found: list[Source] = []
        for location in locate(paths):
            try:
                found += _sources(location, encoding=encoding, until=until)
            except (OSError, MemoryError) as error:
                raise streams.unreadable(error, file=location.name) from error
        yield _distinct(found)


def fingerprint(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' contents in their order, names left out.

    Raises:
        DatasetError: If a file is missing or cannot be read.
    """
    total = hashlib.sha256()
    for location in locate(paths) if paths else []:
        content = hashlib.sha256()
        try:
            with closing(_open(location)) as raw:
                while block := raw.read(COPY_BYTES):
                    content.update(block)
        except OSError as error:
            raise streams.unreadable(error, file=location.name) from error
        total.update(content.digest())
    return total.hexdigest()


def _open(location: Location) -> streams.Stream:
    return streams.open_file(location.path, file=location.name)


def _sources(location: Location, *, encoding: str, until: ExitStack) -> list[Source]:
    """Return the one file, or the files of the archive."""
    if not is_known(location.path.name):
        raise DatasetError("data.unknown_kind", file=location.name, known=known_kinds())
    opener = partial(_open, location)
    opener().close()
    if kind_of(location.path.name)[0] == ZIP:
        return _archive(location, encoding=encoding, until=until)
    path = None if kind_of(location.path.name)[1] else location.path
    return [_source(location.name, opener, path=path, encoding=encoding, until=until)]


def _archive(location: Location, *, encoding: str, until: ExitStack) -> list[Source]:
    """Return the known files of a zip archive; one in it is not unpacked in turn."""
    if not location.path.stat().st_size:
        raise DatasetError("data.empty_file", file=location.name)
    found: list[Source] = []
    total = 0
    for name, _, opener in streams.members(location.path, file=location.name, until=until):
        if is_hidden(name) or not is_known(name) or kind_of(name)[0] == ZIP:
            continue
        full = f"{location.name}/{name}"
        source = _source(full, opener, path=None, encoding=encoding, until=until)
        total += source.size
        streams.check_unpacked(total, file=location.name)
        found.append(source)
    if not found:
        raise DatasetError("data.nothing_known", file=location.name, known=known_kinds())
    return found


def _source(
    name: str, opener: Opener, *, path: Path | None, encoding: str, until: ExitStack
) -> Source:
    """Return a file as a source.

    Args:
        name: The file's.
        opener: Opens it.
        path: Where it lies as it is; None if it is packed.
        encoding: As for `open_sources`.
        until: What temporary files last for.
    """
    kind, is_packed = kind_of(name)
    if is_packed:
        opener = streams.gunzipped(opener, file=name)
    if kind in TEXTS + TABLES:
        text = look_into(opener, file=name, encoding=encoding)
        read = partial(_text_rows, text, kind)
        return Source(name, kind, text.encoding, text.size, text.position, read)
    path = path or _unpacked(opener, until)
    size = path.stat().st_size
    if not size:
        raise DatasetError("data.empty_file", file=name)
    position = Position()
    return Source(name, kind, None, size, position, partial(_binary_rows, path, kind, position))


def _unpacked(opener: Opener, until: ExitStack) -> Path:
    """Unpack into a file under a name of ours: its readers jump about in it."""
    folder = until.enter_context(tempfile.TemporaryDirectory(prefix="lora-studio-"))
    path = Path(folder) / "unpacked"
    with closing(opener()) as raw, path.open("wb") as file:
        while block := raw.read(COPY_BYTES):
            file.write(block)
    return path


def _text_rows(text: Text, kind: str, name: str) -> Rows:
    text = replace(text, file=name)
    if kind in (".jsonl", ".ndjson"):
        return json_rows.read_json_lines(text)
    if kind == ".json":
        return json_rows.read_json(text)
    if kind in TABLES:
        return delimited.read_delimited(text, delimiter="\t" if kind == ".tsv" else None)
    return _document(text)


def _document(text: Text) -> Rows:
    whole = text.whole(most_bytes=LARGEST_TEXT_BYTES, key="data.large_text")
    yield Record(text.file, 1, whole.replace("\0", ""))


def _binary_rows(path: Path, kind: str, position: Position, name: str) -> Rows:
    with path.open("rb") as raw:
        if kind in DOCUMENTS:
            yield _converted(raw, kind, name)
        elif kind in COLUMNAR:
            yield from columnar.read_columnar(raw, kind, file=name, position=position)
        else:
            from lora_studio.data.reading.spreadsheets import read_xlsx

            yield from read_xlsx(raw, file=name, position=position)


def _converted(raw: Any, kind: str, name: str) -> Record:
    """Return a document's text."""
    from lora_studio.data.reading.documents import DOCUMENTS as CONVERTERS

    content = raw.read(LARGEST_DOCUMENT_BYTES + 1)
    if len(content) > LARGEST_DOCUMENT_BYTES:
        limit = LARGEST_DOCUMENT_BYTES // MIB
        size = Path(raw.name).stat().st_size // MIB
        raise DatasetError("data.large_text", file=name, size=size, limit=limit)
    text = CONVERTERS[kind](content, name)
    if not text.strip():
        raise DatasetError("data.empty_file", file=name)
    return Record(name, 1, text)


def _distinct(sources: Sequence[Source]) -> list[Source]:
    """Number the names that even paths do not tell apart, as where a file is given twice."""
    taken: set[str] = set()
    found = []
    for source in sources:
        name, count = source.name, 1
        while name in taken:
            count += 1
            name = f"{source.name} ({count})"
        taken.add(name)
        found.append(replace(source, name=name))
    return found
