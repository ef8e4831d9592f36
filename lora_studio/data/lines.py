"""Lines of a document and what they begin: marked questions and answers, headings, or nothing."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Literal

LONGEST_QUESTION = 300
# No heading is longer, and patterns that look back and forth never meet a longer line.
LONGEST_HEADING = 1000

Kind = Literal["question", "answer", "heading", "text"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a document, and what it begins."""

    number: int
    text: str
    """The line as it stands."""
    rest: str = ""
    """What follows the mark; of a heading what it says."""
    kind: Kind = "text"
    level: int = 0
    """1 to 6 of a heading, 7 of a bold or marked line, 8 of a numbered one."""

    @property
    def is_heading(self) -> bool:
        """Whether it is a heading, not only a line that asks."""
        return self.kind == "heading" and self.level < 7


def _either(*words: str) -> str:
    """Return a pattern of words; of Hangul also as a Mac may write it, taken apart (NFD)."""
    forms = (form for word in words for form in (word, unicodedata.normalize("NFD", word)))
    return f"(?:{'|'.join(dict.fromkeys(forms))})"


# What may stand before a mark: a list's sign, a heading's, a number; then bold or brackets open.
_BEFORE = r"^[ \t]{0,3}(?:>[ \t]?)?(?P<hash>#{1,6}[ \t]+)?(?:[-*+•][ \t]+)?(?:\d{1,4}[.)][ \t]+)?"
_OPEN = r"(?P<bold>\*\*|__)?[\[【<(]?[ \t]{0,4}"
_NUMBER = r"[ \t]{0,4}(?:[#.\-][ \t]?)?\d{0,4}"
_CLOSE = r"[ \t]{0,4}[\]】>)]?(?:\*\*|__)?[ \t]{0,4}"
_WORDS = {
    "question": _either("Question", "QUESTION", "question", "질문", "문제", "물음", "질의"),
    "answer": _either(
        *("Answer", "ANSWER", "answer", "Ans"), *("답변", "대답", "정답", "해답", "회신", "응답")
    ),
}
_LETTERS = {"question": _either("Q", "문"), "answer": _either("A", "답")}
_SMALL_LETTERS = {"question": "q", "answer": "a"}


def _mark(kind: str) -> re.Pattern[str]:
    """Return what begins a marked line: `Q:`, `Q1.`, `**Q:**`, `[질문]`, `### Question 2`."""
    words, large = _WORDS[kind], rf"(?:{_WORDS[kind]}|{_LETTERS[kind]})"
    any_case = rf"(?:{large}|{_SMALL_LETTERS[kind]})"
    colon = rf"{any_case}{_NUMBER}{_CLOSE}\d{{0,4}}[ \t]?[:：]"
    dot = rf"{large}{_NUMBER}[.)．](?=[ \t*_]|$)"
    bracketed = rf"(?<=[\[【<(]){any_case}{_NUMBER}[\]】>)]"
    alone = rf"{words}{_NUMBER}(?=[ \t]{{0,4}}(?:\*\*|__)?[ \t]{{0,4}}$)"
    return re.compile(rf"{_BEFORE}{_OPEN}(?:{colon}|{dot}|{bracketed}|{alone}){_CLOSE}")


