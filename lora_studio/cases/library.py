"""The library: what was made and what came in as one table, its notes, its trash, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from filelock import FileLock

from lora_studio.cases.adapters import Adapters
from lora_studio.cases.machine import Machine
from lora_studio.cases.runs import Runs
from lora_studio.errors import AdapterError, RunError, StudioError
from lora_studio.library import entries, together
from lora_studio.library.about import About, changed, write_about
from lora_studio.library.disk import DiskUse, disk_use
from lora_studio.library.entries import Entry, Table
from lora_studio.library.names import AT, adapter_names
from lora_studio.library.together import Answers, Curve, Difference
from lora_studio.library.trash import Deleted, Trash
from lora_studio.runs.history import History
from lora_studio.runs.queue import Queue
from lora_studio.settings import Settings

MOST_TOGETHER = 6
"""So many runs are told apart side by side."""


class Keeping:
    """One person's library.

    Args:
        settings: Where it is.
        machine: Says what is in use.
        runs: The runs of this person.
        adapters: Says which of them are needed.
    """

    def __init__(
        self, settings: Settings, machine: Machine, runs: Runs, adapters: Adapters
    ) -> None:
        self._settings = settings
        self._accelerator = machine.accelerator
        self._runs = runs
        self._adapters = adapters
        self._table = Table(settings)
        self._trash = Trash(settings)
        self._queue = Queue(settings)

    def entries(
        self,
        words: str = "",
        *,
        kind: str | None = None,
        tag: str | None = None,
        starred: bool = False,
        by: str = "created",
        falling: bool = True,
    ) -> list[Entry]:
        """Return runs and adapters, as `library.entries` finds and orders them.

        Raises:
            StudioError: If there is no such column.
        """
        found = entries.matching(self._table.entries(), words, kind=kind, tag=tag, starred=starred)
        return entries.ordered(found, by, falling=falling)

    def entry(self, entry_id: str) -> Entry:
        """Return one of them.

        Raises:
            AdapterError: If it is not there.
        """
        return self.chosen([entry_id])[0]

    def chosen(self, ids: Sequence[str]) -> list[Entry]:
        """Return some of them, each once, in the order of `ids`.

        Raises:
            AdapterError: If one is not there.
        """
        known = {entry.id: entry for entry in self._table.entries()}
        gone = [entry_id for entry_id in ids if entry_id not in known]
        if gone:
            raise AdapterError("library.gone", name=gone[0])
        return [known[entry_id] for entry_id in dict.fromkeys(ids)]

    def beside(self, name: str) -> list[str]:
        """Return the names of adapters that can answer beside one: of its base, itself first.

        Those of its own run come next, its checkpoints too; adapters that sort texts are left out.

        Raises:
            StudioError: As `Adapters.resolve`.
        """
        named = self._adapters.resolve(name)
        of_run = [] if named.run is None else adapter_names(named.run)
        others = [
            entry.id
            for entry in self._table.entries()
            if entry.can_answer and not entry.facts.labels and entry.facts.source == named.source
        ]
        return list(dict.fromkeys([name, *of_run, *others]))

    def say(self, ids: Sequence[str], **words: Any) -> None:
        """Say something of each: `name`, `note`, `tags` or `star`, as `library.about` has it.

        Raises:
            StudioError: If one is gone or cannot be changed, or a word cannot be taken; nothing
                is changed then.
        """
        self._change(ids, lambda about: changed(about, words))

    def tag(
        self, ids: Sequence[str], *, add: Iterable[str] = (), remove: Iterable[str] = ()
    ) -> None:
        """Give each of them tags and take others away.

        Raises:
            StudioError: As `say`.
        """
        gone, new = set(remove), list(add)
        self._change(
            ids,
            lambda about: changed(
                about, {"tags": [*(tag for tag in about.tags if tag not in gone), *new]}
            ),
        )

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Move runs and adapters to the trash; return what they go by there.

        Raises:
            StudioError: If one is gone, is shipped with the program, trains, waits or answers;
                nothing is moved then.
        """
        # Nobody starts, lines up or loads one of them in between.
        with self._accelerator.guard(), self._queue.guard():
            chosen = self.chosen(ids)
            for entry in chosen:
                self._refuse_in_use(entry)
            moved: list[str] = []
            try:
                for entry in chosen:
                    key = self._trash.put(entry.folder, kind=entry.kind, name=entry.name)
                    moved.append(key)
            except StudioError:
                self.put_back(moved)
                raise
            return moved

    def put_back(self, keys: Sequence[str]) -> list[str]:
        """Move things of the trash back to where they were; return their ids.

        Raises:
            StudioError: If one is not there any more.
        """
        return [self._trash.put_back(key) for key in keys]

    def deleted(self) -> list[Deleted]:
        """Return what can be put back, the latest first."""
        return self._trash.listed()

    def empty_trash(self) -> int:
        """Delete for good what is in the trash; return the bytes that are free again."""
        return self._trash.empty()

    def disk(self) -> DiskUse:
        """Return how much room everything takes."""
        return disk_use(self._settings)

    def differences(self, ids: Sequence[str]) -> list[Difference]:
        """Return the settings in which runs differ, a value for each of `ids`.

        Raises:
            StudioError: If one is gone, no run, or there are too many.
        """
        return together.differences([run.folder.read_recipe() for run in self._together(ids)])

    def curves(self, ids: Sequence[str]) -> list[Curve]:
        """Return the losses of runs, in the order of `ids`.

        Raises:
            StudioError: As `differences`.
        """
        return [together.curve(run) for run in self._together(ids)]

    def answers(self, ids: Sequence[str]) -> list[Answers]:
        """Return what runs answered last to each prompt that some of them were asked.

        Raises:
            StudioError: As `differences`.
        """
        return together.last_answers(self._together(ids))

    def _together(self, ids: Sequence[str]) -> list[History]:
        if len(ids) > MOST_TOGETHER:
            raise StudioError("library.too_many_together", most=MOST_TOGETHER, found=len(ids))
        return [self._runs.history(entry_id) for entry_id in ids]

    def _change(self, ids: Sequence[str], change: Callable[[About], About]) -> None:
        with FileLock(self._settings.private / "library.lock"):
            chosen = self.chosen(ids)
            said: list[tuple[Entry, About]] = []
            for entry in chosen:
                _refuse_shipped(entry)
                said.append((entry, change(entry.about)))
            for entry, about in said:
                write_about(entry.folder, about)

    def _refuse_in_use(self, entry: Entry) -> None:
        _refuse_shipped(entry)
        if entry.kind == "run" and not self._runs.history(entry.id).is_over:
            raise RunError("library.run_goes_on", run=entry.id)
        if entry.id in {name.partition(AT)[0] for name in self._adapters.used()}:
            raise AdapterError("library.in_use", name=entry.id)


def _refuse_shipped(entry: Entry) -> None:
    if entry.kind == "recorded":
        raise RunError("run.read_only")
