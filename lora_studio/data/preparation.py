"""The whole way: files into encoded rows to learn from and to measure on, and a report."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_studio.data import templates
from lora_studio.data.cache import Cache
from lora_studio.data.checking.findings import Finding, Findings
from lora_studio.data.encoding import Encoded, pieces
from lora_studio.data.examples import Skipped
from lora_studio.data.filling import Filling
from lora_studio.data.layout import Layout, Leftovers, Part, encoded, lay_out
from lora_studio.data.preview import Sample, first_different, sample
from lora_studio.data.reading import hub
from lora_studio.data.reading.sources import fingerprint
from lora_studio.data.report import Report, numbers
from lora_studio.data.store import Store
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prepared", "Rows", "fingerprint", "prepare"]

VERSION = 1
"""Counted up when the same data and settings give other rows than before."""
LEAST_ROWS = 2
SHOWN_ROWS = 5
PAGE_ROWS = 10
PROMPTS_FROM = 50
"""Rows of each part that are looked through for different questions."""
# Settings that change which rows are used and where they are cut, not what they are.
LAYOUT_SETTINGS = ("files", "max_length", "truncation", "chunk_overlap")
LAYOUT_CHECKS = ("lost_ends", "leaks")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Rows(Sequence[Encoded]):
    """One part of the rows, read from disk when they are asked for."""

    store: Store
    part: Part
    prefix: list[int]
    """Put before each piece of a text."""

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

    def _encoded(self, whole: Any, at: int) -> Encoded:
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
            A `datasets.Dataset` of it with the columns `input_ids` and `labels`.
        """
        import pyarrow as pa
        from datasets import Dataset

        kind = pa.list_(pa.int32())
        schema = pa.schema([("input_ids", kind), ("labels", kind)])
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{part}.arrow"
        rows: Rows = getattr(self, part)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in rows.batches():
                columns = [
                    pa.array([getattr(row, name) for row in batch], kind) for name in schema.names
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
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
        return _sample(getattr(self, part), at, self.tokenizer, self.ends)

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


def prepare(
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    on_progress: Progress | None = None,
    *,
    cache: Path | None = None,
    token: str | None = None,
) -> Prepared:
    """Read, understand, check, encode, hold out and cut the data of a recipe.

    The tokenizer is given a chat template and an id to pad with where it lacks them. Rows are
    encoded only where the cache does not have them from before.

    Args:
        spec: The recipe's data section.
        tokenizer: The base model's.
        seed: Chooses what is held out.
        on_progress: Called with the number of rows encoded so far, and of all (0 while unknown).
        cache: Where encoded rows are kept; None for a temporary folder.
        token: For a gated dataset of the Hub.

    Raises:
        DatasetError: If files cannot be read or understood, a check says stop, or fewer than two
            rows can be used.
        ModelError: If the tokenizer has no end token.
    """
    templates.ensure_end_token(tokenizer)
    paths = [Path(file) for file in spec.files]
    if not spec.has_source:
        raise DatasetError("data.no_files")
    read = fingerprint(paths) if paths else ""
    if spec.hub.repo_id:
        read = hashlib.sha256((read + hub.fingerprint(spec.hub, token)).encode()).hexdigest()
    filling = Filling(spec, tokenizer, on_progress or (lambda _done, _total: None), token=token)
    if cache is None:
        store = _temporary(filling)
    else:
        store = Store(Cache(cache).get(_depends_on(spec, tokenizer, read), filling.fill))
    chats = store.meta["has_chats"]
    if chats:
        templates.ensure_chat_template(tokenizer, spec.chat_template)
    prefix = [tokenizer.bos_token_id] if templates.adds_beginning(tokenizer) else []
    findings = Findings(spec.checks)
    layout = lay_out(
        store,
        spec,
        seed=seed,
        beginning=len(prefix),
        piece=pieces(tokenizer),
        findings=findings,
        leftovers=_left_before(store),
    )
    _refuse(layout, findings, store)
    train, held = (Rows(store, part, prefix) for part in (layout.train, layout.evaluation))
    ends = templates.end_ids(tokenizer) if chats else frozenset({tokenizer.eos_token_id})
    samples = [_sample(train, at, tokenizer, ends) for at in range(min(SHOWN_ROWS, len(train)))]
    report = Report(
        **store.meta["understood"],
        **numbers(store, layout, beginning=len(prefix)),
        fingerprint=read,
        findings=(*_found_before(store), *findings.listed()),
        max_length=spec.max_length,
        own_template=(chats and templates.name_of(tokenizer)) or "",
        samples=tuple(samples),
        prompts=_prompts(store, layout),
    )
    return Prepared(train, held, report, layout, tokenizer, ends)


def _sample(
    rows: Rows, at: int, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]
) -> Sample:
    file, number = rows.store.place(int(rows.part.row[at]))
    return sample(rows[at], file, number, tokenizer, ends)


