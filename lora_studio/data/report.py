"""What was understood of the data, in numbers and samples, ready for the page and for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median_low
from typing import Any

from lora_studio.data.encoding import Encoded
from lora_studio.data.examples import Skipped
from lora_studio.data.preview import Preview

MIXED = "mixed"
HISTOGRAM_BARS = 20
LISTED_SKIPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the files.

    For pairs and conversations `rows == train_rows + eval_rows + skipped_rows`. A plain text counts
    as one row and becomes as many encoded rows as it has pieces of `max_length`.
    """

    format: str
    """The format of all files, or `mixed`."""
    formats: Mapping[str, str]
    """Each file's format."""
    unused_columns: Mapping[str, tuple[str, ...]]
    """Columns that are not learned from, for each file that has some."""
    fingerprint: str
    """SHA-256 of the files' contents."""
    rows: int
    """Rows and documents read."""
    train_rows: int
    """Encoded rows to learn from."""
    eval_rows: int
    """Encoded rows held out."""
    skipped_rows: int
    """Rows that are not used."""
    skipped: tuple[Skipped, ...]
    """The first 200 of them, each with its reason."""
    max_length: int
    """The longest an encoded row may be, in tokens."""
    tokens: int
    """Tokens in the rows to learn from."""
    trained_tokens: int
    """How many of those are trained on."""
    tokens_median: int
    """Median length of all encoded rows before cutting, in tokens."""
    tokens_longest: int
    """Longest encoded row before cutting, in tokens."""
    histogram: tuple[tuple[int, int, int], ...]
    """Lengths before cutting: (from, to, rows), both ends included."""
    truncated: int
    """Rows cut at `max_length`."""
    last_answer_only: int
    """Conversations of which only the last answer is trained on; see `encoding.encode_chats`."""
    plain_template: bool
    """Whether the tokenizer had no chat template and was given the plain one."""
    examples: tuple[Preview, ...]
    """The first rows to learn from, token by token."""
    prompts: tuple[str, ...]
    """Questions to try out, held-out ones first."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain lists, dicts and numbers."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}


def count_rows(train: Sequence[Encoded], evaluation: Sequence[Encoded]) -> dict[str, Any]:
    """Return the report's numbers of rows and tokens."""
    rows = [*train, *evaluation]
    lengths = [row.length for row in rows]
    return {
        "train_rows": len(train),
        "eval_rows": len(evaluation),
        "tokens": sum(len(row.input_ids) for row in train),
        "trained_tokens": sum(row.trained_tokens for row in train),
        "tokens_median": median_low(lengths),
        "tokens_longest": max(lengths),
        "histogram": histogram(lengths),
        "truncated": sum(row.truncated for row in rows),
        "last_answer_only": sum(row.last_answer_only for row in rows),
    }


def histogram(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Count lengths in at most twenty bars of equal width."""
    low, high = min(lengths), max(lengths)
    width = (high - low) // HISTOGRAM_BARS + 1
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    starts = range(low, high + 1, width)
    return tuple((at, at + width - 1, count) for at, count in zip(starts, counts, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Preview):
        return value.to_dict()
    if isinstance(value, Skipped):
        return {"file": value.file, "number": value.number, "reason": value.reason}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