_MARKS: dict[Kind, re.Pattern[str]] = {
    "question": _mark("question"),
    "answer": _mark("answer"),
}
# Most lines begin nothing, and are told by their first character; U+1100 to U+1112 begin the
# syllables of Hangul that is taken apart.
_BEGINS_SOMETHING = re.compile(r"[ \t]{0,3}[#>*\-+•\d_\[【<(QqAa질문물답대정해회응\u1100-\u1112]")
ANSWER_IN_LINE = re.compile(
    rf"(?<=[ \t])(?:\*\*|__)?(?:{_WORDS['answer']}|{_LETTERS['answer']})\d{{0,4}}[ \t]?"
    r"(?:\*\*|__)?[:：]"
)
OPTION = re.compile(r"^[ \t]{0,3}[Aa][.)][ \t]")
NEXT_OPTION = re.compile(r"^[ \t]{0,3}[Bb][.)][ \t]")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-{3,})[ \t]*$")
_BOLD_LINE = re.compile(r"^[ \t]{0,3}(?:\d{1,4}[.)][ \t]+)?(?:\*\*|__)(.+?)(?:\*\*|__)[ \t]*$")
_NUMBERED_LINE = re.compile(r"^[ \t]{0,3}(\d{1,4}[.)][ \t]+.+)$")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
RULE = re.compile(r"^[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|={3,})$")
_ANCHOR = re.compile(r"[ \t]?\{#[^{}]*\}$")
_ENDINGS = _either(
    *("나요", "까요", "가요", "은가", "는가", "인가", "니까", "을까", "일까", "는지")
)
ASKS = re.compile(rf"(?:[?？][\"'”’)\]]*|{_ENDINGS}\.?)$")
COUNT = re.compile(r"^(?:(\d{1,4})[.)][ \t]+|\((\d{1,4})\)[ \t]*|(\d{1,3}(?:\.\d{1,3})+)\.?[ \t]+)")


def read_lines(text: str) -> list[Line]:
    """Return a document's lines with the kinds that headings and marks give them.

    Nothing in fenced code is a mark or a heading.
    """
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines: list[Line] = []
    fence = ""
    for number, row in enumerate(rows, start=1):
        opened = _FENCE.match(row)
        if opened and (not fence or row.strip().startswith(fence)):
            fence = "" if fence else opened[1]
            lines.append(Line(number, row))
        else:
            lines.append(Line(number, row) if fence else _read(number, row))
    for at in range(1, len(lines)):
        under, over = _UNDERLINE.match(lines[at].text), lines[at - 1]
        begins = at == 1 or not lines[at - 2].text.strip()
        if under and over.kind == "text" and over.text.strip() and begins:
            level = 1 if under[1][0] == "=" else 2
            lines[at - 1] = replace(over, kind="heading", level=level, rest=bare(over.text))
            lines[at] = replace(lines[at], text="")
    return lines


def _read(number: int, row: str) -> Line:
    if not _BEGINS_SOMETHING.match(row):
        return Line(number, row)
    is_short = len(row) <= LONGEST_HEADING
    heading = _HEADING.match(row) if is_short else None
    level = len(heading[1]) if heading else 7
    for kind, mark in _MARKS.items():
        found = mark.match(row)
        if found:
            rest = row[found.end() :].strip()
            if found["bold"] and rest.endswith(found["bold"]) and rest.count(found["bold"]) == 1:
                rest = rest[:-2].rstrip()
            return Line(number, row, rest, kind, level)
    if heading:
        return Line(number, row, bare(heading[2]), "heading", level)
    bold = _BOLD_LINE.match(row) if is_short else None
    if bold and "**" not in bold[1] and ASKS.search(bold[1].strip()):
        return Line(number, row, bare(row), "heading", 7)
    numbered = _NUMBERED_LINE.match(row) if len(row) <= LONGEST_QUESTION else None
    if numbered and ASKS.search(row.strip()):
        return Line(number, row, bare(numbered[1]), "heading", 8)
    return Line(number, row)


def bare(text: str) -> str:
    """Return a question without the signs of a heading or of bold letters around it."""
    text = text.strip()
    text = _ANCHOR.sub("", text) if text.endswith("}") else text
    number = COUNT.match(text)
    start = number.end() if number else 0
    for sign in ("**", "__", "*", "_"):
        inner = text[start:]
        wrapped = inner.startswith(sign) and inner.endswith(sign) and inner.count(sign) == 2
        if wrapped and len(inner) > 2 * len(sign):
            text = text[:start] + inner[len(sign) : -len(sign)].strip()
    return text
