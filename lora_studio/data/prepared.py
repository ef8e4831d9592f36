"""What preparing gives: rows to learn from and to measure on, read from disk, and the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_studio.data.encoding import Encoded, Whole
from lora_studio.data.layout import Classes, Layout, Part, encoded
from lora_studio.data.preview import Sample, sample
from lora_studio.data.report import Report
from lora_studio.data.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAGE_ROWS = 5


@dataclass(frozen=True, slots=True)
class Rows(Sequence[Encoded]):
    """One part of the rows, read from disk when they are asked for."""

    store: Store
    part: Part
    prefix: list[int]
    """Put before each piece of a text."""
    classes: Classes = field(default_factory=Classes)
    """The classes of the texts; none unless texts are classified."""

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, at: Any) -> Any:
        """Return a row, or a list of rows for a slice."""
        if isinstance(at, slice):
            return [self[position] for position in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        row = int(self.part.row[at])
        return self._encoded(self.store.whole(row), at)

    def __iter__(self) -> Iterator[Encoded]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[Encoded]]:
        """Yield the rows in order, some thousand at a time."""
        at = 0
        for wholes in self.store.batches(self.part.row):
            yield [self._encoded(whole, at + place) for place, whole in enumerate(wholes)]
            at += len(wholes)

    def sample(self, at: int, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> Sample:
        """Return one row token by token; `ends` are the tokens that end an answer."""
        file, number = self.store.place(int(self.part.row[at]))
        return sample(self[at], file, number, tokenizer, ends, labels=self.classes.names)

    def _encoded(self, whole: Whole, at: int) -> Encoded:
        if self.classes.names:
            start, stop = int(self.part.start[at]), int(self.part.stop[at])
            label = int(self.classes.ids[whole.label])
            return Encoded.classified(whole, start, stop, beginning=self.prefix, label=label)
        is_text = bool(self.store.index.is_text[self.part.row[at]])
        return encoded(whole, self.part, at, prefix=self.prefix, is_text=is_text)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything training needs of the data."""

    train: Rows
    """Rows to learn from, in the order of the files, conversations before plain texts."""
    evaluation: Rows
    """Rows held out; may be empty."""
    report: Report
    """What was understood."""
    layout: Layout = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    ends: frozenset[int]
    """Tokens that end an answer."""

    def to_dataset(self, folder: Path, part: Literal["train", "evaluation"] = "train") -> Any:
        """Write one part into a folder as Arrow.

        Returns:
            A `datasets.Dataset` of it with the columns `input_ids` and `labels`: a label for each
            token, or the id of the text's class (int32).
        """
        import pyarrow as pa
        from datasets import Dataset

        tokens, single = pa.list_(pa.int32()), pa.int32()
        labels = ("label", single) if self.report.labels else ("labels", tokens)
        columns = (("input_ids", tokens), labels)
        schema = pa.schema([("input_ids", tokens), ("labels", labels[1])])
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{part}.arrow"
        # Renamed when it is whole: processes that train together each write it, and read their own.
        partial = file.with_suffix(f".{os.getpid()}")
        rows: Rows = getattr(self, part)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in rows.batches():
                arrays = [
                    pa.array([getattr(row, name) for row in batch], kind) for name, kind in columns
                ]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        partial.replace(file)
        return Dataset.from_file(str(file))

    def page(
        self, part: Literal["train", "evaluation", "skipped"], number: int, search: str = ""
    ) -> dict[str, Any]:
        """Return ten rows to look at.

        Args:
            part: Which rows.
            number: Which page, from 1; one beyond the last is the last.
            search: Only rows that contain this, whatever its case.

        Returns:
            `total` rows, `pages`, the `page`, and `rows` as samples, or as file, number and reason
            for those skipped (of which the first 200 are known by name).
        """
        wanted = search.casefold()
        if part == "skipped":
            listed = self.layout.leftovers.listed
            named = [row for row in listed if wanted in f"{row.file}:{row.number}".casefold()]
            return _page(named, number, asdict)
        return _page(self._found(part, wanted), number, lambda at: self.sample(part, at).to_dict())

    def sample(self, part: Literal["train", "evaluation"], at: int) -> Sample:
        """Return one row token by token."""
        rows: Rows = getattr(self, part)
        return rows.sample(at, self.tokenizer, self.ends)

    def _found(self, part: Literal["train", "evaluation"], search: str) -> Sequence[int]:
        rows: Rows = getattr(self, part)
        if not search:
            return range(len(rows))
        hit = rows.store.containing(search)[rows.part.row]
        is_text = rows.store.index.is_text[rows.part.row]
        return [
            at
            for at in hit.nonzero()[0].tolist()
            # A text's row has several pieces: those that hold the words are shown.
            if not is_text[at]
            or search in str(self.tokenizer.decode(rows[at].input_ids)).casefold()
        ]


def _page(found: Sequence[Any], number: int, show: Callable[[Any], Any]) -> dict[str, Any]:
    pages = max(1, -(-len(found) // PAGE_ROWS))
    number = min(max(number, 1), pages)
    shown = found[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]
    rows = [show(entry) for entry in shown]
    return {"total": len(found), "pages": pages, "page": number, "rows": rows}
