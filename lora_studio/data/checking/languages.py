"""Which language the answers are in, and which answers are in another than most.

py3langid reads 139 languages from a model of its own, without network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lora_studio.data.checking.findings import LISTED_ROWS, Findings, Place

CHECK = "languages"
MOST_ROWS = 20_000
HEAD_ROWS = 200
SHARE = 0.6
FEWEST_LETTERS = 20
READ_CHARACTERS = 150
# Below it the model guesses: code, lists of names, two languages in one answer.
CONFIDENT = 0.8

NO_LETTERS = re.compile(r"[\W\d_]+")
# Scripts that write one language only tell it at once; the model takes 0.2 ms for it.
HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]+")
KANA = re.compile("[\u3041-\u30ff]+")
KANA_SHARE = 0.2
# Varieties that the model confuses in a short text count as one language.
KIN = {
    "arz": "ar",
    "ary": "ar",
    "bs": "hr",
    "sr": "hr",
    "ms": "id",
    "nn": "no",
    "wuu": "zh",
    "yue": "zh",
}
UNKNOWN = {"und", "zxx"}


@dataclass(slots=True)
class _Rows:
    count: int = 0
    first: list[tuple[int, Place]] = field(default_factory=list)
    example: str = ""


class Languages:
    """Counts the languages of answers.

    The main language is the most frequent one if it is that of at least 60 % of the answers. Where
    rows in others are to be skipped, it must be known before the end: it is that of the first 200
    answers that could be judged, or of those given to `expect`, and rows before that are not
    skipped. Then all rows are judged; else only the first 20,000, in at most 4 seconds.

    Args:
        skips: Whether rows in other languages are skipped.
    """

    def __init__(self, *, skips: bool) -> None:
        self._skips = skips
        self._main: str | None = None
        self._rows: dict[str, _Rows] = {}
        self._judged = 0
        self._looked_at = 0
        self._is_over = False

    def expect(self, answers: Iterable[str]) -> None:
        """Learn the main language from answers at the head of the data."""
        found: Counter[str] = Counter()
        for answer in answers:
            language = recognise(answer)
            if language is not None:
                found[language] += 1
            if found.total() >= HEAD_ROWS:
                break
        self._main = _most(found)

    def is_other(self, answer: str, place: Place) -> bool:
        """Count an answer's language; return whether it is known to be another than the main."""
        if self._looked_at >= MOST_ROWS and not self._skips:
            self._is_over = True
            return False
        self._looked_at += 1
        language = recognise(answer)
        if language is None:
            return False
        rows = self._rows.setdefault(language, _Rows(example=f"{language}: {answer[:400]}"))
        rows.count += 1
        if len(rows.first) < LISTED_ROWS:
            rows.first.append((self._judged, place))
        self._judged += 1
        if self._skips and self._main is None and self._judged == HEAD_ROWS:
            self._main = self._most_of_all()
        return self._main is not None and language != self._main

    def report(self, findings: Findings) -> None:
        """Add the rows in other languages than the main one, and let go of the model."""
        _identifier.cache_clear()
        main = self._main or self._most_of_all()
        others = [rows for language, rows in self._rows.items() if language != main]
        if main is None or not others:
            return
        places = sorted(place for rows in others for place in rows.first)
        first = min(others, key=lambda rows: rows.first[0])
        count = sum(rows.count for rows in others)
        findings.add_many(CHECK, count, rows=(place for _, place in places), example=first.example)
        if self._is_over:
            findings.limit(CHECK, self._looked_at)

    def _most_of_all(self) -> str | None:
        return _most(Counter({language: rows.count for language, rows in self._rows.items()}))


def recognise(text: str) -> str | None:
    """Return the code of a text's language, or None where it is too short or cannot be told."""
    start = text[:READ_CHARACTERS]
    letters = NO_LETTERS.sub("", start)
    if len(letters) < FEWEST_LETTERS:
        return None
    if len(HANGUL.sub("", letters)) * 2 < len(letters):
        return "ko"
    if len(KANA.sub("", letters)) <= len(letters) * (1 - KANA_SHARE):
        return "ja"
    language, confidence = _identifier().classify(start.encode("utf-8", "replace"))
    if language in UNKNOWN or confidence < CONFIDENT:
        return None
    return KIN.get(language, language)


@cache
def _identifier() -> Any:
    """Load the model once: 0.5 seconds and 100 MB."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _most(found: Counter[str]) -> str | None:
    if not found:
        return None
    language, count = found.most_common(1)[0]
    return language if count >= SHARE * found.total() else None
