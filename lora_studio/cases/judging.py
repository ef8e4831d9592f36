"""Judging: votes on answers, how often who wins, and lists of prompts put to everybody."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lora_studio.cases.adapters import Adapters
from lora_studio.cases.answers import Answers
from lora_studio.errors import RunError, StudioError
from lora_studio.hardware import Hardware
from lora_studio.judging.batch import Asked, Batch, Known, known, listed
from lora_studio.judging.contenders import Contender, Loaded
from lora_studio.judging.exporting import preferences_jsonl, votes_csv, votes_jsonl
from lora_studio.judging.filling import fill
from lora_studio.judging.store import NAME, VoteStore
from lora_studio.judging.winning import WinRate, win_rates
from lora_studio.settings import Settings

BATCHES = "batches"
MOST_TABLES = 30
"""So many tables are offered; older ones stay on disk."""
Kind = Literal["csv", "jsonl", "preferences"]


class Judging:
    """What one person thinks of answers.

    Args:
        settings: Where it is kept.
        hardware: Decides in which precision a base is held.
        adapters: Knows adapters by name.
        answers: Asks what a list of prompts asks.
    """

    def __init__(
        self, settings: Settings, hardware: Hardware, adapters: Adapters, answers: Answers
    ) -> None:
        self.votes = VoteStore(settings.private / NAME)
        self._batches = settings.private / BATCHES
        self._hardware = hardware
        self._adapters = adapters
        self._answers = answers

    def loaded(self, name: str, contenders: Sequence[Contender]) -> Loaded:
        """Return what stands behind names now, to be kept with a vote on what they answer.

        Args:
            name: The adapter whose base and precision are used.
            contenders: Who is asked.

        Raises:
            StudioError: If an adapter is not there.
        """
        precision = self._adapters.resolve(name).precision_on(self._hardware)
        names = {one for contender in contenders for one in contender.names}
        return Loaded(
            precision=precision,
            weights={one: self._adapters.resolve(one).weights() for one in names},
        )

    def win_rates(self, base: str | None = None) -> list[WinRate]:
        """Return how any two contenders on a base did against each other; see `judging.winning`.

        Raises:
            StudioError: If the votes cannot be read.
        """
        return win_rates(self.votes, base)

    def export(self, kind: Kind, folder: Path) -> Path:
        """Write all votes into a folder and return the file.

        Args:
            kind: A line for each answer, the votes as JSON Lines, or pairs of a chosen and a
                rejected answer, as trainers of preferences read them.
            folder: Where to.

        Raises:
            RunError: If nobody has voted, or no vote prefers one answer.
            StudioError: If the votes cannot be read.
        """
        votes = self.votes.all()
        if kind == "csv":
            file, text = folder / "votes.csv", votes_csv(votes)
            is_empty = text.count("\n") < 2
        else:
            write = votes_jsonl if kind == "jsonl" else preferences_jsonl
            file = folder / ("votes.jsonl" if kind == "jsonl" else "preferences.jsonl")
            text = "".join(write(votes))
            is_empty = not text
        if is_empty:
            raise RunError("judging.no_votes" if kind != "preferences" else "judging.no_preference")
        # A spreadsheet takes a file without this mark for one in the machine's own encoding.
        file.write_text(text, encoding="utf-8-sig" if kind == "csv" else "utf-8", newline="")
        return file

    def begin(self, asked: Asked) -> Batch:
        """Begin a table of answers to a list of prompts.

        Raises:
            RunError: If the disk does not take it.
        """
        return Batch.start(self._batches, asked)

    def tables(self) -> list[Known]:
        """Return what there is to say of the newest tables that can be read, the last one first."""
        found = []
        for name in listed(self._batches)[:MOST_TABLES]:
            with suppress(StudioError):
                found.append(known(self._batches, name))
        return found

    def open(self, name: str) -> Batch:
        """Return a table by its name.

        Raises:
            StudioError: If there is no such table, or it cannot be read.
        """
        return Batch.open(self._batches, name)

    def fill(self, batch: Batch, name: str, *, asker: str = "") -> Iterator[Mapping[str, Any]]:
        """Ask what is pending in a table; closing the iterator keeps what was answered.

        Args:
            batch: The table.
            name: The adapter whose base and precision are used.
            asker: Who asks, as `Answers.stop` knows them.

        Yields:
            As `judging.filling.fill`.

        Raises:
            StudioError: If the adapter is of another base than the table, if other weights than
                at its beginning would answer, or as `Answers.ask`, for what is not the fault of one
                prompt.
            RunError: If the disk does not take an answer.
        """
        source = self._adapters.resolve(name).source
        if source != batch.asked.base:
            raise StudioError("judging.other_base", base=batch.asked.base, name=name, source=source)
        changed = batch.asked.loaded.changed(self.loaded(name, batch.asked.contenders))
        if changed:
            raise StudioError("judging.other_weights", changed=changed)
        with self._answers.ticket(asker) as ticket:
            ask = functools.partial(self._answers.ask, name, ticket=ticket)
            yield from fill(batch, ask)
