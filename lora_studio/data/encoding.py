"""Examples into token ids with labels: which tokens are trained on, and which only read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from lora_studio.data import splitting, templates
from lora_studio.data.examples import Example
from lora_studio.data.masking import Closer, earlier_answers
from lora_studio.errors import DatasetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label of a token that is read, not trained on (torch.nn.CrossEntropyLoss)."""


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
    last_answer_only: bool = False
    """Whether earlier answers go untrained: the template rewrites them once more is said."""

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off the end."""
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
class _Draft:
    """A conversation on its way to a row: its text, then the tokens of that text."""

    turns: list[templates.Turn]
    prompt: str
    """Everything before the last answer, as at inference."""
    full: str
    """The whole conversation."""
    earlier: list[tuple[str, str]] = field(default_factory=list)
    """For each earlier answer the text up to its start, and up to its end."""

    def texts(self) -> list[str]:
        return [self.full, self.prompt, *chain.from_iterable(self.earlier)]

    def closing(self) -> str:
        """Return the text after the prompt: the last answer and what closes it."""
        if self.full.startswith(self.prompt):
            return self.full[len(self.prompt) :]
        answer = self.turns[-1]["content"]
        _, found, tail = self.full.rpartition(answer)
        return answer + (tail if found else "")


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Encode one conversation; see `encode_chats`.

    Raises:
        DatasetError: If the template refuses the conversation.
    """
    row = encode_chats([example], tokenizer, max_length)[0]
    if isinstance(row, DatasetError):
        raise row
    return row


def encode_chats(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Encoded | DatasetError]:
    """Encode conversations so that only what the assistant says is trained on, its end included.

    What stands before the last answer is exactly what `templates.prompt_ids` gives at inference.
    Earlier answers are found by what each turn adds to the text; a template's own generation marks
    are not asked, see `masking`. If the template writes earlier answers differently once more is
    said (some drop reasoning), only the last answer is trained. An answer that the template leaves
    open is closed with the end token.

    Args:
        examples: Conversations, each ending in an answer.
        tokenizer: A tokenizer with a chat template.
        max_length: Longest row in tokens; what is over is cut at the end.

    Returns:
        A row per example, or the template's refusal in its place.
    """
    drafts = [_draft(example, tokenizer) for example in examples]
    accepted = [draft for draft in drafts if isinstance(draft, _Draft)]
    ids = iter(templates.token_ids(tokenizer, [text for d in accepted for text in d.texts()]))
    closer = Closer(tokenizer)
    rows: list[Encoded | DatasetError] = []
    for draft in drafts:
        if isinstance(draft, DatasetError):
            rows.append(draft)
            continue
        full, prompt, *rest = (next(ids) for _ in draft.texts())
        row, trained, last_only = _assemble(
            draft,
            full=full,
            prompt=prompt,
            earlier=list(zip(rest[::2], rest[1::2], strict=True)),
            closer=closer,
        )
        rows.append(_cut(row, trained, last_only=last_only, max_length=max_length))
    return rows


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[list[Encoded]]:
    """Encode plain texts: every token is trained on once, and an end token after each text.

    A text longer than `max_length` becomes several rows, cut where `splitting.cut` finds best. Each
    row begins with the beginning token, untrained, if the tokenizer puts one before texts.

    Returns:
        The rows of each text.
    """
    beginning = [tokenizer.bos_token_id] if templates.adds_beginning(tokenizer) else []
    piece = _pieces(tokenizer)
    rows = []
    for ids in templates.token_ids(tokenizer, texts):
        tokens = [*ids, tokenizer.eos_token_id]
        spans = splitting.cut(tokens, room=max_length - len(beginning), piece=piece)
        rows.append([_text_row(beginning, tokens[start:end]) for start, end in spans])
    return rows


def _draft(example: Example, tokenizer: PreTrainedTokenizerBase) -> _Draft | DatasetError:
    try:
        turns, full = templates.accepted(tokenizer, example.messages)
        roles = [turn["role"] for turn in turns]
        answers = [at for at, role in enumerate(roles) if role == "assistant"]

        def before(at: int) -> str:
            return templates.render_turns(tokenizer, turns[:at], add_generation_prompt=True)

        return _Draft(
            turns=turns,
            prompt=before(answers[-1]),
            full=full,
            # A greeting before any question answers nothing, and is only read.
            earlier=[
                (before(at), templates.render_turns(tokenizer, turns[: at + 1]))
                for at in answers[:-1]
                if "user" in roles[:at]
            ],
        )
    except DatasetError as error:
        return error


def _assemble(
    draft: _Draft,
    *,
    full: list[int],
    prompt: list[int],
    earlier: Sequence[tuple[list[int], list[int]]],
    closer: Closer,
) -> tuple[list[int], list[bool], bool]:
    """Return the row's tokens, which of them are trained, and whether only the last answer is."""
    answer = full[len(prompt) :]
    if full[: len(prompt)] != prompt:
        # The prompt's last and the answer's first characters share a token in the whole text.
        answer = templates.token_ids(closer.tokenizer, [draft.closing()])[0]
    if closer.closed(answer) is None:
        answer = [*answer, closer.tokenizer.eos_token_id]
    earlier_trained, last_only = earlier_answers(prompt, earlier, closer=closer)
    count = closer.closed(answer) or len(answer)
    trained = earlier_trained + [at < count for at in range(len(answer))]
    return prompt + answer, trained, last_only


def _cut(ids: list[int], trained: list[bool], *, last_only: bool, max_length: int) -> Encoded:
    labels = [token if on else IGNORE_INDEX for token, on in zip(ids, trained, strict=True)]
    return Encoded(
        input_ids=ids[:max_length],
        labels=labels[:max_length],
        length=len(ids),
        answer_start=trained.index(True),
        last_answer_only=last_only,
    )


def _text_row(beginning: list[int], tokens: list[int]) -> Encoded:
    ids = beginning + tokens
    return Encoded(ids, [IGNORE_INDEX] * len(beginning) + tokens, length=len(ids))


def _pieces(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """Return a function from a token to its text; SentencePiece's mark of a space is one."""

    @cache
    def piece(token: int) -> str:
        text = str(tokenizer.decode([token]))
        raw = tokenizer.convert_ids_to_tokens(token)
        return f" {text.lstrip()}" if str(raw).startswith("▁") else text

    return piece
