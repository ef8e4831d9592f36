"""What a person looks at before training: the coloured tokens, and questions to try out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lora_studio.data.encoding import IGNORE_INDEX, Encoded
from lora_studio.data.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 1000
PROMPT_WORDS = 12
PROMPT_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row, token by token."""

    file: str
    """Name of the file it comes from."""
    number: int
    """Row number in that file."""
    text: str
    """What the tokens say."""
    tokens: tuple[str, ...]
    """Each token's text; joined they are `text`. Tokens that are only parts of one character stand
    together."""
    mask: tuple[int, ...]
    """1 for a token that is trained on, else 0."""
    end_token: bool
    """Whether the last trained token ends the answer, so that the model learns to stop."""
    left_out: int
    """Tokens after the first thousand, not shown."""
    cut_start: int
    """Tokens cut off the start at `max_length`."""
    cut_end: int
    """Tokens cut off the end."""
    label: str = ""
    """Name of the text's class; empty unless texts are classified."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and values."""
        return asdict(self) | {"tokens": list(self.tokens), "mask": list(self.mask)}


def sample(
    row: Encoded,
    file: str,
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    *,
    labels: Sequence[str] = (),
) -> Sample:
    """Return a row's tokens as text.

    Args:
        row: The row.
        file: Name of the file it comes from.
        number: Its number there.
        tokenizer: The base model's.
        ends: The tokens that end an answer.
        labels: Names of the classes, where texts are classified.
    """
    trained = [label for label in row.labels if label != IGNORE_INDEX]
    shown = row.input_ids[:SHOWN_TOKENS]
    pieces = list(_decoded(shown, tokenizer))
    return Sample(
        file=file,
        number=number,
        text="".join(text for text, _ in pieces),
        tokens=tuple(text for text, _ in pieces),
        mask=tuple(int(row.labels[end - 1] != IGNORE_INDEX) for _, end in pieces),
        end_token=bool(trained) and trained[-1] in ends,
        left_out=len(row.input_ids) - len(shown),
        cut_start=row.cut_start,
        cut_end=row.cut_end,
        label="" if row.label is None else labels[row.label],
    )


def question(example: Example) -> str:
    """Return what to try an example out with.

    A user's first turn, the whole of a text to classify, or how a plain text begins.
    """
    if example.is_chat:
        return next(turn.content for turn in example.messages if turn.role == "user")
    if example.label:
        return example.text
    return " ".join(example.text.split()[:PROMPT_WORDS])[:PROMPT_CHARACTERS].rstrip()


def first_different(questions: Iterable[str], *, count: int = 2) -> tuple[str, ...]:
    """Return the first different questions."""
    found: dict[str, None] = {}
    for asked in questions:
        found[asked] = None
        if len(found) == count:
            break
    return tuple(found)


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
