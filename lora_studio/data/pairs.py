"""Questions and their answers in a document: marked ones, an FAQ's, or headings and their text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

ENOUGH_PAIRS = 3
MOST_OF_A_TEXT = 0.6
SEEN = 200_000
"""Characters after which `looks_like` has seen enough."""
# A way of reading a document that covers this much of it is taken before the ones after it.
ENOUGH_COVERED = 0.5
LONGEST_QUESTION = 300
# No heading is longer, and patterns that look back and forth never meet a longer line.
LONGEST_HEADING = 1000

Kind = Literal["question", "answer", "heading", "text"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer, as a document has them."""

    question: str
    """The question, without its mark and number."""
    answer: str
    """The answer with its paragraphs, lists and code."""
    line: int
    """Line of the question, from 1."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a document, and what it begins."""

    number: int
    text: str
    """The line as it stands."""
    rest: str = ""
    """What follows the mark; of a heading what it says."""
    kind: Kind = "text"
    level: int = 0
    """1 to 6 of a heading, 7 of a bold or marked line, 8 of a numbered one."""


def find(text: str) -> list[Pair]:
    """Return the questions and answers of a document, in order; none where there are none.

    Three readings are tried: marks (`Q:` and `A:`, `질문` and `답변`, bold or numbered or not),
    then headings that ask, then all headings with what stands under them, if none stands empty.
    Marks are meant; the others are taken where they cover half of the document, or else the most.
    """
    lines = _lines(text)
    best: list[Pair] = []
    for reading in (_marked, _asking, _headed):
        found = _unnumbered(reading(lines))
        if _covered(found, lines) >= ENOUGH_COVERED or (found and reading is _marked):
            return found
        best = max(best, found, key=lambda pairs: _covered(pairs, lines))
    return best


def looks_like(text: str) -> bool:
    """Tell whether a document is questions and answers: at least three that cover most of it.

    Plain headings do not count: every chapter has one. Of a long document the beginning is judged.
    """
    seen = text if len(text) <= SEEN else text[: text.rfind("\n", 0, SEEN) + 1]
    lines = _lines(seen)
    return any(
        len(found) >= ENOUGH_PAIRS and _covered(found, lines) >= MOST_OF_A_TEXT
        for found in (_marked(lines), _asking(lines))
    )


# What may stand before a mark: a list's sign, a heading's, a number; then bold or brackets open.
_BEFORE = r"^[ \t]{0,3}(?:>[ \t]?)?(?P<hash>#{1,6}[ \t]+)?(?:[-*+•][ \t]+)?(?:\d{1,4}[.)][ \t]+)?"
_OPEN = r"(?P<bold>\*\*|__)?[\[【<(]?[ \t]{0,4}"
_NUMBER = r"[ \t]{0,4}(?:[#.\-][ \t]?)?\d{0,4}"
_CLOSE = r"[ \t]{0,4}[\]】>)]?(?:\*\*|__)?[ \t]{0,4}"
_WORDS = {
    "question": r"(?:Question|QUESTION|question|질문|문제|물음|질의)",
    "answer": r"(?:Answer|ANSWER|answer|Ans|답변|대답|정답|해답|회신|응답)",
}
_LETTERS = {"question": r"(?:Q|q|문)", "answer": r"(?:A|a|답)"}


def _mark(kind: str) -> re.Pattern[str]:
    """Return what begins a marked line: `Q:`, `Q1.`, `**Q:**`, `[질문]`, `### Question 2`."""
    words, letters = _WORDS[kind], _LETTERS[kind]
    colon = rf"(?:{words}|{letters}){_NUMBER}{_CLOSE}\d{{0,4}}[ \t]?[:：]"
    dot = rf"(?:{words}|{letters.replace('|q', '').replace('|a', '')}){_NUMBER}[.)．](?=[ \t*_]|$)"
    bracketed = rf"(?<=[\[【<(])(?:{words}|{letters}){_NUMBER}[\]】>)]"
    alone = rf"{words}{_NUMBER}(?=[ \t]{{0,4}}(?:\*\*|__)?[ \t]{{0,4}}$)"
    return re.compile(rf"{_BEFORE}{_OPEN}(?:{colon}|{dot}|{bracketed}|{alone}){_CLOSE}")


