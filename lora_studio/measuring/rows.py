"""The rows that a run held out, as its training wrote them down: nothing is read or drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_studio.data import templates
from lora_studio.data.encoding import IGNORE_INDEX
from lora_studio.data.examples import Message
from lora_studio.training.plan import evenly

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

MARK = "⁂"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRow:
    """One row that was never trained on."""

    ids: list[int]
    """Its token ids."""
    counted: list[bool]
    """Which of them are the answer's, its end included: those a training would learn."""
    prompt: str = ""
    """What stands before the last answer, as the model reads it; empty where nothing can be asked:
    a plain text, or a row that was cut within its answer."""
    question: str = ""
    """The prompt without what the chat template writes around it."""
    reference: str = ""
    """The last answer."""
    is_alone: bool = False
    """Whether the question is all that was said before: it can be asked again by itself."""
    label: int = -1
    """Number of its class, -1 where texts are not sorted."""

    @property
    def answer_tokens(self) -> int:
        """Counted tokens; of the first one of a row nothing can be predicted."""
        return sum(self.counted[1:])

    @property
    def last_answer_tokens(self) -> int:
        """Tokens of the last answer."""
        start, stop = _last_answer(self.counted)
        return stop - start


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Some of the rows that a run held out."""

    total: int = 0
    """How many were held out."""
    rows: tuple[HeldOutRow, ...] = ()
    """Those that are measured, evenly taken from all."""


def held_out(
    data: Path, tokenizer: PreTrainedTokenizerBase, count: int, *, is_text: bool = False
) -> HeldOut:
    """Read rows that a run held out.

    With as many rows as an evaluation of the training takes, they are the same.

    Args:
        data: The run's data folder.
        tokenizer: The one it was trained with, its chat template included.
        count: How many rows are wanted.
        is_text: Whether it learned plain text, which has no questions.
    """
    table = _table(data)
    if table is None:
        return HeldOut()
    chosen = evenly(len(table), min(count, len(table)))
    found = table.take(chosen).to_pylist()
    if "label" in table.column_names:
        rows = [HeldOutRow(ids=row["input_ids"], counted=[], label=row["label"]) for row in found]
    else:
        reader = None if is_text else _Reader(tokenizer)
        read = (_row(row["input_ids"], row["labels"], reader) for row in found)
        rows = [row for row in read if row.answer_tokens]
    return HeldOut(total=len(table), rows=tuple(rows))


def seen(rows: Sequence[HeldOutRow], data: Path) -> int | None:
    """Return how many rows stand, token for token, in what a run learned from.

    Args:
        rows: Those that are measured.
        data: The data folder of the run that made the adapter.

    Returns:
        None if what it learned from is not there any more.
    """
    table = _table(data, "train")
    if table is None:
        return None
    wanted = {tuple(row.ids) for row in rows}
    lengths = {len(ids) for ids in wanted}
    found = set()
    for batch in table.select(["input_ids"]).to_batches():
        column = batch.column(0)
        for at, length in enumerate(column.value_lengths().to_pylist()):
            if length in lengths:
                found.add(tuple(column[at].as_py()))
    return sum(tuple(row.ids) in found for row in rows)


def _table(data: Path, part: Literal["train", "evaluation"] = "evaluation") -> pa.Table | None:
    """Return what the training wrote: one file, or a folder of them in earlier versions."""
    import pyarrow as pa

    files = [data / f"{part}.arrow", *sorted(data.glob(f"{part}/*.arrow"))]
    tables = [
        pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files if file.is_file()
    ]
    return pa.concat_tables(tables) if tables else None


def _row(ids: list[int], labels: list[int], reader: _Reader | None) -> HeldOutRow:
    counted = [label != IGNORE_INDEX for label in labels]
    if reader is None:
        return HeldOutRow(ids=ids, counted=counted)
    prompt, question, reference = reader.read(ids, counted)
    return HeldOutRow(
        ids=ids,
        counted=counted,
        prompt=prompt,
        question=question,
        reference=reference,
        is_alone=bool(question) and reader.asks(question) == prompt,
    )


class _Reader:
    """Reads the last question and its answer out of a row's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._beginning = str(tokenizer.bos_token) if templates.adds_beginning(tokenizer) else ""
        self._ends = templates.end_ids(tokenizer)
        self._around = ("", "")
        if tokenizer.chat_template:
            asked = templates.render(tokenizer, [Message("user", MARK)], add_generation_prompt=True)
            before, _, after = asked.partition(MARK)
            self._around = before, after

    def read(self, ids: Sequence[int], counted: Sequence[bool]) -> tuple[str, str, str]:
        """Return the prompt, the question in it and the answer; empty texts if there are none."""
        start, stop = _last_answer(counted)
        if not start or ids[stop - 1] not in self._ends:
            return "", "", ""
        shown = templates.decoded(self._tokenizer, ids[:start], special=True)
        answer = templates.decoded(self._tokenizer, ids[start:stop])
        prompt = shown.removeprefix(self._beginning)
        if templates.token_ids(self._tokenizer, [prompt])[0] != self._asked(ids[:start]):
            return "", "", ""
        before, after = self._around
        question = shown.removesuffix(after)
        return prompt, question.removeprefix(before).strip(), answer.strip()

    def asks(self, question: str) -> str:
        """Return the prompt of a question that nothing was said before."""
        turns = [Message("user", question)]
        asked = templates.render(self._tokenizer, turns, add_generation_prompt=True)
        return asked.removeprefix(self._beginning)

    def _asked(self, ids: Sequence[int]) -> list[int]:
        """Return a prompt's tokens without the one that is put before each text."""
        return list(ids[1:] if self._beginning else ids)


def _last_answer(counted: Sequence[bool]) -> tuple[int, int]:
    """Return where the last run of counted tokens begins, and the place after its end."""
    stop = len(counted)
    while stop and not counted[stop - 1]:
        stop -= 1  # what the template writes after an answer's end
    start = stop
    while start and counted[start - 1]:
        start -= 1
    return start, stop
