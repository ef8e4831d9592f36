"""Examples into token ids, with the spans that are trained on; nothing is cut here."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Self

from lora_studio.data import templates
from lora_studio.data.examples import Example
from lora_studio.data.masking import Closer, earlier_answers
from lora_studio.errors import DatasetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label of a token that is read, not trained on (torch.nn.CrossEntropyLoss)."""
LONGEST_TAIL = 64
"""Characters after a special token that are worth remembering as tokens."""

Span = tuple[int, int]
"""First token that is trained on, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Whole:
    """One row before cutting."""

    ids: list[int]
    """All token ids."""
    spans: tuple[Span, ...]
    """What is trained on, in order."""
    text: str
    """What a person reads: the rendered conversation, or the text itself."""
    last_answer_only: bool = False
    """Whether earlier answers go untrained: the template rewrites them once more is said."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as the model takes it."""

    input_ids: list[int]
    """Token ids, at most `max_length`."""
    labels: list[int]
    """`input_ids` where trained on, IGNORE_INDEX elsewhere; not shifted, the model does that."""
    length: int
    """Tokens before cutting."""
    answer_start: int = 0
    """Where the first trained token stands before cutting."""
    cut_start: int = 0
    """Tokens cut off the start."""
    last_answer_only: bool = False
    """Whether earlier answers go untrained."""

    @classmethod
    def cut(cls, row: Whole, start: int, stop: int) -> Self:
        """Return the tokens of a row from `start` up to `stop`."""
        labels = [IGNORE_INDEX] * len(row.ids)
        for first, end in row.spans:
            labels[first:end] = row.ids[first:end]
        answer_start = row.spans[0][0] if row.spans else 0
        return cls(
            row.ids[start:stop], labels[start:stop], len(row.ids), answer_start, start,
            row.last_answer_only,
        )  # fmt: skip

    @property
    def cut_end(self) -> int:
        """Tokens cut off the end."""
        return self.length - self.cut_start - len(self.input_ids)

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off."""
        return self.length > len(self.input_ids)

    @property
    def lost_answer(self) -> bool:
        """Whether cutting left nothing to train on."""
        return self.trained_tokens == 0

    @property
    def trained_tokens(self) -> int:
        """Number of tokens with a label."""
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(slots=True)
class Draft:
    """A conversation on its way to tokens."""

    turns: list[templates.Turn]
    prompt: str
    """Everything before the last answer, as at inference."""
    full: str
    """The whole conversation."""
    earlier: list[tuple[str, str]] = field(default_factory=list)
    """For each earlier answer the text up to its start, and up to its end."""

    def parts(self) -> list[str]:
        """Return the beginnings of the conversation whose tokens are asked for."""
        return [self.prompt, *chain.from_iterable(self.earlier)]

    def closing(self) -> str:
        """Return the text after the prompt: the last answer and what closes it."""
        if self.full.startswith(self.prompt):
            return self.full[len(self.prompt) :]
        answer = self.turns[-1]["content"]
        _, found, tail = self.full.rpartition(answer)
        return answer + (tail if found else "")


class ChatEncoder:
    """Encodes conversations so that only what the assistant says is trained on, its end included.

    What stands before the last answer is exactly what `templates.prompt_ids` gives at inference.
    Earlier answers are found by what each turn adds to the text; a template's own generation marks
    are not asked, see `masking`. If the template writes earlier answers differently once more is
    said (some drop reasoning), only the last answer is trained. An answer that the template leaves
    open is closed with the end token.

    The three steps can overlap: `draft` and `assemble` are Python, `tokenise` is not.

    Args:
        tokenizer: A tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._closer = Closer(tokenizer)
        self._beginnings = _Beginnings(tokenizer)

    def encode(self, examples: Sequence[Example]) -> list[Whole | DatasetError]:
        """Return a row per example, or the template's refusal in its place."""
        drafts = self.draft(examples)
        return self.assemble(drafts, self.tokenise(drafts))

    def draft(self, examples: Sequence[Example]) -> list[Draft | DatasetError]:
        """Render conversations; a refusal stands in the place of its conversation."""
        renderer = templates.Renderer(self._tokenizer)
        return [_draft(example, renderer) for example in examples]

    def tokenise(self, drafts: Iterable[Draft | DatasetError]) -> list[list[int]]:
        """Return the token ids of each conversation that was not refused.

        How all of them begin (often a system turn) is tokenised once.
        """
        texts = [draft.full for draft in drafts if isinstance(draft, Draft)]
        opening = self._beginnings.opening(texts)
        first = templates.token_ids(self._tokenizer, [opening])[0] if opening else []
        rest = templates.token_ids(self._tokenizer, [text[len(opening) :] for text in texts])
        return [first + ids for ids in rest]

    def assemble(
        self, drafts: Sequence[Draft | DatasetError], ids: Sequence[list[int]]
    ) -> list[Whole | DatasetError]:
        """Find in the tokens of each conversation what is trained on."""
        accepted = [draft for draft in drafts if isinstance(draft, Draft)]
        counted = [
            self._beginnings.count(draft.full, tokens, draft.parts())
            for draft, tokens in zip(accepted, ids, strict=True)
        ]
        missing = [draft for draft, counts in zip(accepted, counted, strict=True) if not counts]
        texts = [text for draft in missing for text in draft.parts()]
        parts = iter(templates.token_ids(self._tokenizer, texts))
        rows = iter(
            self._whole(draft, tokens, *counts) if counts else self._compared(draft, tokens, parts)
            for draft, tokens, counts in zip(accepted, ids, counted, strict=True)
        )
        return [draft if isinstance(draft, DatasetError) else next(rows) for draft in drafts]

    def _compared(self, draft: Draft, ids: list[int], parts: Iterator[list[int]]) -> Whole:
        """Put a row together whose beginnings had to be tokenised to be found."""
        prompt, *rest = islice(parts, len(draft.parts()))
        if ids[: len(prompt)] != prompt:
            # The prompt's last and the answer's first characters share a token in the whole text.
            ids = prompt + templates.token_ids(self._tokenizer, [draft.closing()])[0]
        counts = [len(part) if ids[: len(part)] == part else None for part in rest]
        return self._whole(draft, ids, len(prompt), *counts)

    def _whole(self, draft: Draft, ids: list[int], prompt: int, *earlier: int | None) -> Whole:
        """Put a row together from its tokens and how many each of its beginnings has."""
        closed = self._closer.closed(ids[prompt:])
        if closed is None:
            ids = [*ids, self._tokenizer.eos_token_id]
            closed = self._closer.closed(ids[prompt:]) or len(ids) - prompt
        spans = earlier_answers(ids, earlier, self._closer) if earlier else []
        last = (prompt, prompt + closed)
        return Whole(ids, (*(spans or ()), last), draft.full, spans is None)


