"""Which column of a table is the question, which the answer: names people give them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lora_studio.recipe import FormatName

QUESTION, CONTEXT, ANSWER, SYSTEM, TURNS, TEXT = (
    "question",
    "context",
    "answer",
    "system",
    "turns",
    "text",
)

_ANSWERS = (
    "output",
    "response",
    "answer",
    "completion",
    "reply",
    "target",
    "출력",
    "응답",
    "답변",
    "답",
)
_SYSTEMS = ("system", "system_prompt", "시스템")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns one format consists of."""

    expected: str
    """The columns as an error names them."""
    needed: Mapping[str, Sequence[str]]
    """Names each part may have; every part must be there."""
    optional: Mapping[str, Sequence[str]] = field(default_factory=lambda: {SYSTEM: _SYSTEMS})
    """Names of parts that are used where present."""


# In the order they are tried. Names from: Alpaca and Dolly (instruction, context, response),
# OpenAI (messages; prompt, completion), ShareGPT (conversations), GSM8K and OpenOrca (question).
LAYOUTS: dict[FormatName, Layout] = {
    "messages": Layout(
        expected="messages",
        needed={TURNS: ("messages", "message", "메시지")},
    ),
    "conversations": Layout(
        expected="conversations",
        needed={TURNS: ("conversations", "conversation", "dialogue", "dialog", "chat", "대화")},
    ),
    "alpaca": Layout(
        expected="instruction, (input), output",
        needed={
            QUESTION: ("instruction", "지시문", "지시", "명령"),
            ANSWER: ("output", *_ANSWERS),
        },
        optional={CONTEXT: ("input", "context", "입력"), SYSTEM: _SYSTEMS},
    ),
    "prompt_completion": Layout(
        expected="prompt, completion",
        needed={QUESTION: ("prompt", "프롬프트"), ANSWER: ("completion", "완성", *_ANSWERS)},
    ),
    "question_answer": Layout(
        expected="question, answer",
        needed={
            QUESTION: ("question", "query", "q", "질문", "물음", "문제", "input", "source", "입력"),
            ANSWER: ("answer", "a", "정답", "대답", *_ANSWERS),
        },
    ),
    "text": Layout(
        expected="text",
        needed={TEXT: ("text", "content", "document", "body", "본문", "텍스트", "내용", "문서")},
        optional={},
    ),
}


def match(format_name: FormatName, columns: Iterable[str]) -> dict[str, str] | None:
    """Return which column holds which part, or None where a needed part is missing.

    Names are compared without case, outer spaces and Unicode form (a Mac writes Hangul apart).
    A table of a single column is `text` whatever it is called.
    """
    layout = LAYOUTS[format_name]
    actual: dict[str, str] = {}
    for column in columns:
        actual.setdefault(_plain(column), column)
    parts = _found(layout.needed, actual)
    if format_name == "text" and not parts and len(actual) == 1:
        parts = {TEXT: next(iter(actual.values()))}
    if len(set(parts.values())) < len(layout.needed):
        return None
    return parts | _found(layout.optional, actual)


def _found(names: Mapping[str, Sequence[str]], actual: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for part, choices in names.items():
        column = next((actual[name] for name in choices if name in actual), None)
        if column is not None:
            found[part] = column
    return found


def _plain(column: str) -> str:
    return unicodedata.normalize("NFKC", column).strip().casefold()
