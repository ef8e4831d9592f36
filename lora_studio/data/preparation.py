"""The whole way: files into encoded rows to learn from and to measure on, and a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_studio.data import files, formats, templates
from lora_studio.data.allocation import Tick, allocate_chats, allocate_texts
from lora_studio.data.encoding import Encoded
from lora_studio.data.examples import Example, Record, Skipped
from lora_studio.data.files import fingerprint
from lora_studio.data.preview import preview, try_out
from lora_studio.data.report import LISTED_SKIPS, MIXED, Report, count_rows
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prepared", "fingerprint", "prepare"]

LEAST_ROWS = 2
SHOWN_ROWS = 5

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything training needs of the data."""

    train: list[Encoded]
    """Rows to learn from, in the order of the files, conversations before plain texts."""
    evaluation: list[Encoded]
    """Rows held out; may be empty."""
    report: Report
    """What was understood."""

    def to_dataset(self, part: Literal["train", "evaluation"] = "train") -> Any:
        """Return one part as a `datasets.Dataset` with the columns `input_ids` and `labels`."""
        from datasets import Dataset, Features, List, Value

        rows: list[Encoded] = getattr(self, part)
        columns = {
            "input_ids": [row.input_ids for row in rows],
            "labels": [row.labels for row in rows],
        }
        features = Features({name: List(Value("int32")) for name in columns})
        return Dataset.from_dict(columns, features=features)


def prepare(
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    on_progress: Progress | None = None,
) -> Prepared:
    """Read, understand, hold out and encode the files of a recipe.

    The tokenizer is given a chat template and an id to pad with where it lacks them.

    Args:
        spec: The recipe's data section.
        tokenizer: The base model's.
        seed: Chooses what is held out.
        on_progress: Called with the number of examples encoded so far, and of all.

    Raises:
        DatasetError: If files cannot be read or understood, or fewer than two rows can be used.
        ModelError: If the tokenizer has no end token.
    """
    paths = [Path(file) for file in spec.files]
    records = files.read(paths)
    examples, skipped = formats.normalise(records, spec.format, spec.checks.empty_answers)
    chats = [example for example in examples if example.is_chat]
    texts = [example for example in examples if not example.is_chat]
    templates.ensure_end_token(tokenizer)
    if chats:
        templates.ensure_chat_template(tokenizer)

    tick = _counter(len(examples), on_progress)
    pairs = allocate_chats(chats, tokenizer, spec=spec, seed=seed, tick=tick)
    prose = allocate_texts(texts, tokenizer, spec=spec, seed=seed, tick=tick)
    train, held = pairs.train + prose.train, pairs.held + prose.held
    skipped = _in_order([*skipped, *pairs.skipped], records)
    usable = len(train.rows) + len(held.rows)
    if usable < LEAST_ROWS:
        raise _too_few(usable, rows=len(records), skipped=skipped)

    ends = templates.end_ids(tokenizer) if chats else frozenset({tokenizer.eos_token_id})
    report = Report(
        **_understood(records, spec),
        **count_rows(train.rows, held.rows),
        fingerprint=fingerprint(paths),
        rows=len(records),
        skipped_rows=len(skipped),
        skipped=tuple(skipped[:LISTED_SKIPS]),
        max_length=spec.max_length,
        plain_template=bool(chats) and templates.is_plain(tokenizer),
        examples=tuple(preview(row, tokenizer, ends) for row in train.rows[:SHOWN_ROWS]),
        prompts=_prompts([*held.examples, *train.examples]),
    )
    return Prepared(train.rows, held.rows, report)


def _counter(total: int, on_progress: Progress | None) -> Tick:
    """Return a function that adds up what is done and passes it on."""
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(done, total)

    return tick


def _understood(records: Sequence[Record], spec: DataSpec) -> dict[str, Any]:
    """Return the report's words on formats and columns."""
    found: dict[str, str] = {}
    unused: dict[str, tuple[str, ...]] = {}
    for file, group in formats.by_file(records).items():
        name = formats.recognise(group) if spec.format == "auto" else spec.format
        used = formats.parts_of(group, name).values()
        left = tuple(column for column in formats.columns_of(group) if column not in used)
        found[file] = name
        if left:
            unused[file] = left
    names = set(found.values())
    only = names.pop() if len(names) == 1 else MIXED
    return {"format": only, "formats": found, "unused_columns": unused}


def _in_order(skipped: Sequence[Skipped], records: Sequence[Record]) -> list[Skipped]:
    files_in_order = list(formats.by_file(records))
    return sorted(skipped, key=lambda row: (files_in_order.index(row.file), row.number))


def _prompts(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return try-out questions; a conversation's before a plain text's beginning."""
    chats = (example for example in examples if example.is_chat)
    texts = (example for example in examples if not example.is_chat)
    return try_out(chain(chats, texts))


def _too_few(usable: int, *, rows: int, skipped: Sequence[Skipped]) -> DatasetError:
    named = ", ".join(f"{row.file}:{row.number}" for row in skipped[:LEAST_ROWS])
    return DatasetError(
        "data.too_few_rows", usable=usable, rows=rows, skipped=len(skipped), named=named or "–"
    )
