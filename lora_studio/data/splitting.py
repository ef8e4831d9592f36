"""What is held out to measure on, and how a long text becomes rows.

Holding out comes before cutting, so that no held-out row shares a document with a trained one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]

# From this many documents on, at least one is held out; below it a text is split by paragraphs.
ENOUGH_DOCUMENTS = 10
ENOUGH_PARAGRAPHS = 10

PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n\s*")
LINE_BREAK = re.compile(r"\n\s*")
LONGEST_BLOCK = 200_000
"""Characters that are tokenised at once."""
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


def hold_out(documents: Numbers | Sequence[str], *, fraction: float, seed: int) -> Numbers:
    """Choose the rows to hold out; rows of one document stay together.

    Where there are fewer than ten documents but at least ten rows (one question with many answers),
    each row counts as a document of its own.

    Args:
        documents: Each row's document.
        fraction: Share of documents to hold out, 0 to 0.5.
        seed: Same seed and documents, same choice.

    Returns:
        Whether each row is held out (bool): those of `fraction` of the documents, rounded, but at
        least one of ten or more; none at fraction 0; never all.
    """
    keys = np.asarray(documents)
    distinct = np.unique(keys)
    if len(distinct) < ENOUGH_DOCUMENTS <= len(keys):
        distinct = keys = np.arange(len(keys))
    count = share(len(distinct), fraction)
    chosen = random.Random(seed).sample(range(len(distinct)), count)
    return np.isin(keys, distinct[chosen])


def hold_out_of_classes(
    documents: Numbers, labels: Numbers, *, fraction: float, seed: int
) -> Numbers:
    """Choose the rows to hold out of every class alike; rows of one document stay together.

    A document counts for the class of its first row. A class of which no row would be left to learn
    from keeps all of them.

    Args:
        documents: Each row's document.
        labels: Each row's class.
        fraction: Share of each class to hold out, 0 to 0.5.
        seed: Same seed, documents and classes, same choice.

    Returns:
        Whether each row is held out (bool).
    """
    if not len(documents):
        return np.zeros(0, bool)
    distinct, first, place = np.unique(documents, return_index=True, return_inverse=True)
    kinds = labels[first]
    sizes = np.unique(kinds, return_counts=True)[1]
    by_class = np.split(np.argsort(kinds, kind="stable"), np.cumsum(sizes)[:-1])
    draw = random.Random(seed)
    is_chosen = np.zeros(len(distinct), bool)
    for members, count in zip(by_class, shares(sizes, fraction).tolist(), strict=True):
        is_chosen[draw.sample(members.tolist(), count)] = True
    held = is_chosen[place]
    unlearned = ~np.isin(labels, labels[~held])
    return held & ~np.isin(documents, documents[unlearned])


def shares(sizes: Numbers, fraction: float) -> Numbers:
    """Return how many of each class to hold out: together the share of all, spread evenly.

    At least one of ten or more; never all of a class. What rounding leaves goes to the classes that
    it took most from.
    """
    wanted = sizes * fraction
    least = (sizes >= ENOUGH_DOCUMENTS) & (fraction > 0)
    counts = np.minimum(np.maximum(np.floor(wanted), least), sizes - 1).astype(int)
    left = share(int(sizes.sum()), fraction) - int(counts.sum())
    by_need = np.argsort(counts - wanted, kind="stable")
    open_ = by_need[(counts < sizes - 1)[by_need]]
    counts[open_[: max(left, 0)]] += 1
    return counts


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


def sections(text: str, marker: str) -> list[str]:
    """Split a document at the lines that hold nothing but `marker`, which are left out.

    Args:
        text: The document.
        marker: What such a line says, white space around it apart; empty splits nothing.

    Returns:
        The parts that hold something, without empty lines around them.
    """
    marker = marker.strip()
    if not marker or marker not in text:
        return [text]
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip() == marker:
            parts.append([])
        else:
            parts[-1].append(line)
    joined = ("\n".join(part).strip("\r\n") for part in parts)
    return [part for part in joined if part.strip()]


def blocks(text: str, limit: int = LONGEST_BLOCK) -> Iterator[str]:
    """Yield a huge text in blocks of at most `limit` characters, so that none is tokenised whole.

    A block ends after the last paragraph in the second half of `limit`, else the last line, else
    the last word, else anywhere. The blocks joined are the text.
    """
    start = 0
    while len(text) - start > limit:
        least, most = start + limit // 2, start + limit
        ends = (text.rfind(mark, least, most) + len(mark) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > least), most)
        yield text[start:end]
        start = end
    yield text[start:]


def cut(
    tokens: Sequence[int], *, room: int, piece: Callable[[int], str], overlap: int = 0
) -> list[tuple[int, int]]:
    """Choose where a long document is cut: every token is in a piece, without overlap in just one.

    A cut falls before a heading, else after a paragraph, a line, a sentence, a word, between half
    of `room` and all of it. The last piece is at least a quarter of `room`, so that no end token
    is left alone. With an overlap each piece but the first begins with the end of the one before:
    at the best such place between half of `overlap` and all of it; at least half of what `room`
    leaves beside it is new.

    Args:
        tokens: The document's token ids.
        room: The most tokens in a piece.
        piece: Gives a token's text.
        overlap: The most tokens that two pieces share; what reaches half of `room` is cut down.

    Returns:
        Start and end of each piece, in order.
    """
    overlap = max(min(overlap, (room - 1) // 2), 0)
    least = overlap + max((room - overlap) // 2, 1)

    def best(places: range) -> int:
        return max(places, key=lambda at: _rank(tokens, at, piece))

    spans = []
    start = 0
    while len(tokens) - start > room:
        most = min(room, len(tokens) - start - max(room // 4, 1))
        end = best(range(start + most, start + min(least, most) - 1, -1))
        spans.append((start, end))
        start = best(range(end - overlap, end - overlap // 2 + 1)) if overlap else end
    return [*spans, (start, len(tokens))]


def _rank(tokens: Sequence[int], at: int, piece: Callable[[int], str]) -> int:
    """Return how good a place before token `at` is for a cut, 0 to 5."""
    left = piece(tokens[at - 2]) + piece(tokens[at - 1]) if at > 1 else piece(tokens[at - 1])
    right = piece(tokens[at])
    if right.startswith("\n"):
        return 0
    newlines = left[len(left.rstrip()) :].count("\n")
    if newlines:
        return 5 if right.lstrip(" ").startswith("#") else 4 if newlines > 1 else 3
    if not (right[:1].isspace() or left[-1:].isspace()):
        return 0
    return 2 if left.rstrip().endswith(SENTENCE_ENDS) else 1
