"""Where an answer begins and ends in a conversation's tokens.

The `{% generation %}` marks that some templates carry are not used: transformers 5.23 maps them to
tokens by single characters, which leaves an answer that ends in an emoji without its end token, and
can mark all that follows an answer (https://github.com/huggingface/transformers/issues/47325).
What each turn adds to the text says the same without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from lora_studio.data import templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Closer:
    """Knows where answers end: at an end token, white space after it left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ends = templates.end_ids(tokenizer)
        self.is_blank = cache(lambda token: not tokenizer.decode([token]).strip())

    def closed(self, tokens: Sequence[int]) -> int | None:
        """Return how many tokens there are up to the end token, None where there is no such."""
        count = len(tokens)
        while count and self.is_blank(tokens[count - 1]):
            count -= 1
        return count if count and tokens[count - 1] in self.ends else None


def earlier_answers(
    ids: Sequence[int], counts: Sequence[int | None], closer: Closer
) -> list[tuple[int, int]] | None:
    """Return which tokens are earlier answers, each with its end.

    Args:
        ids: Tokens of the whole conversation.
        counts: For each earlier answer the number of tokens up to its start, and up to its end;
            None where those are not what the whole conversation begins with.
        closer: Knows where answers end.

    Returns:
        Start and end of each, None if one of them reads differently once more is said.
    """
    spans = []
    for start, end in zip(counts[::2], counts[1::2], strict=True):
        if start is None or end is None:
            return None
        answer = ids[start:end]
        spans.append((start, start + (closer.closed(answer) or len(answer))))
    return spans
