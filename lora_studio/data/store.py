"""Encoded rows on disk: token ids and texts as Arrow, and an index of numbers in memory.

What is asked often (lengths, what is trained, where a row comes from) is in the index, some sixty
bytes a row; token ids stay on disk and are read by row. So a gigabyte of data is prepared without
holding it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lora_studio.data import labels
from lora_studio.data.encoding import Whole
from lora_studio.data.examples import Example
from lora_studio.data.preview import question
from lora_studio.data.splitting import Numbers

if TYPE_CHECKING:
    import pyarrow as pa

ROWS, INDEX, META = "rows.arrow", "index.npz", "meta.json"
READ_ROWS = 2048
EXCERPT, QUESTION = 160, 2000
"""Characters that are kept of a row as an example, and of its question."""

UNDECIDED, TRAIN, HELD = -1, 0, 1
"""Whether a row is held out: decided with all others, or already when it was cut off a text."""


@dataclass(frozen=True, slots=True)
class Index:
    """What is known of every row, a number each."""

    source: Numbers
    """Position of its file in the store's list of files (int32)."""
    number: Numbers
    """Row number in that file (int64)."""
    document: Numbers
    """Same for rows that are held out together (uint64)."""
    content: Numbers
    """Hash of the whole text (uint64)."""
    length: Numbers
    """Tokens (int32)."""
    is_text: Numbers
    """Whether it is a part of a plain text, not a conversation (bool)."""
    part: Numbers
    """UNDECIDED, TRAIN or HELD (int8)."""
    last_only: Numbers
    """Whether only the last answer is trained on (bool)."""
    label: Numbers
    """Place of its class among the labels of the store, -1 for none (int32)."""
    span_row: Numbers
    """The row of each trained span (int64); a text has none, all of it is trained."""
    span_start: Numbers
    """First token of each trained span (int32)."""
    span_stop: Numbers
    """The token after its last (int32)."""

    def __len__(self) -> int:
        return len(self.length)


class StoreWriter:
    """Writes rows one batch after the other.

    Args:
        folder: An empty folder.
    """

    COLUMNS = (
        ("source", "i"), ("number", "q"), ("document", "Q"), ("content", "Q"), ("length", "i"),
        ("is_text", "b"), ("part", "b"), ("last_only", "b"), ("label", "i"), ("span_row", "q"),
        ("span_start", "i"), ("span_stop", "i"),
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self._pa = pa
        self._folder = folder
        self._schema = _schema()
        self._columns = {name: array(code) for name, code in self.COLUMNS}
        self._files: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        """Names of classes and their numbers, in the order in which they came."""
        self._sink = pa.OSFile(str(folder / ROWS), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self._schema)
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._sink.close()

    def add(
        self, examples: Sequence[Example], rows: Sequence[Whole], *, part: int = UNDECIDED
    ) -> None:
        """Write rows with the examples they come from."""
        files, first = self._files, self.rows
        self.rows += len(rows)
        spans = [(at, *span) for at, row in enumerate(rows, first) for span in row.spans]
        values: dict[str, Iterable[int]] = {
            "source": [files.setdefault(example.file, len(files)) for example in examples],
            "number": [example.number for example in examples],
            "document": [int(example.document, 16) for example in examples],
            "content": [_hash(row.text) for row in rows],
            "length": [len(row.ids) for row in rows],
            "is_text": [example.is_plain for example in examples],
            "part": [part] * len(rows),
            "last_only": [row.last_answer_only for row in rows],
            "label": [self._label(example.label) for example in examples],
            "span_row": [at for at, _, _ in spans],
            "span_start": [start for _, start, _ in spans],
            "span_stop": [stop for _, _, stop in spans],
        }
        for name, column in self._columns.items():
            column.extend(values[name])
        self._write(rows, examples)

    def _label(self, name: str) -> int:
        return self.labels.setdefault(name, len(self.labels)) if name else -1

    def _write(self, rows: Sequence[Whole], examples: Sequence[Example]) -> None:
        pa, schema = self._pa, self._schema
        ids = np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32)
        ends = np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int32)
        arrays = [
            pa.ListArray.from_arrays(ends, ids),
            pa.array([row.text for row in rows], schema.field(1).type),
            pa.array([question(item)[:QUESTION] for item in examples], pa.string()),
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=schema))

    def merge(self, documents: Mapping[str, str]) -> None:
        """Give documents the name of another one they have become part of."""
        if not documents:
            return
        known = {int(name, 16): int(other, 16) for name, other in documents.items()}
        column = self._columns["document"]
        for at, name in enumerate(column):
            column[at] = known.get(name, name)

    def finish(self, meta: dict[str, Any]) -> None:
        """Write the index, and what else is to be remembered with the rows."""
        kinds = {"is_text": bool, "last_only": bool}
        arrays = {
            name: np.asarray(values, dtype=kinds.get(name, values.typecode))
            for name, values in self._columns.items()
        }
        names = labels.ordered(self.labels)
        places = np.argsort([self.labels[name] for name in names])
        if names:
            arrays["label"] = places[arrays["label"]].astype("int32")
        np.savez(self._folder / INDEX, allow_pickle=False, **arrays)
        known = {"files": list(self._files), "labels": names}
        text = json.dumps(meta | known, ensure_ascii=False)
        (self._folder / META).write_text(text, encoding="utf-8")


