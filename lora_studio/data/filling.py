"""Examples into a store of encoded rows, one batch after the other.

Nothing holds all rows: they go from the files to the store on disk. While a batch is tokenised,
which takes no Python, the next one is read and rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.data import labels, splitting, templates
from lora_studio.data.encoding import ChatEncoder, Draft, Whole
from lora_studio.data.examples import Example, Skipped
from lora_studio.data.intake import Intake
from lora_studio.data.store import HELD, TRAIN, UNDECIDED, StoreWriter
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 2000

Progress = Callable[[int, int], None]
Waiting = tuple[Sequence[Example], Sequence[Draft | DatasetError], "Future[list[list[int]]]"]


class Filling:
    """Fills a store with the rows of a recipe's data.

    Args:
        spec: The recipe's data section.
        tokenizer: The base model's; it is given a chat template where it lacks one.
        on_progress: Called with the number of rows written so far and about how many there will
            be: 0 while nothing can be said, at last how many there are. The share never falls.
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
        self._tokenizer = tokenizer
        self._on_progress = on_progress
        self._intake = Intake(spec, token=token)
        self._estimate = _Estimate()
        self._waiting: Waiting | None = None
        self._refusal: DatasetError | None = None
        self._has_chats = False
        self._chat_encoder: ChatEncoder | None = None

    def fill(self, folder: Path) -> None:
        """Write all rows into an empty folder.

        What the checks found is written too, also where the recipe says to stop at it.

        Raises:
            DatasetError: If data cannot be read or understood, or no row can be rendered.
        """
        with self._intake.examples() as examples, StoreWriter(folder) as writer:
            self.write(examples, writer)
        found = self._intake.finish()
        if self._refusal is not None and not self._has_chats:
            raise self._refusal
        writer.merge(self._intake.documents)
        self._on_progress(writer.rows, writer.rows)
        writer.finish(found | {"has_chats": self._has_chats})

    def write(self, examples: Iterable[Example], writer: StoreWriter) -> None:
        """Encode examples and write them, conversations of a batch at a time."""

        def tell() -> None:
            chats = len(self._waiting[0]) if self._waiting else 0
            coming = chats + texts.waiting
            total = self._estimate.total(writer.rows, coming=coming, share=self._intake.share)
            self._on_progress(writer.rows, total)

        texts = _Texts(self._tokenizer, self._spec, writer, on_block=tell)
        with ThreadPoolExecutor(1) as pool:
            for batch in _batches(examples):
                for example in batch:
                    if example.is_plain:
                        texts.take(example)
                self._label([example for example in batch if example.label], writer)
                chats = [example for example in batch if example.is_chat]
                self._encode(chats, pool, writer)
                tell()
            self._encode([], pool, writer)
        texts.finish()

    def _label(self, examples: Sequence[Example], writer: StoreWriter) -> None:
        """Write texts with their classes, as the tokenizer itself begins and ends them.

        Raises:
            DatasetError: If there are too many classes.
        """
        texts = [example.text for example in examples]
        ids = templates.token_ids(self._tokenizer, texts, add_special_tokens=True)
        writer.add(examples, [Whole(row, (), text) for row, text in zip(ids, texts, strict=True)])
        if len(writer.labels) > labels.MOST_CLASSES:
            columns = self._intake.columns
            labels.refuse_many(writer.labels, rows=writer.rows, columns=columns)

    def _encode(
        self, chats: Sequence[Example], pool: ThreadPoolExecutor, writer: StoreWriter
    ) -> None:
        """Start to tokenise conversations and meanwhile write those that waited before."""
        encoder = self._encoder(chats)
        coming: Waiting | None = None
        if chats and encoder:
            drafts = encoder.draft(chats)
            coming = chats, drafts, pool.submit(encoder.tokenise, drafts)
        if self._waiting is not None and self._chat_encoder:
            examples, waited, ids = self._waiting
            self._keep(examples, self._chat_encoder.assemble(waited, ids.result()), writer)
        self._waiting = coming

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
                if not row.marks_misfit or self._intake.keeps_misfit(example, row.text):
                    kept.append(example)
                    wholes.append(row)
                continue
            self._refusal = self._refusal or row
            refused = Skipped(example.file, example.number, "data.skip_template_refuses")
            self._intake.leftovers.add(refused)
        self._has_chats = self._has_chats or bool(kept)
        writer.add(kept, wholes)


class _Estimate:
    """About how many rows there will be, so that the share of those done never falls."""

    def __init__(self) -> None:
        self._last = (0, 1)

    def total(self, done: int, *, coming: int, share: float) -> int:
        """Return about how many rows there will be, never less than are done; 0 for unknown.

        Args:
            done: Rows written.
            coming: Rows read and not written yet.
            share: How much of the data was read, 0 to 1.
        """
        total = round((done + coming) / share) if share else 0
        done_before, total_before = self._last
        if done * total_before < done_before * total:
            total = done * total_before // done_before
        if total:
            self._last = done, total
        return total


class _Texts:
    """Encodes plain texts: every token is trained on once, and an end token after each text.

    A few long texts are held out by their ends, many by whole texts: which of the two is known
    when the tenth text has come, or none comes any more.

    Args:
        tokenizer: The base model's.
        spec: The recipe's data section.
        writer: Where the rows go.
        on_block: Called after each row that is not the last of its text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: DataSpec,
        writer: StoreWriter,
        *,
        on_block: Callable[[], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._writer = writer
        self._on_block = on_block
        self._few: list[Example] | None = []
        self._rest = 0

    @property
    def waiting(self) -> int:
        """About how many rows the texts give that came and are not encoded yet."""
        few = self._few or []
        return self._rest + sum(len(text.text) // splitting.LONGEST_BLOCK + 1 for text in few)

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
        for text, tail in ends:
            example = few.pop(0)
            self._encode(replace(example, text=text), TRAIN if is_split else UNDECIDED)
            if tail:
                self._encode(replace(example, text=tail), HELD)

    def _encode(self, example: Example, part: int) -> None:
        sections = splitting.sections(example.text, self._spec.cut_marker)
        blocks = [block for section in sections for block in splitting.blocks(section)]
        for at, text in enumerate(blocks, start=1):
            self._rest = len(blocks) - at
            ids = templates.token_ids(self._tokenizer, [text])[0]
            if not self._rest:
                ids.append(self._tokenizer.eos_token_id)
            if ids:
                self._writer.add([replace(example, text=text)], [Whole(ids, (), text)], part=part)
            if self._rest:
                self._on_block()


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    coming = iter(examples)
    while batch := list(islice(coming, BATCH)):
        yield batch
