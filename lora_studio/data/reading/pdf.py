"""Text of a PDF file, put together from its lines: paragraphs, headings by size, no page numbers.

PDF knows glyphs at places, no paragraphs. PDFium gives the lines in the order in which they were
written, which in nearly all files is the order of reading, also over columns; how far apart, how
long and how large they are says the rest. Rows of tables stay lines.
"""

from __future__ import annotations

import re
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from lora_studio.data.reading.packages import translated
from lora_studio.errors import DatasetError

HYPHEN = "\x02"
"""PDFium's sign for a hyphen that only stands at the end of a line."""
LARGER = 1.15
"""A heading is so many times as large as most of the text."""
LONGEST_HEADING = 200
DEEPEST_HEADING = 3
# In ems, and as shares of the usual distance between lines or of a column's width.
INDENT = 0.8
GAP = 1.35
NEARLY_FULL = 0.85
SHORT = 0.7
FEW_LINES = 8
COLUMN_STEP = 20.0
"""Points; where lines begin is compared so finely."""
# Less than this share of letters and digits: glyphs that have no characters assigned to them.
LEAST_READABLE = 0.2
MOST_EDGE_LINES = 2
LEAST_PAGES_WITH_EDGES = 3
SENTENCE_END = (*".!?:;…。！？」』”’\"')",)
BULLET = re.compile(r"[-–•▪◦‣○●□■※*]\s|\(?(\d{1,2}|[가나다라마바사아자차카타파하a-z])[.)]\s")

_PDFIUM = threading.Lock()  # the library is not made for several threads at once


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text at its place on a page; lengths in points, y upwards."""

    text: str
    page: int
    left: float
    right: float
    baseline: float
    size: float
    """Size of the font."""


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
    return _text(lines)


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


def _text(lines: Sequence[Line]) -> str:
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[line.size] += len(line.text)
    body = sizes.most_common(1)[0][0]
    words = _Words(lines)
    blocks = list(_blocks(lines))
    larger = {
        block[0].size
        for block in blocks
        if block[0].size >= LARGER * body and _letters(block) <= LONGEST_HEADING
    }
    levels = {
        size: min(level, DEEPEST_HEADING)
        for level, size in enumerate(sorted(larger, reverse=True), start=1)
    }
    parts = []
    for block in blocks:
        level = levels.get(block[0].size, 0) if _letters(block) <= LONGEST_HEADING else 0
        text = _joined(block, words, keep_lines=not level)
        parts.append(f"{'#' * level} {text}" if level else text)
    return "\n\n".join(parts)


def _letters(block: Sequence[Line]) -> int:
    return sum(len(line.text) for line in block)


def _blocks(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Yield the lines of each paragraph, heading or table."""
    step = _usual_step(lines)
    columns = _Columns(lines)
    block: list[Line] = []
    for line in lines:
        if block and _is_parted(block[-1], line, step=step, width=columns.width(block[-1])):
            yield block
            block = []
        if block and columns.is_ended_early(block[-1]) and not _jumps(block[-1], line):
            block[-1] = replace(block[-1], text=block[-1].text + "\n")
        block.append(line)
    if block:
        yield block


def _is_parted(above: Line, line: Line, *, step: float, width: float) -> bool:
    """Tell whether a line begins something new after the one above it."""
    if max(above.size, line.size) > 1.1 * min(above.size, line.size):
        return True
    ends = above.text.endswith(SENTENCE_END)
    if _jumps(above, line):  # to the next column or page, where a sentence may go on
        return ends or bool(BULLET.match(line.text))
    if above.baseline - line.baseline > GAP * step * line.size:
        return True
    em = line.size
    is_indented = INDENT * em <= line.left - above.left <= 4 * em
    is_short = above.right - above.left < NEARLY_FULL * width
    return bool(BULLET.match(line.text)) or (ends and (is_indented or is_short))


def _jumps(above: Line, line: Line) -> bool:
    return line.page != above.page or line.baseline > above.baseline + line.size


