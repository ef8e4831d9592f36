"""The expensive half of preparing: read, understand, check and encode, one batch after the other.

Nothing holds all rows: they go from the files to the store on disk. While a batch is tokenised,
which takes no Python, the next one is read and rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.data import formats, pairs, splitting, templates
from lora_studio.data.checking.findings import Findings
from lora_studio.data.checking.inspector import Inspector
from lora_studio.data.encoding import ChatEncoder, Draft, Whole
from lora_studio.data.examples import Example, Record, Skipped
from lora_studio.data.layout import Leftovers
from lora_studio.data.reading.hub import HubSource
from lora_studio.data.reading.sources import Source, Unreadable, open_sources
from lora_studio.data.store import HELD, TRAIN, UNDECIDED, StoreWriter
from lora_studio.data.turns import UnusableRowError
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD = 200
"""So many rows of a file tell what it is."""
BATCH = 2000
MIXED = "mixed"
SHOWN_PAIRS = 3
EMPTY = ("data.skip_no_answer", "data.skip_empty_text")

Progress = Callable[[int, int], None]
Waiting = tuple[Sequence[Example], Sequence[Draft | DatasetError], "Future[list[list[int]]]"]


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


class Filling:
    """Fills a store with the rows of a recipe's data.

    Args:
        spec: The recipe's data section.
        tokenizer: The base model's; it is given a chat template where it lacks one.
        on_progress: Called with the number of rows encoded so far and 0, at last with all twice.
        token: For a gated dataset of the Hub.
    """

    def __init__(
        self,
        spec: DataSpec,
        tokenizer: PreTrainedTokenizerBase,
        on_progress: Progress,
        *,
        token: str | None = None,
    ) -> None:
        self._spec = spec
        self._token = token
        self._tokenizer = tokenizer
        self._on_progress = on_progress
        self._understood = Understood()
        self._leftovers = Leftovers()
        self._findings = Findings(spec.checks)
        self._inspector = Inspector(spec.checks, self._findings)
        self._refusal: DatasetError | None = None
        self._has_chats = False
        self._chat_encoder: ChatEncoder | None = None

    def fill(self, folder: Path) -> None:
        """Write all rows into an empty folder.

        Raises:
            DatasetError: If data cannot be read or understood, or a check says stop.
        """
        with self._sources() as found, StoreWriter(folder) as writer:
            self.write(self._examples(found), writer)
        self._inspector.finish()
        stops = self._findings.stopping()
        if stops is not None:
            raise stops
        if self._refusal is not None and not self._has_chats:
            raise self._refusal
        writer.merge(self._inspector.documents)
        self._on_progress(writer.rows, writer.rows)
        writer.finish(
            {
                "understood": self._understood.to_dict(),
                "skipped": dict(self._leftovers.counts),
                "listed": [asdict(row) for row in self._leftovers.listed],
                "findings": [asdict(finding) for finding in self._findings.listed()],
                "has_chats": self._has_chats,
            }
        )

    @contextmanager
    def _sources(self) -> Iterator[list[Source | HubSource]]:
        """Open the files and the Hub's dataset."""
        spec = self._spec
        hub = [HubSource(spec.hub, self._token)] if spec.hub.repo_id else []
        if not spec.files:
            yield [*hub]
            return
        with open_sources([Path(file) for file in spec.files], encoding=spec.encoding) as files:
            yield [*files, *hub]

    # From files to examples

    def _examples(self, sources: Iterable[Source | HubSource]) -> Iterator[Example]:
        """Yield what can be learned from; count the rest."""
        for source in sources:
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
        self._leftovers.add(Skipped(item.file, item.number, "data.skip_broken_rows"))

    def _is_too_odd(self, record: Record) -> bool:
        if not record.oddities:
            return False
        example = ", ".join(record.oddities)
        choice = self._findings.add("odd_values", record.file, record.number, example)
        if choice == "skip":
            self._leftovers.add(Skipped(record.file, record.number, "data.skip_odd_values"))
        return choice == "skip"

    def _checked(self, record: Record, meaning: formats.Meaning) -> Iterator[Example]:
        try:
            examples = meaning.examples(record)
        except UnusableRowError as error:
            if error.reason in EMPTY:
                self._findings.add("empty_answers", record.file, record.number, _brief(record))
            self._leftovers.add(Skipped(record.file, record.number, error.reason))
            return
        for example in examples:
            looked = self._inspector.look(example)
            if isinstance(looked, Skipped):
                self._leftovers.add(looked)
            else:
                yield looked

    # From examples to rows

    def write(self, examples: Iterable[Example], writer: StoreWriter) -> None:
        """Encode examples and write them, conversations of a batch at a time."""
        texts = _Texts(self._tokenizer, self._spec, writer)
        with ThreadPoolExecutor(1) as pool:
            waiting: Waiting | None = None
            for batch in _batches(examples):
                for example in batch:
                    if not example.is_chat:
                        texts.take(example)
                chats = [example for example in batch if example.is_chat]
                waiting = self._encode(chats, waiting, pool, writer)
                self._on_progress(writer.rows, 0)
            self._encode([], waiting, pool, writer)
        texts.finish()

    def _encode(
        self,
        chats: Sequence[Example],
        waiting: Waiting | None,
        pool: ThreadPoolExecutor,
        writer: StoreWriter,
    ) -> Waiting | None:
        """Start to tokenise conversations and meanwhile write those that waited before."""
        encoder = self._encoder(chats)
        coming: Waiting | None = None
        if chats and encoder:
            drafts = encoder.draft(chats)
            coming = chats, drafts, pool.submit(encoder.tokenise, drafts)
        if waiting is not None and self._chat_encoder:
            examples, waited, ids = waiting
            self._keep(examples, self._chat_encoder.assemble(waited, ids.result()), writer)
        return coming

    def _encoder(self, chats: Sequence[Example]) -> ChatEncoder | None:
        if self._chat_encoder is None and chats:
            templates.ensure_chat_template(self._tokenizer, self._spec.chat_template)
            self._chat_encoder = ChatEncoder(self._tokenizer)
        return self._chat_encoder

    def _keep(
        self,
        examples: Sequence[Example],
        rows: Sequence[Whole | DatasetError],
        writer: StoreWriter,
    ) -> None:
        kept, wholes = [], []
        for example, row in zip(examples, rows, strict=True):
            if isinstance(row, Whole):
                kept.append(example)
                wholes.append(row)
                continue
            self._refusal = self._refusal or row
            self._leftovers.add(Skipped(example.file, example.number, "data.skip_template_refuses"))
        self._has_chats = self._has_chats or bool(kept)
        writer.add(kept, wholes)