_MARKS: dict[Kind, re.Pattern[str]] = {
    "question": _mark("question"),
    "answer": _mark("answer"),
}
# Most lines begin nothing, and are told by their first character.
_BEGINS_SOMETHING = re.compile(r"[ \t]{0,3}[#>*\-+•\d_\[【<(QqAa질문물답대정해회응]")
_ANSWER_IN_LINE = re.compile(
    rf"(?<=[ \t])(?:\*\*|__)?(?:{_WORDS['answer']}|A|답)\d{{0,4}}[ \t]?(?:\*\*|__)?[:：]"
)
_OPTION = re.compile(r"^[ \t]{0,3}[Aa][.)][ \t]")
_NEXT_OPTION = re.compile(r"^[ \t]{0,3}[Bb][.)][ \t]")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r"^ {0,3}(=+|-{3,})[ \t]*$")
_BOLD_LINE = re.compile(r"^[ \t]{0,3}(?:\d{1,4}[.)][ \t]+)?(?:\*\*|__)(.+?)(?:\*\*|__)[ \t]*$")
_NUMBERED_LINE = re.compile(r"^[ \t]{0,3}(\d{1,4}[.)][ \t]+.+)$")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_RULE = re.compile(r"^[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|={3,})$")
_ANCHOR = re.compile(r"[ \t]?\{#[^{}]*\}$")
_ASKS = re.compile(
    r"(?:[?？][\"'”’)\]]*|(?:나요|까요|가요|은가|는가|인가|니까|을까|일까|는지)\.?)$"
)
_COUNT = re.compile(
    r"^(?:(\d{1,4})[.)][ \t]+|\((\d{1,4})\)[ \t]*|(\d{1,3}(?:\.\d{1,3})+)\.?[ \t]+)"
)


def _lines(text: str) -> list[_Line]:
    """Return a document's lines with the kinds that headings and marks give them.

    Nothing in fenced code is a mark or a heading.
    """
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines: list[_Line] = []
    fence = ""
    for number, row in enumerate(rows, start=1):
        opened = _FENCE.match(row)
        if opened and (not fence or row.strip().startswith(fence)):
            fence = "" if fence else opened[1]
            lines.append(_Line(number, row))
        else:
            lines.append(_Line(number, row) if fence else _read(number, row))
    for at in range(1, len(lines)):
        under, over = _UNDERLINE.match(lines[at].text), lines[at - 1]
        begins = at == 1 or not lines[at - 2].text.strip()
        if under and over.kind == "text" and over.text.strip() and begins:
            level = 1 if under[1][0] == "=" else 2
            lines[at - 1] = replace(over, kind="heading", level=level, rest=_bare(over.text))
            lines[at] = replace(lines[at], text="")
    return lines


def _read(number: int, row: str) -> _Line:
    if not _BEGINS_SOMETHING.match(row):
        return _Line(number, row)
    is_short = len(row) <= LONGEST_HEADING
    heading = _HEADING.match(row) if is_short else None
    level = len(heading[1]) if heading else 7
    for kind, mark in _MARKS.items():
        found = mark.match(row)
        if found:
            rest = row[found.end() :].strip()
            if found["bold"] and rest.endswith(found["bold"]) and rest.count(found["bold"]) == 1:
                rest = rest[:-2].rstrip()
            return _Line(number, row, rest, kind, level)
    if heading:
        return _Line(number, row, _bare(heading[2]), "heading", level)
    bold = _BOLD_LINE.match(row) if is_short else None
    if bold and "**" not in bold[1] and _ASKS.search(bold[1].strip()):
        return _Line(number, row, _bare(row), "heading", 7)
    numbered = _NUMBERED_LINE.match(row) if len(row) <= LONGEST_QUESTION else None
    if numbered and _ASKS.search(row.strip()):
        return _Line(number, row, _bare(numbered[1]), "heading", 8)
    return _Line(number, row)


def _marked(lines: Sequence[_Line]) -> list[Pair]:
    """Return the pairs of lines that say which is the question and which the answer."""
    pairs: list[Pair] = []
    question: list[_Line] = []
    answer: list[_Line] | None = None

    def close() -> None:
        if question and answer is not None:
            asked = _joined([question[0].rest, *(line.text for line in question[1:])])
            said = _joined([answer[0].rest, *_without_tail(answer[1:])])
            pairs.extend(_pair(asked, said, question[0].number))

    for at, line in enumerate(lines):
        if line.kind == "question":
            close()
            question, answer = [line], None
            inside = _ANSWER_IN_LINE.search(line.rest)
            if inside:
                question = [replace(line, rest=line.rest[: inside.start()])]
                answer = [replace(line, rest=line.rest[inside.end() :].removeprefix("**").strip())]
        elif line.kind == "answer" and question and answer is None and not _is_option(lines, at):
            answer = [line]
        elif answer is not None:
            answer.append(line)
        elif question:
            question.append(line)
    close()
    return pairs


def _is_option(lines: Sequence[_Line], at: int) -> bool:
    """Tell whether `A.` is the first of several choices, not an answer."""
    if not _OPTION.match(lines[at].text):
        return False
    after = next((line.text for line in lines[at + 1 :] if line.text.strip()), "")
    return bool(_NEXT_OPTION.match(after))


