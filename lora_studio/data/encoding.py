"""Examples into token ids, with the spans that are trained on; nothing is cut here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Self

from lora_studio.data import templates
from lora_studio.data.beginnings import Beginnings
from lora_studio.data.examples import Example
from lora_studio.data.masking import Closer, earlier_answers, marked_answers, tokens_of
from lora_studio.data.templates import Span
from lora_studio.errors import DatasetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label of a token that is read, not trained on (torch.nn.CrossEntropyLoss)."""


@dataclass(frozen=True, slots=True)
class Whole:
    """One row before cutting."""

    ids: list[int]
    """All token ids."""
    spans: tuple[Span, ...]
    """Tokens that are trained on, in order."""
    text: str
    """What a person reads: the rendered conversation, or the text itself."""
    last_answer_only: bool = False
    """Whether earlier answers go untrained: the template rewrites them once more is said."""
    marks_misfit: bool = False
    """Whether the template's marks of what the model writes do not fit and were not followed."""
    label: int = -1
    """The class of the text, as a place among the store's labels; -1 for none."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as the model takes it."""

    input_ids: list[int]
    """Token ids, at most `max_length`."""
    labels: list[int]
    """`input_ids` where trained on, IGNORE_INDEX elsewhere; not shifted, the model does that.
    With a `label` no token is trained on."""
    length: int
    """Tokens before cutting."""
    answer_start: int = 0
    """Where the first trained token stands before cutting."""
    cut_start: int = 0
    """Tokens cut off the start."""
    last_answer_only: bool = False
    """Whether earlier answers go untrained."""
    label: int | None = None
    """Id of the text's class, from 0; None unless texts are classified."""

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

    @classmethod
    def classified(
        cls, row: Whole, start: int, stop: int, *, beginning: Sequence[int], label: int
    ) -> Self:
        """Return a text from `start` up to `stop` with the id of its class.

        One that lost its start begins with `beginning` all the same, in place of as many tokens.
        """
        ids = row.ids[start:stop]
        if start:
            ids[: len(beginning)] = beginning
        return cls(ids, [IGNORE_INDEX] * len(ids), len(row.ids), cut_start=start, label=label)

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
        """Number of tokens with a label; a text's class counts as one."""
        if self.label is not None:
            return 1
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
    marked: list[Span] | None = None
    """Characters of each answer by the template's marks, None where these are not followed."""
    marks_misfit: bool = False
    """Whether the template has marks that do not fit."""
    places: list[Span] = field(default_factory=list)
    """Characters that each token stands for, where the template's marks are followed."""

    def parts(self) -> list[str]:
        """Return the beginnings of the conversation whose tokens are asked for."""
        earlier = () if self.marked else self.earlier
        return [self.prompt, *chain.from_iterable(earlier)]

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
    Answers are found by the template's own marks where it has some that fit the conversation, else
    by what each turn adds to the text; see `masking`. If, without marks, the template writes
    earlier answers differently once more is said (some drop reasoning), only the last answer is
    trained. An answer that the template leaves open is closed with the end token.

    The three steps can overlap: `draft` and `assemble` are Python, `tokenise` is not.

    Args:
        tokenizer: A tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._closer = Closer(tokenizer)
        self._beginnings = Beginnings(tokenizer)
        self._renderer = templates.Renderer(tokenizer)
        self._has_marks = self._renderer.marks_answers

    def encode(self, examples: Sequence[Example]) -> list[Whole | DatasetError]:
        """Return a row per example, or the template's refusal in its place."""
        drafts = self.draft(examples)
        return self.assemble(drafts, self.tokenise(drafts))

    def draft(self, examples: Sequence[Example]) -> list[Draft | DatasetError]:
        """Render conversations; a refusal stands in the place of its conversation."""
        drafts = [_draft(example, self._renderer) for example in examples]
        if self._has_marks:
            for draft in drafts:
                if isinstance(draft, Draft):
                    self._read_marks(draft)
        return drafts

    def tokenise(self, drafts: Iterable[Draft | DatasetError]) -> list[list[int]]:
        """Return the token ids of each conversation that was not refused.

        How all of them begin (often a system turn) is tokenised once.
        """
        accepted = [draft for draft in drafts if isinstance(draft, Draft)]
        texts = [draft.full for draft in accepted]
        if self._has_marks and self._tokenizer.is_fast:
            located = templates.token_places(self._tokenizer, texts)
            for draft, (_, places) in zip(accepted, located, strict=True):
                draft.places = places
            return [ids for ids, _ in located]
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

    def _read_marks(self, draft: Draft) -> None:
        """Note where the template's marks have the answers, or that they do not fit."""
        # A slow tokenizer does not tell which characters its tokens stand for.
        if self._tokenizer.is_fast:
            with suppress(DatasetError):
                draft.marked = self._marked(draft)
        draft.marks_misfit = draft.marked is None

    def _marked(self, draft: Draft) -> list[Span] | None:
        marks = self._renderer.marks(draft.turns)
        before = draft.prompt
        if marks and marks[-1][0] < len(before):
            before = self._renderer.beginning(before, draft.turns[:-1])
        return marked_answers(
            draft.full,
            marks,
            answers=[turn["content"] for turn in draft.turns if turn["role"] == "assistant"],
            bounds=[*draft.earlier, (draft.prompt, draft.full)],
            header=draft.prompt.removeprefix(before),
            closer=self._closer,
        )

    def _compared(self, draft: Draft, ids: list[int], parts: Iterator[list[int]]) -> Whole:
        """Put a row together whose beginnings had to be tokenised to be found."""
        prompt, *rest = islice(parts, len(draft.parts()))
        if ids[: len(prompt)] != prompt:
            # The prompt's last and the answer's first characters share a token in the whole text.
            ids = prompt + self._apart(draft)
        counts = [len(part) if ids[: len(part)] == part else None for part in rest]
        return self._whole(draft, ids, len(prompt), *counts)

    def _apart(self, draft: Draft) -> list[int]:
        """Return the tokens of what follows the prompt, tokenised by itself."""
        closing = draft.closing()
        if not draft.marked:
            return templates.token_ids(self._tokenizer, [closing])[0]
        texts = [draft.prompt, closing]
        (_, before), (ids, after) = templates.token_places(self._tokenizer, texts)
        shift = len(draft.prompt)
        draft.places = before + [(start + shift, stop + shift) for start, stop in after]
        return ids

    def _whole(self, draft: Draft, ids: list[int], prompt: int, *earlier: int | None) -> Whole:
        """Put a row together from its tokens and how many each of its beginnings has."""
        closed = self._closer.closed(ids[prompt:])
        if closed is None:
            ids = [*ids, self._tokenizer.eos_token_id]
            closed = self._closer.closed(ids[prompt:]) or len(ids) - prompt
        stop = prompt + closed
        if draft.marked:
            *marked, (start, _) = tokens_of(draft.marked, ids, draft.places, self._closer)
            return Whole(ids, (*marked, (max(start, prompt), stop)), draft.full)
        spans = earlier_answers(ids, earlier, self._closer) if earlier else []
        trained = (*(spans or ()), (prompt, stop))
        return Whole(ids, trained, draft.full, spans is None, draft.marks_misfit)


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
