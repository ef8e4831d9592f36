"""What a person looks at before training: the coloured tokens, and questions to try out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_studio.data.encoding import IGNORE_INDEX, Encoded
from lora_studio.data.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 1000
PROMPT_WORDS = 12
PROMPT_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Preview:
    """One row, token by token."""

    pieces: tuple[tuple[str, bool], ...]
    """Each token's text, and whether it is trained on; joined they are the row's text. Tokens that
    are only parts of one character stand together."""
    end_token: bool
    """Whether the last trained token ends the answer, so that the model learns to stop."""
    left_out: int
    """Tokens after the first thousand, not shown."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and values."""
        return {
            "pieces": [list(piece) for piece in self.pieces],
            "end_token": self.end_token,
            "left_out": self.left_out,
        }


def preview(row: Encoded, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> Preview:
    """Return a row's tokens as text; `ends` are the tokens that end an answer."""
    trained = [label for label in row.labels if label != IGNORE_INDEX]
    shown = row.input_ids[:SHOWN_TOKENS]
    pieces = (
        (text, row.labels[end - 1] != IGNORE_INDEX) for text, end in _decoded(shown, tokenizer)
    )
    return Preview(
        pieces=tuple(pieces),
        end_token=bool(trained) and trained[-1] in ends,
        left_out=len(row.input_ids) - len(shown),
    )


def try_out(examples: Iterable[Example], *, count: int = 2) -> tuple[str, ...]:
    """Return the first different questions: a user's first turn, or how a plain text begins."""
    prompts: dict[str, None] = {}
    for example in examples:
        if len(prompts) == count:
            break
        prompts[_question(example)] = None
    return tuple(prompts)


def _question(example: Example) -> str:
    if example.is_chat:
        return next(turn.content for turn in example.messages if turn.role == "user")
    return " ".join(example.text.split()[:PROMPT_WORDS])[:PROMPT_CHARACTERS].rstrip()


def _decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, int]]:
    """Yield each token's text and where it ends, several as one where only together they are text.

    A token is decoded behind the one before it: SentencePiece drops a space at the very start.
    """
    before = start = 0
    for end in range(1, len(ids) + 1):
        known = tokenizer.decode(ids[before:start])
        text = tokenizer.decode(ids[before:end])
        if text.endswith("\ufffd") and end < len(ids):
            continue
        yield text[len(known) :], end
        before, start = start, end
