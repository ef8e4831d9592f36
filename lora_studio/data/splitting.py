"""What is held out to measure on, and how a long text becomes rows.

Holding out comes before cutting, so that no held-out row shares a document with a trained one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

# From this many documents on, at least one is held out; below it a text is split by paragraphs.
ENOUGH_DOCUMENTS = 10
ENOUGH_PARAGRAPHS = 10

PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n\s*")
LINE_BREAK = re.compile(r"\n\s*")
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


def hold_out(documents: Sequence[str], *, fraction: float, seed: int) -> set[int]:
    """Choose the rows to hold out; rows of one document stay together.

    Where there are fewer than ten documents but at least ten rows (one question with many answers),
    each row counts as a document of its own.

    Args:
        documents: Each row's document.
        fraction: Share of documents to hold out, 0 to 0.5.
        seed: Same seed and documents, same choice.

    Returns:
        Positions of the rows held out: those of `fraction` of the documents, rounded, but at least
        one of ten or more; none at fraction 0; never all.
    """
    keys: Sequence[str | int] = documents
    if len(set(documents)) < ENOUGH_DOCUMENTS <= len(documents):
        keys = range(len(documents))
    distinct = list(dict.fromkeys(keys))
    count = share(len(distinct), fraction)
    chosen = set(random.Random(seed).sample(distinct, count))
    return {at for at, key in enumerate(keys) if key in chosen}


def share(total: int, fraction: float) -> int:
    """Return how many of `total` to hold out: rounded, at least one of ten, never all."""
    least = 1 if fraction > 0 and total >= ENOUGH_DOCUMENTS else 0
    return min(max(least, round(total * fraction)), max(total - 1, 0))


def split_tail(text: str, fraction: float) -> tuple[str, str]:
    """Cut a text into its start to train on and its last paragraphs to hold out.

    Paragraphs are parted by blank lines, or by line ends where blank lines give fewer than ten.

    Returns:
        Start and tail; the tail is empty at fraction 0 or with fewer than ten paragraphs.
    """
    for pattern in (PARAGRAPH_BREAK, LINE_BREAK):
        breaks = list(pattern.finditer(text))
        paragraphs = len(breaks) + 1
        if fraction > 0 and paragraphs >= ENOUGH_PARAGRAPHS:
            at = breaks[-share(paragraphs, fraction)]
            return text[: at.start()], text[at.end() :]
    return text, ""


def cut(tokens: Sequence[int], *, room: int, piece: Callable[[int], str]) -> list[tuple[int, int]]:
    """Choose where a long document is cut: every token is in exactly one piece.

    A cut falls after a paragraph, else a line, a sentence, a word, between half of `room` and all
    of it. The last piece is at least a quarter of `room`, so that no end token is left alone.

    Args:
        tokens: The document's token ids.
        room: The most tokens in a piece.
        piece: Gives a token's text.

    Returns:
        Start and end of each piece, in order.
    """
    spans = []
    start = 0
    while len(tokens) - start > room:
        most = min(room, len(tokens) - start - max(room // 4, 1))
        ends = range(start + most, start + max(room // 2, 1) - 1, -1)
        end = max(ends, key=lambda at: _rank(tokens, at, piece))
        spans.append((start, end))
        start = end
    return [*spans, (start, len(tokens))]


def _rank(tokens: Sequence[int], at: int, piece: Callable[[int], str]) -> int:
    """Return how good a place before token `at` is for a cut, 0 to 4."""
    left = piece(tokens[at - 2]) + piece(tokens[at - 1]) if at > 1 else piece(tokens[at - 1])
    right = piece(tokens[at])
    if right.startswith("\n"):
        return 0
    newlines = left[len(left.rstrip()) :].count("\n")
    if newlines:
        return 4 if newlines > 1 else 3
    if not (right[:1].isspace() or left[-1:].isspace()):
        return 0
    return 2 if left.rstrip().endswith(SENTENCE_ENDS) else 1
