"""Which encoded rows are learned from, which are held out, and which are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self, TypeVar

from lora_studio.data import splitting
from lora_studio.data.encoding import Encoded, encode_chats, encode_texts
from lora_studio.data.examples import Example, Skipped
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 256

T = TypeVar("T")

Tick = Callable[[int], None]
"""Called with the number of examples just encoded."""


@dataclass(slots=True)
class Part:
    """Encoded rows, and the examples they come from."""

    rows: list[Encoded] = field(default_factory=list)
    """What the model takes."""
    examples: list[Example] = field(default_factory=list)
    """What a person wrote; a long text has one example and many rows."""

    def __add__(self, other: Self) -> Self:
        return replace(self, rows=self.rows + other.rows, examples=self.examples + other.examples)

    def add(self, example: Example, rows: Sequence[Encoded]) -> None:
        """Take in an example and its rows."""
        self.rows.extend(rows)
        self.examples.append(example)


@dataclass(slots=True)
class Allocation:
    """Where every example went."""

    train: Part = field(default_factory=Part)
    """To learn from."""
    held: Part = field(default_factory=Part)
    """To measure on."""
    skipped: list[Skipped] = field(default_factory=list)
    """Not used."""

    def part(self, *, is_held: bool) -> Part:
        """Return the part a row goes to."""
        return self.held if is_held else self.train


def allocate_chats(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    spec: DataSpec,
    seed: int,
    tick: Tick,
) -> Allocation:
    """Encode conversations, leave out the unusable, and hold out a share of the others.

    Raises:
        DatasetError: If the template refuses them all, or none keeps a trained token.
    """
    result = Allocation()
    usable: list[tuple[Example, Encoded]] = []
    problems: list[Encoded | DatasetError] = []
    for batch in _batches(examples):
        for example, row in zip(
            batch, encode_chats(batch, tokenizer, spec.max_length), strict=True
        ):
            if not isinstance(row, DatasetError) and not row.lost_answer:
                usable.append((example, row))
                continue
            problems.append(row)
            is_refused = isinstance(row, DatasetError)
            reason = "data.skip_template_refuses" if is_refused else "data.skip_answer_cut"
            result.skipped.append(Skipped(example.file, example.number, reason))
        tick(len(batch))
    if problems and not usable:
        raise _nothing_left(problems, max_length=spec.max_length)
    documents = [example.document for example, _ in usable]
    held = splitting.hold_out(documents, fraction=spec.eval_fraction, seed=seed)
    for at, (example, row) in enumerate(usable):
        result.part(is_held=at in held).add(example, [row])
    return result


def allocate_texts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    spec: DataSpec,
    seed: int,
    tick: Tick,
) -> Allocation:
    """Hold out a share of plain texts, or each one's end where they are few, and encode them."""
    result = Allocation()
    placed = _placed(examples, fraction=spec.eval_fraction, seed=seed)
    for batch in _batches(placed):
        texts = [example.text for example, _ in batch]
        encoded = encode_texts(texts, tokenizer, spec.max_length)
        for (example, is_held), rows in zip(batch, encoded, strict=True):
            result.part(is_held=is_held).add(example, rows)
        tick(sum(not is_held for _, is_held in batch))
    return result


def _placed(
    examples: Sequence[Example], *, fraction: float, seed: int
) -> list[tuple[Example, bool]]:
    """Return texts, or the two ends of each text, and whether each is held out."""
    documents = [example.document for example in examples]
    if len(set(documents)) < splitting.ENOUGH_DOCUMENTS:
        ends = [splitting.split_tail(example.text, fraction) for example in examples]
        if any(tail for _, tail in ends):
            return [
                (replace(example, text=text), is_held)
                for example, both in zip(examples, ends, strict=True)
                for text, is_held in zip(both, (False, True), strict=True)
                if text
            ]
    held = splitting.hold_out(documents, fraction=fraction, seed=seed)
    return [(example, at in held) for at, example in enumerate(examples)]


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _nothing_left(problems: Sequence[Encoded | DatasetError], *, max_length: int) -> DatasetError:
    """Return why no conversation can be used: the length, or else the template."""
    rows = [row for row in problems if isinstance(row, Encoded)]
    if not rows:
        return next(row for row in problems if isinstance(row, DatasetError))
    shortest = min(rows, key=lambda row: row.length)
    return DatasetError(
        "data.answers_cut",
        max_length=max_length,
        needed=shortest.length,
        answer=shortest.length - shortest.answer_start,
    )
