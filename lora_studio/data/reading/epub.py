"""Text of an e-book: the chapters that its spine names, in that order (EPUB 3.3, section 5)."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urldefrag

from lora_studio.data.reading.packages import check_package, translated
from lora_studio.errors import DatasetError

CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
PAGES = ("application/xhtml+xml", "text/html")
# XHTML may close any element at once, as in <title/>; HTML only reads these so.
EMPTY = re.compile(
    r"<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr)\b)"
    r"([A-Za-z][\w:-]*)([^<>]*)/>"
)


def read_epub(raw: bytes, file: str, *, page_text: Callable[[bytes], str]) -> str:
    """Return the chapters' text, parted by blank lines.

    Args:
        raw: The e-book.
        file: Its name, for the errors.
        page_text: Makes text of an HTML page.

    Raises:
        DatasetError: If it is broken, locked against copying, or too large.
    """
    check_package(BytesIO(raw), file=file)
    with translated(file), zipfile.ZipFile(BytesIO(raw)) as book:
        chapters = list(_chapters(book))
        locked = _locked(book)
        if locked.intersection(chapters):
            raise DatasetError("data.locked_document", file=file)
        texts = [page_text(_as_html(book.read(chapter))) for chapter in chapters]
    return "\n\n".join(text.strip() for text in texts if text.strip())


def _chapters(book: zipfile.ZipFile) -> Iterator[str]:
    """Yield the pages of the spine; the table of contents is none of the text."""
    root = _parsed(book, CONTAINER).find(".//{*}rootfile").get("full-path")
    package = _parsed(book, root)
    items = {item.get("id"): item for item in package.iterfind(".//{*}manifest/{*}item")}
    for entry in package.iterfind(".//{*}spine/{*}itemref"):
        item = items[entry.get("idref")]
        is_contents = "nav" in (item.get("properties") or "").split()
        if item.get("media-type") in PAGES and not is_contents:
            path = unquote(urldefrag(item.get("href")).url)
            yield _within(book, PurePosixPath(root).parent / path)


def _within(book: zipfile.ZipFile, path: PurePosixPath) -> str:
    """Return the member's name, with each `..` taken back."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return book.getinfo("/".join(parts)).filename


def _locked(book: zipfile.ZipFile) -> set[str]:
    """Return the members that are encrypted; fonts often are, in books that anyone may read."""
    if ENCRYPTION not in book.namelist():
        return set()
    references = _parsed(book, ENCRYPTION).iterfind(".//{*}CipherReference")
    return {unquote(reference.get("URI") or "") for reference in references}


def _parsed(book: zipfile.ZipFile, name: str) -> Any:
    from defusedxml import ElementTree

    return ElementTree.fromstring(book.read(name))


def _as_html(page: bytes) -> bytes:
    """Write out elements that are closed at once, which would else swallow what follows."""
    if page.startswith((b"\xff\xfe", b"\xfe\xff")):
        page = page.decode("utf-16").encode()
    return EMPTY.sub(r"<\1\2></\1>", page.decode("latin-1")).encode("latin-1")
