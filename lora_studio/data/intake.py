"""Files into examples: read, understood and checked, one row after the other.

Nothing is held but what the report tells of: what the files are, what was found, what is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from lora_studio.data import formats, pairs
from lora_studio.data.checking.findings import EXAMPLE_LENGTH, Findings
from lora_studio.data.checking.inspector import Inspector
from lora_studio.data.examples import Example, Record, Skipped
from lora_studio.data.layout import Leftovers
from lora_studio.data.reading.hub import HubSource
from lora_studio.data.reading.sources import Source, Unreadable, open_sources
from lora_studio.data.turns import UnusableRowError
from lora_studio.recipe import DataSpec

HEAD = 200
"""So many rows of a file tell what it is."""
MIXED = "mixed"
SHOWN_PAIRS = 3
EMPTY = ("data.skip_no_answer", "data.skip_no_label", "data.skip_empty_text")


@dataclass(slots=True)
class Understood:
    """What the files turned out to be, for the report."""

    formats: dict[str, str] = field(default_factory=dict)
    encodings: dict[str, str | None] = field(default_factory=dict)
    columns: dict[str, Sequence[str]] = field(default_factory=dict)
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    unused_columns: dict[str, Sequence[str]] = field(default_factory=dict)
    pairs: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the one format and the one encoding where there is one."""
        encodings = list(filter(None, self.encodings.values()))
        common = {"format": _only(self.formats.values()), "encoding": _only(encodings)}
        return asdict(self) | common


class Intake:
    """Takes in the data of a recipe.

    Args:
        spec: The recipe's data section.
        token: For a gated dataset of the Hub.
    """

    def __init__(self, spec: DataSpec, *, token: str | None = None) -> None:
        self._spec = spec
        self._token = token
        self._understood = Understood()
        self._findings = Findings(spec.checks)
        self._inspector = Inspector(spec.checks, self._findings)
        self._sources: list[Source | HubSource] = []
        self.leftovers = Leftovers()

    @property
    def share(self) -> float:
        """How much of all files was read, 0 to 1; 0 where nothing can be said of one of them."""
        sizes = [source.size for source in self._sources]
        if not sizes or not all(sizes):
            return 0.0
        read = sum(source.size * source.position.share for source in self._sources)
        return read / sum(sizes)

    @property
    def documents(self) -> dict[str, str]:
        """Documents that have become part of another one; see `Inspector.documents`."""
        return self._inspector.documents

    @property
    def columns(self) -> list[str]:
        """Names of all columns seen so far."""
        found = self._understood.columns.values()
        return list(dict.fromkeys(name for names in found for name in names))

    @contextmanager
    def examples(self) -> Iterator[Iterator[Example]]:
        """Open the files and the Hub's dataset, and give what can be learned from.

        Raises:
            DatasetError: If data cannot be read or understood.
        """
        spec = self._spec
        hub = [HubSource(spec.hub, self._token)] if spec.hub.repo_id else []
        if not spec.files:
            self._sources = [*hub]
            yield self._of_all()
            return
        with open_sources([Path(file) for file in spec.files], encoding=spec.encoding) as files:
            self._sources = [*files, *hub]
            yield self._of_all()

    def keeps_misfit(self, example: Example, text: str) -> bool:
        """Note a conversation that the template marks wrongly; tell whether it is kept.

        Args:
            example: The conversation.
            text: As the template writes it.
        """
        end = text[-EXAMPLE_LENGTH:]
        choice = self._findings.add("answer_marks", example.file, example.number, end)
        if choice == "skip":
            self.leftovers.add(Skipped(example.file, example.number, "data.skip_answer_marks"))
        return choice != "skip"

    def finish(self) -> dict[str, Any]:
        """Return what was understood, left out and found, as plain values."""
        self._inspector.finish()
        return {
            "understood": self._understood.to_dict(),
            "skipped": dict(self.leftovers.counts),
            "listed": [asdict(row) for row in self.leftovers.listed],
            "findings": [asdict(finding) for finding in self._findings.listed()],
        }

    def _of_all(self) -> Iterator[Example]:
        for source in self._sources:
            self._understood.encodings[source.name] = source.encoding
            for name, items in groupby(source.records(), key=lambda item: item.file):
                yield from self._of_file(name, items)

    def _of_file(self, name: str, items: Iterator[Record | Unreadable]) -> Iterator[Example]:
        first = list(islice(items, HEAD))
        head = [item for item in first if isinstance(item, Record)]
        if not head:
            raise next(item.error for item in first if isinstance(item, Unreadable))
        meaning = formats.understand(name, head, self._spec)
        self._note(name, meaning, head)
        self._inspector.expect(_possible(head, meaning))
        for item in chain(first, items):
            self._understood.records += 1
            if isinstance(item, Unreadable):
                self._broken(item)
            elif not self._is_too_odd(item):
                yield from self._checked(item, meaning)

    def _note(self, name: str, meaning: formats.Meaning, head: Sequence[Record]) -> None:
        noted = self._understood
        noted.formats[name] = meaning.format
        if meaning.columns:
            noted.columns[name] = list(meaning.columns)
            noted.parts[name] = dict(meaning.parts)
        if meaning.unused:
            noted.unused_columns[name] = list(meaning.unused)
        document = head[0].value
        if isinstance(document, str) and pairs.looks_like(document):
            found = pairs.find(document)
            shown = [[pair.question, pair.answer] for pair in found[:SHOWN_PAIRS]]
            noted.pairs[name] = {"count": len(found), "examples": shown}

    def _broken(self, item: Unreadable) -> None:
        if self._findings.add("broken_rows", item.file, item.number, str(item.error)) == "stop":
            raise item.error
        self.leftovers.add(Skipped(item.file, item.number, "data.skip_broken_rows"))

    def _is_too_odd(self, record: Record) -> bool:
        if not record.oddities:
            return False
        example = ", ".join(record.oddities)
        choice = self._findings.add("odd_values", record.file, record.number, example)
        if choice == "skip":
            self.leftovers.add(Skipped(record.file, record.number, "data.skip_odd_values"))
        return choice == "skip"

    def _checked(self, record: Record, meaning: formats.Meaning) -> Iterator[Example]:
        try:
            examples = meaning.examples(record)
        except UnusableRowError as error:
            if error.reason in EMPTY:
                self._findings.add("empty_answers", record.file, record.number, _brief(record))
            self.leftovers.add(Skipped(record.file, record.number, error.reason))
            return
        for example in examples:
            looked = self._inspector.look(example)
            if isinstance(looked, Skipped):
                self.leftovers.add(looked)
            else:
                yield looked


def _possible(head: Iterable[Record], meaning: formats.Meaning) -> Iterator[Example]:
    """Yield the examples of those rows that give some."""
    for record in head:
        with suppress(UnusableRowError):
            yield from meaning.examples(record)


def _brief(record: Record) -> str:
    value = record.value
    return value if isinstance(value, str) else ", ".join(f"{k}: {v}" for k, v in value.items())


def _only(values: Iterable[str]) -> str:
    names = list(dict.fromkeys(values))
    return names[0] if len(names) == 1 else MIXED if names else ""
