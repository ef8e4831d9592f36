"""What was understood of the data, in numbers and samples, ready for the page and for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lora_studio.data import classes
from lora_studio.data.checking.findings import Finding
from lora_studio.data.examples import Skipped
from lora_studio.data.layout import Layout, trained_tokens
from lora_studio.data.preview import Sample
from lora_studio.data.splitting import Numbers
from lora_studio.data.store import Store
from lora_studio.recipe import choices

HISTOGRAM_BARS = 20
MOST_LENGTHS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the data.

    A row is a conversation, or a piece of a plain text: what the model is given at once. Always
    `rows == trained_rows + eval_rows + sum(skipped.values())`.
    """

    format: str
    """The format of all files, or `mixed`."""
    formats: Mapping[str, str]
    """Each file's format."""
    encoding: str
    """The character encoding of all text files, or `mixed`; empty where there are none."""
    encodings: Mapping[str, str | None]
    """Each file's; None for a kind of file that has none."""
    columns: Mapping[str, Sequence[str]]
    """Each table's columns."""
    parts: Mapping[str, Mapping[str, str]]
    """For each table which column holds which part."""
    unused_columns: Mapping[str, Sequence[str]]
    """Columns that are not learned from, for each file that has some."""
    pairs: Mapping[str, Mapping[str, Any]]
    """For each document that looks like questions and answers how many, and the first three."""
    fingerprint: str
    """SHA-256 of what was read."""
    records: int
    """Rows of tables and documents read."""
    rows: int
    """Conversations and pieces of texts."""
    trained_rows: int
    """Those to learn from."""
    eval_rows: int
    """Those held out."""
    skipped: Mapping[str, int]
    """Those not used: how many for each reason, a key of the string table."""
    skipped_rows: Sequence[Skipped]
    """The first 200 of them."""
    findings: Sequence[Finding]
    """What the checks found."""
    max_length: int
    """The longest a row may be, in tokens."""
    tokens: int
    """Tokens in the rows to learn from."""
    shared_tokens: int
    """So many tokens all rows to learn from begin with, as far as 64 of them show."""
    trained_tokens: int
    """How many of those are trained on; for classified texts the rows, as each has one label."""
    labels: Sequence[tuple[str, int, int]]
    """The classes in the order of their ids, each with its rows to learn from and those held out;
    none unless texts are classified."""
    tokens_median: int
    """Median length of all rows before cutting, in tokens."""
    tokens_longest: int
    """The longest row before cutting, in tokens."""
    histogram: Sequence[tuple[int, int, int]]
    """Lengths before cutting: (from, to, rows), both ends included."""
    lengths: Sequence[tuple[int, int]]
    """Lengths of all conversations before cutting, those left out included, and how many have each;
    rounded up where there are more than 500 lengths."""
    truncated: int
    """Rows cut at `max_length`."""
    last_answer_only: int
    """Conversations of which only the last answer is trained on; see `encoding.ChatEncoder`."""
    own_template: str
    """Name of the chat template that the tokenizer was given for lack of its own, or empty."""
    samples: Sequence[Sample]
    """The first rows to learn from, token by token."""
    prompts: Sequence[str]
    """Questions to try out, held-out ones first."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain lists, dicts and numbers."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}


def numbers(store: Store, layout: Layout, *, beginning: int) -> dict[str, Any]:
    """Return the report's numbers of rows and tokens.

    Args:
        store: The encoded rows.
        layout: Where they went.
        beginning: Number of tokens put before each piece of a text.
    """
    index = store.index
    parts = (layout.train, layout.evaluation)
    used, whole = [], []
    for part in parts:
        is_text = index.is_text[part.row]
        used.append(part.stop - part.start + beginning * is_text)
        whole.append(np.where(is_text, used[-1], index.length[part.row]))
    before, after = np.concatenate(whole), np.concatenate(used)
    rows = np.concatenate([part.row for part in parts])
    skipped = dict(layout.leftovers.counts)
    is_sorted = bool(layout.classes.names)
    return {
        "rows": len(before) + sum(skipped.values()),
        "trained_rows": len(layout.train),
        "eval_rows": len(layout.evaluation),
        "skipped": skipped,
        "skipped_rows": tuple(layout.leftovers.listed),
        "tokens": int(used[0].sum()),
        "trained_tokens": len(used[0]) if is_sorted else trained_tokens(index, layout.train),
        "labels": classes.counts(store, layout) if is_sorted else (),
        "tokens_median": int(np.percentile(before, 50, method="lower")),
        "tokens_longest": int(before.max()),
        "histogram": histogram(before),
        "lengths": _lengths(index.length[~index.is_text]),
        "truncated": int((before > after).sum()),
        "last_answer_only": int(index.last_only[rows].sum()),
    }


def histogram(lengths: Numbers) -> tuple[tuple[int, int, int], ...]:
    """Count lengths in at most twenty bars of equal width."""
    low, high = int(lengths.min()), int(lengths.max())
    width = (high - low) // HISTOGRAM_BARS + 1
    counts = np.bincount((lengths - low) // width)
    starts = range(low, high + 1, width)
    return tuple(
        (at, at + width - 1, count) for at, count in zip(starts, counts.tolist(), strict=True)
    )


def _lengths(lengths: Numbers) -> tuple[tuple[int, int], ...]:
    """Count lengths, in steps that leave at most five hundred of them."""
    step = int(lengths.max(initial=0)) // MOST_LENGTHS + 1
    found, counts = np.unique(-(-lengths // step) * step, return_counts=True)
    return tuple(zip(found.tolist(), counts.tolist(), strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Sample):
        return value.to_dict()
    if isinstance(value, Finding):
        return value.to_dict() | {"choices": list(choices(value.check))}
    if isinstance(value, Skipped):
        return [value.file, value.number, value.reason]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
