"""Lines at their places on pages into paragraphs, headings and tables.

How far apart, how long and how large lines are says what belongs together. Headings are as in
Markdown, paragraphs are parted by blank lines, rows of tables stay lines.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
SENTENCE_END = (*".!?:;…。！？」』”’\"')",)
BULLET = re.compile(r"[-–•▪◦‣○●□■※*]\s|\(?(\d{1,2}|[가나다라마바사아자차카타파하a-z])[.)]\s")


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


def text_of(lines: Sequence[Line]) -> str:
    """Return the text of lines in the order of reading; there is at least one."""
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
