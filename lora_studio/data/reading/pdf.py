"""Text of a PDF file, put together from its lines, without running titles and page numbers.

PDF knows glyphs at places, no paragraphs. PDFium gives the lines in the order in which they were
written, which in nearly all files is the order of reading, also over columns; `paragraphs` does the
rest.
"""

from __future__ import annotations

import re
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lora_studio.data.reading.packages import translated
from lora_studio.data.reading.paragraphs import HYPHEN, Line, text_of
from lora_studio.errors import DatasetError

# Less than this share of letters and digits: glyphs that have no characters assigned to them.
LEAST_READABLE = 0.2
MOST_EDGE_LINES = 2
LEAST_PAGES_WITH_EDGES = 3

_PDFIUM = threading.Lock()  # the library is not made for several threads at once


def read_pdf(raw: bytes, file: str) -> str:
    """Return the text, with headings as in Markdown and paragraphs parted by blank lines.

    Raises:
        DatasetError: If it is broken, locked, or holds pictures of text instead of text.
    """
    import pypdfium2 as pdfium

    try:
        with _PDFIUM, translated(file):
            pages = _pages(raw)
    except DatasetError as error:
        cause = error.__cause__
        if isinstance(cause, pdfium.PdfiumError) and cause.err_code == pdfium.raw.FPDF_ERR_PASSWORD:
            raise DatasetError("data.locked_document", file=file) from cause
        raise
    lines = [line for page in _without_edges(pages) for line in page]
    visible = [char for line in lines for char in line.text if not char.isspace()]
    if sum(map(str.isalnum, visible)) <= LEAST_READABLE * len(visible):
        raise DatasetError("data.scanned_pdf", file=file)
    return text_of(lines)


def _pages(raw: bytes) -> list[list[Line]]:
    import pypdfium2 as pdfium

    with pdfium.PdfDocument(raw) as document:
        return [list(_lines(document, at)) for at in range(len(document))]


def _lines(document: Any, number: int) -> Iterator[Line]:
    """Yield the lines of one page in the order of the file."""
    from pypdfium2 import raw as c

    page = document[number]
    text_page = page.get_textpage()
    try:
        start, chars = 0, []
        for at in range(text_page.count_chars()):
            char = chr(c.FPDFText_GetUnicode(text_page, at))
            chars.append(char)
            if char in f"\n{HYPHEN}":
                yield from _line(text_page, start, chars, page=number)
                start, chars = at + 1, []
        yield from _line(text_page, start, chars, page=number)
    finally:
        text_page.close()
        page.close()


def _line(text_page: Any, start: int, chars: Sequence[str], *, page: int) -> Iterator[Line]:
    """Yield the line, if anything of it can be seen."""
    import ctypes

    from pypdfium2 import raw as c

    seen = [at for at, char in enumerate(chars) if not char.isspace() and char != HYPHEN]
    if not seen:
        return
    first, middle, last = (start + seen[at] for at in (0, len(seen) // 2, -1))
    left, _, _, _ = text_page.get_charbox(first)
    _, _, right, _ = text_page.get_charbox(last)
    x, y = ctypes.c_double(), ctypes.c_double()
    c.FPDFText_GetCharOrigin(text_page, first, x, y)
    size = statistics.median(_size(text_page, at) for at in (first, middle, last))
    text = "".join(chars).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = " ".join(text.replace("\0", "").replace("\xad", "").split())
    if chars[-1] == HYPHEN:
        text = text.removesuffix(HYPHEN).rstrip() + HYPHEN
    yield Line(text, page, left, right, y.value, size)


def _size(text_page: Any, at: int) -> float:
    """Return the size of a character's font as it appears on the page."""
    from pypdfium2 import raw as c

    matrix = c.FS_MATRIX()
    c.FPDFText_GetMatrix(text_page, at, matrix)
    scale = (matrix.c**2 + matrix.d**2) ** 0.5 or 1.0
    return round(c.FPDFText_GetFontSize(text_page, at) * scale * 2) / 2


def _without_edges(pages: Sequence[list[Line]]) -> list[list[Line]]:
    """Leave out what returns at the top or bottom of most pages: running titles, page numbers."""
    if len(pages) < LEAST_PAGES_WITH_EDGES:
        return list(pages)

    def edges(page: Sequence[Line]) -> dict[Line, str]:
        ranked = sorted(page, key=lambda line: -line.baseline)
        outer = {*ranked[:MOST_EDGE_LINES], *ranked[-MOST_EDGE_LINES:]}
        return {line: re.sub(r"\d+", "#", line.text) for line in outer}

    by_page = [edges(page) for page in pages]
    seen = Counter(text for found in by_page for text in set(found.values()))
    return [
        [line for line in page if seen[found.get(line, "")] * 2 <= len(pages)]
        for page, found in zip(pages, by_page, strict=True)
    ]
