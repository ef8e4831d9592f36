"""Rows that stand in the data before, word for word or nearly."""

from __future__ import annotations

import re
import unicodedata
from array import array
from typing import Any

WHOLE = (1 << 64) - 1
FIRST_SLOTS = 1 << 10


class Seen:
    """A set of 64-bit numbers in at most 32 bytes each, 48 while it grows.

    Open addressing with linear probing in one array that is never more than half full. A set of
    Python's takes 60 to 100 bytes for each number.
    """

    def __init__(self) -> None:
        self._slots = array("Q", [0]) * FIRST_SLOTS
        self._count = 0

    def add(self, number: int) -> bool:
        """Add a number, and return whether it is new; of a longer one the low 64 bits count."""
        number = number & WHOLE or 1
        at = _slot(self._slots, number)
        if self._slots[at]:
            return False
        self._slots[at] = number
        self._count += 1
        if self._count * 2 > len(self._slots):
            self._grow()
        return True

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Bytes that the numbers take."""
        return len(self._slots) * self._slots.itemsize

    def _grow(self) -> None:
        larger = array("Q", [0]) * (len(self._slots) * 2)
        for number in self._slots:
            if number:
                larger[_slot(larger, number)] = number
        self._slots = larger


def _slot(slots: array[int], number: int) -> int:
    """Return where a number stands, or the free place where it belongs."""
    last = len(slots) - 1
    at = number & last
    while (held := slots[at]) and held != number:
        at = (at + 1) & last
    return at


def identity(text: str, roles: tuple[str, ...]) -> int:
    """Return a number for a row's words; white space and the way accents are stored do not count.

    Two of five million different rows share a number with a chance of one in a million. Numbers are
    other ones in another process.
    """
    words = text.replace("\n", " ")
    # Printable means that there is no other white space than spaces.
    if "  " in words or not words.isprintable():
        words = " ".join(words.split())
    if not words.isascii():
        words = unicodedata.normalize("NFC", words)
    return hash((words.strip(), roles))


MOST_ROWS = 30_000
MOST_CHARACTERS = 30_000_000
MOST_OF_ONE = 20_000
FEWEST_WORDS = 8
FEWEST_EAST_ASIAN = 24
# Below so many words, three in a row say too little.
SHORT_WORDS = 30
SHINGLE_WORDS = 3
SHINGLE_CHARACTERS = 5
THRESHOLD = 0.85
SIGNATURE = 128
# 16 bands of 8: pairs alike to 0.85 are compared with a chance of 0.99.
BANDS = 16
# More candidates than so many are only there where one long text has many short answers.
MOST_ALIKE = 64

WORD = re.compile(r"\w+")
EAST_ASIAN = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7a3]")


class NearRepeats:
    """Finds texts that share most of their word triples with an earlier one.

    MinHash estimates the Jaccard similarity of two sets (Broder 1997), bands of the signatures
    choose what is compared at all (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4).
    Each text is compared with those that are like no earlier one, so that it takes linear time
    where all are alike.

    Only the first 30,000 rows are judged, or fewer where they are long, by their first 20,000
    characters each: at most 8 seconds and 40 MB. Texts under eight words are not judged.

    Args:
        seed: Same seed, same estimates.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rows = 0
        self._characters = 0
        self._bands: Any = None
        self._texts: list[tuple[str, int | None, Any]] = []

    @property
    def is_over(self) -> bool:
        """Whether no more rows are judged."""
        return self._rows >= MOST_ROWS or self._characters >= MOST_CHARACTERS

    @property
    def rows(self) -> int:
        """Rows looked at so far."""
        return self._rows

    def earlier(self, text: str, answer: str, name: str) -> str | None:
        """Return the name of an earlier text like this one; where there is none, remember it.

        Args:
            text: What is compared.
            answer: A short answer must be the same: two questions on one long text are no repeat.
            name: What to call this text.
        """
        text = text[:MOST_OF_ONE]
        self._rows += 1
        self._characters += len(text)
        pieces = shingles(text)
        if not pieces:
            return None
        import rensa

        if self._bands is None:
            self._bands = rensa.RMinHashLSH(THRESHOLD, SIGNATURE, BANDS)
        signature = rensa.RMinHash(SIGNATURE, self._seed)
        signature.update(pieces)
        short = _short_answer(answer)
        near = sorted(self._bands.query(signature))
        for at in near:
            name_there, answer_there, signature_there = self._texts[at]
            if answer_there == short and signature_there.jaccard(signature) >= THRESHOLD:
                return name_there
        if len(near) < MOST_ALIKE:
            self._bands.insert(len(self._texts), signature)
            self._texts.append((name, short, signature))
        return None


def _short_answer(answer: str) -> int | None:
    words = WORD.findall(answer[:MOST_OF_ONE].lower())
    return hash(tuple(words)) if len(words) < FEWEST_WORDS else None


def shingles(text: str) -> list[str]:
    """Return a text's word triples, or its runs of five characters; none if it is too short.

    Characters are taken where it has under thirty words, and for Korean, Japanese and Chinese,
    whose words change their ends or have no space between them.
    """
    words = WORD.findall(text.lower())
    solid = "".join(words)
    east_asian = len(EAST_ASIAN.findall(solid[:400])) * 4 > len(solid[:400])
    if len(words) < FEWEST_WORDS and not (east_asian and len(solid) >= FEWEST_EAST_ASIAN):
        return []
    if east_asian or len(words) < SHORT_WORDS:
        last = len(solid) - SHINGLE_CHARACTERS + 1
        return [solid[at : at + SHINGLE_CHARACTERS] for at in range(max(last, 1))]
    return list(map(" ".join, zip(words, words[1:], words[2:], strict=False)))
