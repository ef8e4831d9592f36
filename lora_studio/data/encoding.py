"""Examples into token ids, with the spans that are trained on; nothing is cut here."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
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
        return [_draft(example, self._tokenizer) for example in examples]

    def tokenise(self, drafts: Iterable[Draft | DatasetError]) -> list[list[int]]:
        """Return the token ids of each conversation that was not refused."""
        texts = [draft.full for draft in drafts if isinstance(draft, Draft)]
        return templates.token_ids(self._tokenizer, texts)

    def assemble(
        self, drafts: Sequence[Draft | DatasetError], ids: Sequence[list[int]]
    ) -> list[Whole | DatasetError]:
        """Find in the tokens of each conversation what is trained on."""
        accepted = [draft for draft in drafts if isinstance(draft, Draft)]
        found = [
            self._beginnings.find(draft.full, tokens, draft.parts())
            for draft, tokens in zip(accepted, ids, strict=True)
        ]
        missing = [draft for draft, counts in zip(accepted, found, strict=True) if counts is None]
        slow = iter(
            templates.token_ids(
                self._tokenizer, [text for draft in missing for text in draft.parts()]
            )
        )
        rows = iter(
            self._whole(draft, tokens, counts or [next(slow) for _ in draft.parts()])
            for draft, tokens, counts in zip(accepted, ids, found, strict=True)
        )
        return [draft if isinstance(draft, DatasetError) else next(rows) for draft in drafts]

    def _whole(self, draft: Draft, full: list[int], parts: list[list[int]]) -> Whole:
        """Put the row together from its tokens and those of its beginnings."""
        closer = self._closer
        prompt, *rest = parts
        answer = full[len(prompt) :]
        if full[: len(prompt)] != prompt:
            # The prompt's last and the answer's first characters share a token in the whole text.
            answer = templates.token_ids(self._tokenizer, [draft.closing()])[0]
        closed = closer.closed(answer)
        if closed is None:
            answer = [*answer, self._tokenizer.eos_token_id]
            closed = closer.closed(answer) or len(answer)
        earlier = list(zip(rest[::2], rest[1::2], strict=True))
        spans, last_only = earlier_answers(prompt, earlier, closer=closer)
        last = (len(prompt), len(prompt) + closed)
        return Whole(prompt + answer, (*spans, last), draft.full, last_only)


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
        self._tail = cache(self._tokenised_tail)

    def find(self, text: str, ids: list[int], parts: Sequence[str]) -> list[list[int]] | None:
        """Return the tokens of each part, or None where that takes tokenising them."""
        if self._special is None:
            return None
        marks = [match.span() for match in self._special.finditer(text)]
        spots = self._spots(ids, [text[start:end] for start, end in marks])
        if spots is None:
            return None
        ends = [end for _, end in marks]
        found = []
        for part in parts:
            many = bisect_right(ends, len(part))
            crosses = many < len(marks) and marks[many][0] < len(part)
            if not many or crosses or not text.startswith(part):
                return None
            start, end = marks[many - 1]
            if len(part) - end > LONGEST_TAIL:
                return None
            tail = self._tail(text[start:end], part[end:])
            first = spots[many - 1] + 1
            if ids[first : first + len(tail)] != tail:
                return None
            found.append(ids[: first + len(tail)])
        return found

    def _spots(self, ids: list[int], specials: Sequence[str]) -> list[int] | None:
        """Return where these special tokens stand among the ids; None if others are there too."""
        wanted = [self._ids[special] for special in specials]
        if sum(map(ids.count, set(wanted))) != len(wanted):
            return None
        spots, at = [], -1
        for token in wanted:
            try:
                at = ids.index(token, at + 1)
            except ValueError:
                return None
            spots.append(at)
        return spots

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


def _draft(example: Example, tokenizer: PreTrainedTokenizerBase) -> Draft | DatasetError:
    try:
        turns, full = templates.accepted(tokenizer, example.messages)
        roles = [turn["role"] for turn in turns]
        answers = [at for at, role in enumerate(roles) if role == "assistant"]

        def before(at: int) -> str:
            return templates.render_turns(tokenizer, turns[:at], add_generation_prompt=True)

        return Draft(
            turns=turns,
            prompt=before(answers[-1]),
            full=full,
            # A greeting before any question answers nothing, and is only read.
            earlier=[
                (before(at), templates.beginning_of(full, turns[: at + 1], tokenizer))
                for at in answers[:-1]
                if "user" in roles[:at]
            ],
        )
    except DatasetError as error:
        return error
