"""Which column of a table is the question, which the answer: names people give them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lora_studio.recipe import CLASSIFICATION, FormatName

QUESTION, CONTEXT, ANSWER, SYSTEM, TURNS, TEXT, LABEL = (
    "question",
    "context",
    "answer",
    "system",
    "turns",
    "text",
    "label",
)
PAIRS: tuple[FormatName, ...] = ("alpaca", "prompt_completion", "question_answer")
"""Formats of one question and one answer a row, in the order they are tried."""

_ANSWERS = (
    *("output", "outputs", "response", "responses", "answer", "answers", "completion", "reply"),
    *("target", "output text", "target text", "answer text", "response text", "bot response"),
    *("model response", "assistant response", "chosen response", "solution", "correct answer"),
    *("best answer", "final answer", "gold answer", "assistant", "chatbot", "bot", "gpt", "tgt"),
    *("chosen", "summary", "highlights"),
    *("출력", "응답", "답변", "답", "정답", "대답", "해답", "회신", "답변 내용", "답변 내역"),
    *("응답 내용", "모범 답안", "풀이", "챗봇", "상담사", "번역", "번역문", "요약", "요약문"),
)
_SYSTEMS = (
    *("system", "system prompt", "system message", "system instruction", "시스템"),
    *("시스템 프롬프트", "시스템 메시지"),
)
_CONTEXTS = ("context", "passage", "맥락", "문맥", "지문", "배경", "참고", "참고 자료")
# Columns that speak about a row; a guess by content passes them over.
_ABOUT = (
    *("id", "idx", "index", "no", "num", "number", "uuid", "guid", "key", "hash", "url", "uri"),
    *("link", "href", "date", "time", "timestamp", "created", "created at", "updated"),
    *("updated at", "lang", "language", "locale", "category", "type", "kind", "label", "labels"),
    *("tag", "tags", "split", "source", "origin", "author", "score", "rating", "level"),
    *("difficulty", "domain", "dataset", "license", "model", "file", "filename", "path"),
    *("status", "rejected", "번호", "순번", "연번", "구분", "분류", "대분류", "중분류", "소분류"),
    *(
        "카테고리",
        "날짜",
        "일자",
        "작성일",
        "등록일",
        "출처",
        "링크",
        "주소",
        "언어",
        "유형",
        "종류",
    ),
    *("난이도", "아이디", "작성자", "비고", "점수", "파일명", "라벨", "태그"),
)


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
# OpenAI (messages; prompt, completion), ShareGPT (conversations), GSM8K and OpenOrca (question),
# SQuAD (question, context, answers), UltraFeedback (prompt, chosen), XSum (document, summary).
LAYOUTS: dict[FormatName, Layout] = {
    "messages": Layout(
        expected="messages",
        needed={TURNS: ("messages", "message", "chat messages", "메시지", "메세지")},
    ),
    "conversations": Layout(
        expected="conversations",
        needed={
            TURNS: (
                *("conversations", "conversation", "dialogues", "dialogue", "dialogs", "dialog"),
                *("chats", "chat", "turns", "대화", "대화 내용", "대화문"),
            )
        },
    ),
    "alpaca": Layout(
        expected="instruction, (input), output",
        needed={
            QUESTION: (
                *("instruction", "instructions", "instruct", "지시문", "지시", "지시 사항"),
                *("명령", "명령어", "명령문"),
            ),
            ANSWER: _ANSWERS,
        },
        optional={CONTEXT: ("input", "입력", "입력문", *_CONTEXTS), SYSTEM: _SYSTEMS},
    ),
    "prompt_completion": Layout(
        expected="prompt, completion",
        needed={
            QUESTION: ("prompt", "prompts", "user prompt", "프롬프트"),
            ANSWER: ("completion", "완성", "완성문", *_ANSWERS),
        },
    ),
    "question_answer": Layout(
        expected="question, answer",
        needed={
            QUESTION: (
                *("question", "questions", "query", "q", "question text", "problem", "ask"),
                *("inquiry", "request", "user", "human", "user input", "user message"),
                *("질문", "물음", "문제", "질의", "문의", "문", "질문 내용", "질의 내용"),
                *("문의 내용", "문의 사항", "사용자", "사용자 질문", "유저", "고객", "손님"),
                *("input", "input text", "source", "source text", "src", "입력", "입력문"),
                *("원문", "message", "article", "document", "dialogue"),
            ),
            ANSWER: ("answer", "a", "정답", "대답", *_ANSWERS),
        },
        optional={CONTEXT: _CONTEXTS, SYSTEM: _SYSTEMS},
    ),
    "text": Layout(
        expected="text",
        needed={
            TEXT: (
                *("text", "content", "document", "body", "article", "passage", "story"),
                *("page content", "raw content", "markdown", "code", "sentence", "lyrics"),
                *("본문", "텍스트", "내용", "문서", "글", "원고", "문장", "기사", "가사"),
            )
        },
        optional={},
    ),
    # Only where it is chosen. Names from: IMDb, AG News (text, label), GLUE (sentence), CLINC
    # (intent), GoEmotions and their Korean like. A class's name goes before its number.
    CLASSIFICATION: Layout(
        expected="text, label",
        needed={
            TEXT: (
                *("text", "sentence", "review", "utterance", "document", "comment", "tweet"),
                *("content", "body", "message", "article", "review text", "review body"),
                *("comment text", "description", "passage", "abstract", "headline", "title"),
                *("텍스트", "본문", "내용", "문장", "리뷰", "후기", "댓글", "발화", "발화문"),
                *("문서", "글", "기사", "민원", "민원 내용", "설명", "제목"),
            ),
            LABEL: (
                *("label text", "label name", "label", "labels", "class name", "class", "classes"),
                *("category", "categories", "sentiment", "emotion", "intent", "topic", "target"),
                *("tag", "genre", "type", "kind", "rating", "stars", "score", "y"),
                *("라벨", "레이블", "분류", "클래스", "카테고리", "감정", "감성", "의도", "주제"),
                *("범주", "유형", "종류", "구분", "정답", "등급", "평점", "별점"),
            ),
        },
        optional={},
    ),
}
GUESSED: tuple[FormatName, ...] = tuple(name for name in LAYOUTS if name != CLASSIFICATION)
"""Formats that columns alone may tell."""


def match(format_name: FormatName, columns: Iterable[str]) -> dict[str, str] | None:
    """Return which column holds which part, or None where a needed part is missing.

    Names are compared without case, spaces, hyphens, remarks in brackets, and Unicode form (a Mac
    writes Hangul apart). A table of a single column is `text` whatever it is called.
    """
    layout = LAYOUTS[format_name]
    actual = _known_as(columns)
    parts = _found(layout.needed, actual)
    if format_name == "text" and not parts and len(set(actual.values())) == 1:
        parts = {TEXT: next(iter(actual.values()))}
    if len(set(parts.values())) < len(layout.needed):
        return None
    left = {name: column for name, column in actual.items() if column not in parts.values()}
    return parts | _found(layout.optional, left)


def guess(part: str, columns: Iterable[str], among: Iterable[FormatName] = PAIRS) -> str | None:
    """Return the column whose name says that it is `part` of one of these formats."""
    actual = _known_as(columns)
    for name in among:
        layout = LAYOUTS[name]
        choices = {**layout.needed, **layout.optional}.get(part, ())
        found = _found({part: choices}, actual)
        if found:
            return found[part]
    return None


def find(name: str, columns: Iterable[str]) -> str | None:
    """Return the column called `name`, exactly or else but for case, spaces and Unicode form."""
    columns = list(columns)
    return name if name in columns else _known_as(columns).get(_plain(name))


def is_about(column: str) -> bool:
    """Tell whether a column's name says that it is a number, a label or an origin."""
    plain = _plain(column)
    return bool(plain in _ABOUT_PLAIN or plain.startswith("unnamed") or _IDENTIFIER.search(column))


def _known_as(columns: Iterable[str]) -> dict[str, str]:
    """Return columns by their plain names; a name without its remark in brackets comes second."""
    columns = [str(column) for column in columns]
    actual: dict[str, str] = {}
    for column in columns:
        actual.setdefault(_plain(column), column)
    for column in columns:
        actual.setdefault(_plain(_REMARK.sub("", column)), column)
    return actual


def _found(names: Mapping[str, Sequence[str]], actual: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for part, choices in names.items():
        plain = map(_plain, choices)
        column = next((actual[name] for name in plain if name in actual), None)
        if column is not None:
            found[part] = column
    return found


_REMARK = re.compile(r"[(\[（【][^)\]）】]*[)\]）】]")
_IDENTIFIER = re.compile(r"[\s_\-](?:id|ID)$|[a-z](?:Id|ID)$")
_NO_NAME = re.compile(r"[\s_\-\ufeff\u200b]+")


def _plain(column: str) -> str:
    name = unicodedata.normalize("NFKC", column).casefold()
    return _NO_NAME.sub("", name).strip("\"'`*#.:?<>") or name.strip()


_ABOUT_PLAIN = frozenset(map(_plain, _ABOUT))
