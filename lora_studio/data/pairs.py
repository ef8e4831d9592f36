"""Questions and their answers in a document: marked ones, an FAQ's, or headings and their text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lora_studio.data.lines import (
    ANSWER_IN_LINE,
    ASKS,
    COUNT,
    NEXT_OPTION,
    OPTION,
    RULE,
    Line,
    bare,
    read_lines,
)

ENOUGH_PAIRS = 3
MOST_OF_A_TEXT = 0.6
SEEN = 200_000
"""Characters after which `looks_like` has seen enough."""
# A way of reading a document that covers this much of it is taken before the ones after it.
ENOUGH_COVERED = 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer, as a document has them."""

    question: str
    """The question, without its mark and number."""
    answer: str
    """The answer with its paragraphs, lists and code."""
    line: int
    """Line of the question, from 1."""


def find(text: str) -> list[Pair]:
    """Return the questions and answers of a document, in order; none where there are none.

    Three readings are tried: marks (`Q:` and `A:`, `질문` and `답변`, bold or numbered or not),
    then headings that ask, then all headings with what stands under them, if none stands empty.
    Marks are meant; the others are taken where they cover half of the document, or else the most.
    """
    lines = read_lines(text)
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
    lines = read_lines(seen)
    return any(
        len(found) >= ENOUGH_PAIRS and _covered(found, lines) >= MOST_OF_A_TEXT
        for found in (_marked(lines), _asking(lines))
    )


def _marked(lines: Sequence[Line]) -> list[Pair]:
    """Return the pairs of lines that say which is the question and which the answer."""
    pairs: list[Pair] = []
    question: list[Line] = []
    answer: list[Line] | None = None

    def close() -> None:
        if question and answer is not None:
            asked = _joined([question[0].rest, *(line.text for line in question[1:])])
            said = _joined([answer[0].rest, *_without_tail(answer[1:])])
            pairs.extend(_pair(asked, said, question[0].number))

    for at, line in enumerate(lines):
        if line.kind == "question":
            close()
            question, answer = [line], None
            inside = ANSWER_IN_LINE.search(line.rest)
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


def _is_option(lines: Sequence[Line], at: int) -> bool:
    """Tell whether `A.` is the first of several choices, not an answer."""
    if not OPTION.match(lines[at].text):
        return False
    after = next((line.text for line in lines[at + 1 :] if line.text.strip()), "")
    return bool(NEXT_OPTION.match(after))


def _without_tail(lines: Sequence[Line]) -> list[str]:
    """Return an answer's lines without headings and rules at its end: they begin what follows."""
    count = len(lines)
    while count and (
        not lines[count - 1].text.strip()
        or RULE.match(lines[count - 1].text)
        or lines[count - 1].is_heading
    ):
        count -= 1
    return [line.text for line in lines[:count]]


def _asking(lines: Sequence[Line]) -> list[Pair]:
    """Return the pairs of headings that ask and the text under each.

    A marked question is such a heading where no answer of the document is marked.
    """
    is_marked = not any(line.kind == "answer" for line in lines)

    def asks(line: Line) -> bool:
        if line.kind == "question":
            return is_marked
        return line.kind == "heading" and bool(ASKS.search(line.rest))

    def ranks(line: Line, question: Line | None) -> bool:
        return line.kind == "heading" and question is not None and line.level <= question.level

    return _under(lines, asks=asks, ends=ranks)


def _headed(lines: Sequence[Line]) -> list[Pair]:
    """Return all headings with their text; none if one has neither text nor headings below."""
    headings = [line for line in lines if line.is_heading]
    parents = {
        line.number
        for line, below in pairwise(headings)
        if below.level > line.level and not _text_between(lines, line, below)
    }
    leaves = {line.number for line in headings} - parents
    found = _under(
        lines, asks=lambda line: line.number in leaves, ends=lambda line, _: line.is_heading
    )
    return found if len(found) == len(leaves) else []


def _text_between(lines: Sequence[Line], start: Line, end: Line) -> bool:
    between = lines[start.number : end.number - 1]
    return any(line.text.strip() and not RULE.match(line.text) for line in between)


def _under(
    lines: Sequence[Line],
    *,
    asks: Callable[[Line], bool],
    ends: Callable[[Line, Line | None], bool],
) -> list[Pair]:
    """Return the lines that ask, each with what follows up to the line that ends it."""
    pairs: list[Pair] = []
    question: Line | None = None
    answer: list[Line] = []

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
    question, answer = bare(question), answer.strip("\n").rstrip()
    return [Pair(question, answer, line)] if question and answer.strip() else []


def _joined(rows: Iterable[str]) -> str:
    rows = list(rows)
    first = rows[:1] if rows and rows[0].strip() else []
    return "\n".join([*first, *rows[1:]]).strip("\n").rstrip()


def _unnumbered(pairs: list[Pair]) -> list[Pair]:
    """Return pairs without the numbers of their questions, if those do count the questions.

    They count where most questions have one and each is larger than the one before, or 1 again.
    """
    found = [COUNT.match(pair.question) for pair in pairs]
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


def _covered(pairs: Iterable[Pair], lines: Iterable[Line]) -> float:
    """Return the share of a text's characters that pairs hold, marks and white space left out."""
    held = sum(_size(pair.question) + _size(pair.answer) for pair in pairs)
    whole = sum(_size(line.text if line.kind == "text" else line.rest) for line in lines)
    return held / max(whole, 1)


def _size(text: str) -> int:
    return sum(map(len, text.split()))