def _without_tail(lines: Sequence[_Line]) -> list[str]:
    """Return an answer's lines without headings and rules at its end: they begin what follows."""
    count = len(lines)
    while count and (
        not lines[count - 1].text.strip()
        or _RULE.match(lines[count - 1].text)
        or _is_heading(lines[count - 1])
    ):
        count -= 1
    return [line.text for line in lines[:count]]


def _asking(lines: Sequence[_Line]) -> list[Pair]:
    """Return the pairs of headings that ask and the text under each.

    A marked question is such a heading where no answer of the document is marked.
    """
    is_marked = not any(line.kind == "answer" for line in lines)

    def asks(line: _Line) -> bool:
        if line.kind == "question":
            return is_marked
        return line.kind == "heading" and bool(_ASKS.search(line.rest))

    def ranks(line: _Line, question: _Line | None) -> bool:
        return line.kind == "heading" and question is not None and line.level <= question.level

    return _under(lines, asks=asks, ends=ranks)


def _headed(lines: Sequence[_Line]) -> list[Pair]:
    """Return all headings with their text; none if one has neither text nor headings below."""
    headings = [line for line in lines if _is_heading(line)]
    parents = {
        line.number
        for line, below in pairwise(headings)
        if below.level > line.level and not _text_between(lines, line, below)
    }
    leaves = {line.number for line in headings} - parents
    found = _under(
        lines, asks=lambda line: line.number in leaves, ends=lambda line, _: _is_heading(line)
    )
    return found if len(found) == len(leaves) else []


def _is_heading(line: _Line) -> bool:
    return line.kind == "heading" and line.level < 7


def _text_between(lines: Sequence[_Line], start: _Line, end: _Line) -> bool:
    between = lines[start.number : end.number - 1]
    return any(line.text.strip() and not _RULE.match(line.text) for line in between)


def _under(
    lines: Sequence[_Line],
    *,
    asks: Callable[[_Line], bool],
    ends: Callable[[_Line, _Line | None], bool],
) -> list[Pair]:
    """Return the lines that ask, each with what follows up to the line that ends it."""
    pairs: list[Pair] = []
    question: _Line | None = None
    answer: list[_Line] = []

    def close() -> None:
        if question:
            pairs.extend(_pair(question.rest, _joined(_without_tail(answer)), question.number))

    for line in lines:
        if asks(line):
            close()
            question, answer = line, []
        elif ends(line, question):
            close()
            question, answer = None, []
        elif question:
            answer.append(line)
    close()
    return pairs


def _pair(question: str, answer: str, line: int) -> list[Pair]:
    question, answer = _bare(question), answer.strip("\n").rstrip()
    return [Pair(question, answer, line)] if question and answer.strip() else []


def _joined(rows: Iterable[str]) -> str:
    rows = list(rows)
    first = rows[:1] if rows and rows[0].strip() else []
    return "\n".join([*first, *rows[1:]]).strip("\n").rstrip()


def _bare(text: str) -> str:
    """Return a question without the signs of a heading or of bold letters around it."""
    text = text.strip()
    text = _ANCHOR.sub("", text) if text.endswith("}") else text
    number = _COUNT.match(text)
    start = number.end() if number else 0
    for sign in ("**", "__", "*", "_"):
        inner = text[start:]
        wrapped = inner.startswith(sign) and inner.endswith(sign) and inner.count(sign) == 2
        if wrapped and len(inner) > 2 * len(sign):
            text = text[:start] + inner[len(sign) : -len(sign)].strip()
    return text


def _unnumbered(pairs: list[Pair]) -> list[Pair]:
    """Return pairs without the numbers of their questions, if those do count the questions.

    They count where most questions have one and each is larger than the one before, or 1 again.
    """
    found = [_COUNT.match(pair.question) for pair in pairs]
    numbers = [
        tuple(int(part) for part in next(filter(None, match.groups())).split("."))
        for match in found
        if match
    ]
    rising = all(after > before or after[-1] == 1 for before, after in pairwise(numbers))
    small = bool(numbers) and numbers[0][0] <= max(len(pairs), 1)
    lone_decimal = len(numbers) == 1 and len(numbers[0]) > 1
    if not rising or not small or lone_decimal or len(numbers) * 2 <= len(pairs):
        return pairs
    return [
        replace(pair, question=pair.question[match.end() :].strip() or pair.question)
        if match
        else pair
        for pair, match in zip(pairs, found, strict=True)
    ]


def _covered(pairs: Iterable[Pair], lines: Iterable[_Line]) -> float:
    """Return the share of a text's characters that pairs hold, marks and white space left out."""
    held = sum(_size(pair.question) + _size(pair.answer) for pair in pairs)
    whole = sum(_size(line.text if line.kind == "text" else line.rest) for line in lines)
    return held / max(whole, 1)


def _size(text: str) -> int:
    return sum(map(len, text.split()))