class _Columns:
    """How wide the column is that a line stands in: the widest line near it says so.

    On a page with few lines those of the other pages count too.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        by_place: dict[tuple[int | None, int], list[Line]] = {}
        for line in lines:
            for page in (line.page, None):
                by_place.setdefault((page, self._place(line)), []).append(line)
        self._count = {key: len(near) for key, near in by_place.items()}
        self._rights: dict[tuple[int | None, int], dict[float, float]] = {}
        for key, near in by_place.items():
            sizes = self._rights.setdefault(key, {})
            for line in near:
                sizes[line.size] = max(sizes.get(line.size, line.right), line.right)

    def width(self, line: Line) -> float:
        """Return the width from where the line begins; larger lines, as titles are, do not count.

        Lines that begin a little further left count, as those around a table do.
        """
        place = self._place(line)
        near: list[tuple[int | None, int]] = [(line.page, at) for at in range(place - 3, place + 2)]
        if sum(self._count.get(key, 0) for key in near) < FEW_LINES:
            near = [(None, at) for _, at in near]
        rights = [
            right
            for key in near
            for size, right in self._rights.get(key, {}).items()
            if size < 1.1 * line.size
        ]
        return max(rights) - line.left

    def is_ended_early(self, line: Line) -> bool:
        """Tell whether a line ends long before its column, as those of tables and verse do."""
        is_cut = line.text.endswith(HYPHEN)
        return not is_cut and line.right - line.left < SHORT * self.width(line)

    @staticmethod
    def _place(line: Line) -> int:
        return round(line.left / COLUMN_STEP)


def _usual_step(lines: Sequence[Line]) -> float:
    """Return the usual distance between lines, in sizes of their font."""
    steps = [
        (above.baseline - line.baseline) / line.size
        for above, line in pairwise(lines)
        if line.page == above.page and line.size == above.size > 0
    ]
    near = [step for step in steps if 0.5 < step < 4]  # lines of one paragraph
    return statistics.median_low(near) if near else 1.2


def _joined(block: Sequence[Line], words: _Words, *, keep_lines: bool) -> str:
    """Return the lines as one text; words that a line's end has cut are whole again."""
    text = block[0].text
    for line in block[1:]:
        if text.endswith("\n"):
            text = text if keep_lines else text.rstrip("\n") + " "
        elif text.endswith(HYPHEN):
            text = text[:-1] + ("-" if words.is_compound(text[:-1], line.text) else "")
        elif not words.is_cut(text, line.text):
            text += " "
        text += line.text
    return text.rstrip("\n").replace(HYPHEN, "-")


class _Words:
    """The words that stand within lines, which tell what the ends of lines have cut.

    Korean text may break within any word, and nothing marks it. Where the text itself does not
    tell, it is taken to break as it does where it tells.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self._within = Counter(word for line in lines for word in line.text.split()[1:-1])
        ends = Counter(
            self._tells_cut(above.text, line.text)
            for above, line in pairwise(lines)
            if _is_within_korean(above.text, line.text)
        )
        self._cuts = ends[True] > ends[False]

    def is_cut(self, above: str, line: str) -> bool:
        """Tell whether a line ends within a Korean word."""
        if not _is_within_korean(above, line):
            return False
        told = self._tells_cut(above, line)
        return self._cuts if told is None else told

    def is_compound(self, above: str, line: str) -> bool:
        """Tell whether a hyphen at a line's end belongs to the word."""
        start, end = _edges(above, line)
        return self._within[f"{start}-{end}"] > self._within[start + end]

    def _tells_cut(self, above: str, line: str) -> bool | None:
        start, end = _edges(above, line)
        whole, parts = self._within[start + end], min(self._within[start], self._within[end])
        return None if whole == parts else whole > parts


def _edges(above: str, line: str) -> tuple[str, str]:
    """Return the last word of a line and the first of the next."""
    return above.rsplit(maxsplit=1)[-1], line.split(maxsplit=1)[0]


def _is_within_korean(above: str, line: str) -> bool:
    return "가" <= above[-1:] <= "힣" and "가" <= line[:1] <= "힣"