class _Beginnings:
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


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Encode one conversation and cut its end; see `ChatEncoder`.

    Raises:
        DatasetError: If the template refuses the conversation.
    """
    row = ChatEncoder(tokenizer).encode([example])[0]
    if isinstance(row, DatasetError):
        raise row
    return Encoded.cut(row, 0, max_length)


def pieces(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """Return a function from a token to its text; SentencePiece's mark of a space is one."""

    @cache
    def piece(token: int) -> str:
        text = str(tokenizer.decode([token]))
        raw = tokenizer.convert_ids_to_tokens(token)
        return f" {text.lstrip()}" if str(raw).startswith("▁") else text

    return piece


def _draft(example: Example, render: templates.Renderer) -> Draft | DatasetError:
    try:
        turns, full = render.accepted(example.messages)
        roles = [turn["role"] for turn in turns]
        answers = [at for at, role in enumerate(roles) if role == "assistant"]
        return Draft(
            turns=turns,
            prompt=render.turns(turns[: answers[-1]], add_generation_prompt=True),
            full=full,
            # A greeting before any question answers nothing, and is only read.
            earlier=[
                (
                    render.turns(turns[:at], add_generation_prompt=True),
                    render.beginning(full, turns[: at + 1]),
                )
                for at in answers[:-1]
                if "user" in roles[:at]
            ],
        )
    except DatasetError as error:
        return error