def _temporary(filling: Filling) -> Store:
    """Fill a store that is gone from the disk when nobody holds it any more."""
    folder = Path(tempfile.mkdtemp(prefix="lora-studio-"))
    try:
        filling.fill(folder)
        store = Store(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store


def _page(found: Sequence[Any], number: int, show: Callable[[Any], Any]) -> dict[str, Any]:
    pages = max(1, -(-len(found) // PAGE_ROWS))
    number = min(max(number, 1), pages)
    shown = found[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]
    rows = [show(entry) for entry in shown]
    return {"total": len(found), "pages": pages, "page": number, "rows": rows}


def _depends_on(spec: DataSpec, tokenizer: PreTrainedTokenizerBase, read: str) -> dict[str, Any]:
    """Return all that encoded rows follow from."""
    settings = asdict(spec)
    for name in LAYOUT_SETTINGS:
        del settings[name]
    for name in LAYOUT_CHECKS:
        del settings["checks"][name]
    names = [Path(file).name for file in spec.files]
    return {
        "version": VERSION,
        "data": read,
        "names": names,
        "tokenizer": _tokenizer_hash(tokenizer),
        "settings": settings,
    }


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))
    parts = (whole, str(tokenizer.chat_template), repr(tokenizer.special_tokens_map))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _found_before(store: Store) -> list[Finding]:
    """Return what the checks found while the rows were read."""
    return [
        Finding(**entry | {"rows": tuple((file, number) for file, number in entry["rows"])})
        for entry in store.meta["findings"]
    ]


def _left_before(store: Store) -> Leftovers:
    """Return the rows that were left out while they were read."""
    listed = [Skipped(**entry) for entry in store.meta["listed"]]
    return Leftovers(Counter(store.meta["skipped"]), listed)


def _refuse(layout: Layout, findings: Findings, store: Store) -> None:
    """Refuse what a check says stop to, and data that leaves nothing to learn from.

    Raises:
        DatasetError: Naming the check and its rows, or how many rows can be used.
    """
    stops = findings.stopping()
    if stops is not None:
        raise stops
    usable = len(layout.train) + len(layout.evaluation)
    if usable >= LEAST_ROWS:
        return
    named = ", ".join(f"{row.file}:{row.number}" for row in layout.leftovers.listed[:LEAST_ROWS])
    raise DatasetError(
        "data.too_few_rows",
        usable=usable,
        rows=store.meta["understood"]["records"],
        skipped=layout.leftovers.counts.total(),
        named=named or "–",
    )


def _prompts(store: Store, layout: Layout) -> tuple[str, ...]:
    """Return try-out questions: held-out ones first, a conversation's before a text's beginning."""
    rows = [*layout.evaluation.row[:PROMPTS_FROM], *layout.train.row[:PROMPTS_FROM]]
    rows.sort(key=lambda row: bool(store.index.is_text[row]))
    return first_different(store.question(row) for row in rows)
