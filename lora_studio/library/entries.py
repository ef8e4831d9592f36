"""Runs and adapters as one table: what stands in it, what is looked for, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lora_studio.errors import StudioError
from lora_studio.library.about import About, read_about
from lora_studio.library.facts import Facts, FactsBook
from lora_studio.library.names import (
    RECORDED,
    Origin,
    adapter_folders,
    read_origin,
    run_folders,
)
from lora_studio.settings import Settings

Kind = Literal["run", "adapter", "recorded"]
KINDS: tuple[Kind, ...] = ("run", "adapter", "recorded")
COLUMNS = (
    "star", "name", "base", "data", "r", "steps", "status", "loss", "bytes", "created",
)  # fmt: skip
"""What the table can be ordered by."""
FALLING = frozenset({"star", "created", "bytes", "steps"})
"""Columns whose largest stands first when they are chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row: a run, or an adapter that no run here made."""

    kind: Kind
    """`recorded` is shipped with the program and cannot be changed."""
    id: str
    folder: Path
    facts: Facts
    about: About
    origin: Origin | None = None
    """Where an adapter has come from."""

    @property
    def name(self) -> str:
        """What it is shown as."""
        return self.about.name or self.id

    @property
    def text(self) -> str:
        """What a search looks through, in small letters."""
        about = self.about
        words = (self.id, about.name, self.facts.base, self.facts.data, about.note, *about.tags)
        return "\n".join(words).casefold()

    @property
    def can_answer(self) -> bool:
        """Whether there is an adapter to use, and all that is needed to use it can be read."""
        return self.facts.has_adapter and self.facts.problem is None

    @property
    def problem(self) -> StudioError | None:
        """Why its files cannot be read, None if they can."""
        key = self.facts.problem
        return None if key is None else StudioError(key, name=self.id)

    @property
    def doubt(self) -> StudioError | None:
        """Why its base may be another than the one it was trained on, None if nothing says so."""
        if self.origin is None or self.origin.trained_on is None:
            return None
        return StudioError(
            "library.other_name", trained_on=self.origin.trained_on, base=self.facts.base
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        facts = asdict(self.facts)
        del facts["problem"], facts["source"]
        return {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            **facts,
            "tags": list(self.about.tags),
            "note": self.about.note,
            "star": self.about.star,
            "origin": None if self.origin is None else asdict(self.origin),
        }


class Table:
    """One person's runs and adapters.

    Args:
        settings: Where they are.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._book = FactsBook(settings.private / "library.json")

    def entries(self) -> list[Entry]:
        """Return every run and adapter, the newest first."""
        runs, adapters = run_folders(self._settings), adapter_folders(self._settings)
        facts = self._book.of(runs, adapters)
        found = [
            Entry(
                kind="recorded" if run.path.parent == RECORDED else "run",
                id=run.id,
                folder=run.path,
                facts=facts[run.path],
                about=read_about(run.path),
            )
            for run in runs
            if run.path in facts
        ]
        found += [
            Entry(
                kind="adapter",
                id=folder.name,
                folder=folder,
                facts=facts[folder],
                about=read_about(folder),
                origin=_origin(folder),
            )
            for folder in adapters
            if folder in facts
        ]
        return ordered(found, "created", falling=True)


def matching(
    entries: Iterable[Entry],
    words: str = "",
    *,
    kind: str | None = None,
    tag: str | None = None,
    starred: bool = False,
) -> list[Entry]:
    """Return the entries that have every one of the words somewhere.

    Args:
        entries: All, in an order that is kept.
        words: With spaces between them; letters count alike in any case.
        kind: Only `run`s, to which a recorded one counts, or only `adapter`s.
        tag: Only those with this tag.
        starred: Only those with a star.
    """
    wanted = words.casefold().split()
    return [
        entry
        for entry in entries
        if (not wanted or all(word in entry.text for word in wanted))
        and (kind is None or (entry.kind == "adapter") == (kind == "adapter"))
        and (tag is None or tag in entry.about.tags)
        and (not starred or entry.about.star)
    ]


def ordered(entries: Iterable[Entry], column: str, *, falling: bool) -> list[Entry]:
    """Return entries by a column; what has nothing there stands last, equals as they stood.

    Raises:
        StudioError: If there is no such column.
    """
    if column not in COLUMNS:
        raise StudioError("library.unknown_column", column=column, known=COLUMNS)
    found = list(entries)
    has = [entry for entry in found if _value(entry, column) not in (None, "")]
    lacks = [entry for entry in found if _value(entry, column) in (None, "")]
    return sorted(has, key=lambda entry: _value(entry, column), reverse=falling) + lacks


def tags(entries: Sequence[Entry]) -> list[str]:
    """Return every tag that some entry has, in the order of the alphabet."""
    found = {tag for entry in entries for tag in entry.about.tags}
    return sorted(found, key=str.casefold)


def _value(entry: Entry, column: str) -> Any:
    if column == "name":
        return entry.name.casefold()
    if column == "star":
        return entry.about.star
    value = getattr(entry.facts, column)
    return value.casefold() if isinstance(value, str) else value


def _origin(folder: Path) -> Origin | None:
    try:
        return read_origin(folder)
    except StudioError:
        return None
