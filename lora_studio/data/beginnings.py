"""How conversations begin: the tokens of a beginning, without tokenising it again."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING

from lora_studio.data import templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_TAIL = 64
"""Characters after a special token that are worth remembering as tokens."""


def shared_tokens(rows: Sequence[Sequence[int]]) -> int:
    """Return with how many tokens all of these rows begin."""
    alike = (len(set(tokens)) == 1 for tokens in zip(*rows, strict=False))
    return sum(takewhile(bool, alike))


class Beginnings:
    """Tells which tokens of a text are those of its beginning, without tokenising that again.

    Special tokens part a text: what stands between two is tokenised by itself. So the tokens of a
    beginning are those up to its last special token, and those of the few characters after it,
    which are nearly always the same (as `assistant` and a line end) and are remembered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._ids = tokenizer.get_added_vocab()
        self._special = re.compile("|".join(map(re.escape, added))) if added else None
        self._parts_exactly = not any(
            token.lstrip or token.single_word or token.normalized
            for token in tokenizer.added_tokens_decoder.values()
        )
        self._tail = cache(self._tokenised_tail)

    def opening(self, texts: Sequence[str]) -> str:
        """Return how all texts begin, up to a special token; nothing where that may join tokens."""
        if self._special is None or not self._parts_exactly or not texts:
            return ""
        first, last = min(texts), max(texts)
        marks = [match.start() for match in self._special.finditer(first)]
        return next((first[:at] for at in reversed(marks) if last.startswith(first[:at])), "")

    def count(self, text: str, ids: list[int], parts: Sequence[str]) -> list[int] | None:
        """Return how many tokens each part has, or None where that takes tokenising them."""
        if self._special is None:
            return None
        marks = list(self._special.finditer(text))
        ends = [mark.end() for mark in marks]
        spots = self._spots(ids, [mark[0] for mark in marks])
        if spots is None:
            return None
        counts = []
        for part in parts:
            size = len(part)
            many = bisect_right(ends, size)
            crosses = many < len(marks) and marks[many].start() < size
            if not many or crosses or size - ends[many - 1] > LONGEST_TAIL:
                return None
            if not text.startswith(part):
                return None
            tail = self._tail(marks[many - 1][0], part[ends[many - 1] :])
            first = spots[many - 1] + 1
            if ids[first : first + len(tail)] != tail:
                return None
            counts.append(first + len(tail))
        return counts

    def _spots(self, ids: list[int], specials: Sequence[str]) -> list[int] | None:
        """Return where these special tokens stand among the ids; None if others are there too."""
        wanted = [self._ids[special] for special in specials]
        spots, at = [], -1
        try:
            for token in wanted:
                at = ids.index(token, at + 1)
                spots.append(at)
        except ValueError:
            return None
        return spots if sum(map(ids.count, set(wanted))) == len(wanted) else None

    def _tokenised_tail(self, special: str, tail: str) -> list[int]:
        return templates.token_ids(self._tokenizer, [special + tail])[0][1:]