class _Texts:
    """Encodes plain texts: every token is trained on once, and an end token after each text.

    A few long texts are held out by their ends, many by whole texts: which of the two is known
    when the tenth text has come, or none comes any more.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, writer: StoreWriter
    ) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._writer = writer
        self._few: list[Example] | None = []

    def take(self, example: Example) -> None:
        """Encode a text, now or once it is known how many there are."""
        if self._few is None:
            self._encode(example, UNDECIDED)
            return
        self._few.append(example)
        if len({text.document for text in self._few}) >= splitting.ENOUGH_DOCUMENTS:
            few, self._few = self._few, None
            for text in few:
                self._encode(text, UNDECIDED)

    def finish(self) -> None:
        """Encode what has waited."""
        few, fraction = self._few or [], self._spec.eval_fraction
        ends = [splitting.split_tail(text.text, fraction) for text in few]
        is_split = any(tail for _, tail in ends)
        for example, (text, tail) in zip(few, ends, strict=True):
            self._encode(replace(example, text=text), TRAIN if is_split else UNDECIDED)
            if tail:
                self._encode(replace(example, text=tail), HELD)

    def _encode(self, example: Example, part: int) -> None:
        sections = splitting.sections(example.text, self._spec.cut_marker)
        blocks = [block for section in sections for block in splitting.blocks(section)]
        for at, text in enumerate(blocks):
            ids = templates.token_ids(self._tokenizer, [text])[0]
            if at == len(blocks) - 1:
                ids.append(self._tokenizer.eos_token_id)
            if ids:
                self._writer.add([replace(example, text=text)], [Whole(ids, (), text)], part=part)


def _possible(head: Iterable[Record], meaning: formats.Meaning) -> Iterator[Example]:
    """Yield the examples of those rows that give some."""
    for record in head:
        with suppress(UnusableRowError):
            yield from meaning.examples(record)


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    coming = iter(examples)
    while batch := list(islice(coming, BATCH)):
        yield batch


def _brief(record: Record) -> str:
    value = record.value
    return value if isinstance(value, str) else ", ".join(f"{k}: {v}" for k, v in value.items())


def _only(values: Iterable[str]) -> str:
    names = list(dict.fromkeys(values))
    return names[0] if len(names) == 1 else MIXED if names else ""