class Store:
    """Rows that were written; opened as often as needed.

    Args:
        folder: What a `StoreWriter` has filled.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
        with np.load(folder / INDEX) as arrays:
            self.index = Index(**{name: arrays[name] for name, _ in StoreWriter.COLUMNS})

    @property
    def files(self) -> list[str]:
        """Names of the files, by position."""
        names: list[str] = self.meta["files"]
        return names

    def whole(self, row: int) -> Whole:
        """Return one row."""
        return self._read(row, self._table.slice(row, 1).to_pylist()[0])

    def batches(self, rows: Numbers) -> Iterator[list[Whole]]:
        """Yield the given rows in their order, some thousand at a time."""
        for start in range(0, len(rows), READ_ROWS):
            chosen = rows[start : start + READ_ROWS]
            found = self._table.take(chosen).to_pylist()
            yield [
                self._read(row, entry) for row, entry in zip(chosen.tolist(), found, strict=True)
            ]

    def question(self, row: int) -> str:
        """Return what to try a row out with."""
        return str(self._table["question"][row].as_py())

    def spans(self, row: int) -> tuple[tuple[int, int], ...]:
        """Return what is trained on in a conversation; nothing for a text."""
        index = self.index
        first, last = np.searchsorted(index.span_row, [row, row + 1])
        starts, stops = index.span_start[first:last], index.span_stop[first:last]
        return tuple(zip(starts.tolist(), stops.tolist(), strict=True))

    def order(self, file: str) -> int:
        """Return where a file stands among all."""
        return list(self.meta["understood"]["formats"]).index(file)

    def place(self, row: int) -> tuple[str, int]:
        """Return the name of a row's file and its number there."""
        return self.files[self.index.source[row]], int(self.index.number[row])

    def excerpt(self, row: int) -> str:
        """Return how a row begins, to tell it from others."""
        return self.whole(row).text[:EXCERPT]

    def tail(self, row: int) -> str:
        """Return how a row ends."""
        return self.whole(row).text[-EXCERPT:]

    def containing(self, text: str) -> Numbers:
        """Return which rows contain a text, whatever its case (bool, one per row)."""
        from pyarrow import compute

        found = compute.match_substring(self._table["text"], text, ignore_case=True)
        return np.asarray(found.combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)

    def _read(self, row: int, found: Mapping[str, Any]) -> Whole:
        index = self.index
        return Whole(
            found["input_ids"],
            self.spans(row),
            found["text"],
            last_answer_only=bool(index.last_only[row]),
            label=int(index.label[row]),
        )

    @cached_property
    def _table(self) -> pa.Table:
        import pyarrow as pa

        return pa.ipc.open_stream(pa.memory_map(str(self.folder / ROWS))).read_all()


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("text", pa.large_string()),
            ("question", pa.string()),
        ]
    )


def _hash(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
