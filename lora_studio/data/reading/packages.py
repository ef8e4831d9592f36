"""Office files and e-books are zip archives: whether one is safe to hand to its library."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

from lora_studio.errors import DatasetError

MIB: Final = 2**20
MOST_PARTS = 10_000
MOST_UNPACKED_BYTES = 500 * MIB
MOST_MARKUP_BYTES = 100 * MIB
"""Of XML and HTML in a document, which libraries hold in memory at several times its size."""
MOST_RATIO = 200
"""Unpacked bytes per packed one, above `FREE_OF_RATIO_BYTES`: markup may repeat itself a lot."""
FREE_OF_RATIO_BYTES = 10 * MIB
MARKUP = (".xml", ".rels", ".html", ".htm", ".xhtml", ".opf", ".ncx", ".svg")
# A password turns an Office file into the older container, which old .doc, .xls and .ppt are too.
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def check_package(raw: IO[bytes], *, file: str, most_markup: int = MOST_MARKUP_BYTES) -> None:
    """Refuse what is no zip archive, is encrypted, or unpacks to more than is safe.

    Unpacking stops at the sizes that the archive states, so that checking these is enough.

    Args:
        raw: The file; read from its beginning again afterwards.
        file: Its name, for the errors.
        most_markup: So many bytes of XML and HTML may be in it.

    Raises:
        DatasetError: If it is any of these.
    """
    if raw.read(len(OLD_OFFICE)) == OLD_OFFICE:
        raise DatasetError("data.old_or_locked_document", file=file)
    packed = raw.seek(0, 2)
    with translated(file):
        entries = zipfile.ZipFile(raw).infolist()
    if any(entry.flag_bits & 0x1 for entry in entries):
        raise DatasetError("data.locked_document", file=file)
    total = sum(entry.file_size for entry in entries)
    markup = sum(e.file_size for e in entries if e.filename.lower().endswith(MARKUP))
    is_bomb = total > FREE_OF_RATIO_BYTES and total > MOST_RATIO * packed
    is_large = total > MOST_UNPACKED_BYTES or markup > most_markup or len(entries) > MOST_PARTS
    if is_bomb or is_large:
        raise DatasetError("data.large_document", file=file, size=total // MIB)
    raw.seek(0)


@contextmanager
def translated(file: str) -> Iterator[None]:
    """Turn all that a library raises for a broken file into one sentence.

    Raises:
        DatasetError: Instead of anything else.
    """
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # readers of formats raise anything for broken input
        raise DatasetError("data.broken_document", file=file) from error
