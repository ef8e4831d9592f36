"""A base with adapters in the chat process, for one job at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lora_studio.cases.machine import Machine
from lora_studio.cases.models import Models
from lora_studio.cases.workers import Workers
from lora_studio.chat.tickets import Ticket
from lora_studio.library.names import Named
from lora_studio.runs.accelerator import Job
from lora_studio.settings import Settings

Work = Callable[[], Iterator[dict[str, Any]]]


class Loading:
    """Loads adapters that share a base, and holds the accelerator while something is done.

    Args:
        settings: Whose job it is.
        machine: Whose chat process it is.
        models: Fetches the base.
        workers: Says whether a training has the accelerator.
    """

    def __init__(
        self, settings: Settings, machine: Machine, models: Models, workers: Workers
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._models = models
        self._workers = workers

    def ticket(self, asker: str) -> AbstractContextManager[Ticket]:
        """Give a ticket for as long as the block takes; see `stop`.

        Args:
            asker: Who asks, and from where.
        """
        return self._machine.tickets.held(self._asker(asker))

    def stop(self, asker: str) -> None:
        """Stop what somebody asked for: in the line, while it loads, or at the next token."""
        for ticket in self._machine.tickets.stop(self._asker(asker)):
            self._machine.chat.interrupt("stop", ticket=ticket.id)

    def loaded(
        self,
        adapters: Sequence[Named],
        work: Work,
        *,
        kind: str,
        of: Named | None = None,
        ticket: Ticket | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Load adapters of one base, then do some work with them; nobody comes in between.

        Args:
            adapters: At least one.
            work: What is done; its events are passed on.
            kind: What the job is called, as in `runs.accelerator.Job`.
            of: Whose base, precision and classes they are; None is the first one.
            ticket: Of who asks; once it is stopped nothing more begins.

        Yields:
            `{"stage", "done", "total"}` while the model is fetched and loaded, `{"place"}` while
            others are before, how many; then the events of `work`, none if it was stopped.

        Raises:
            StudioError: If base or adapters cannot be loaded, or another job is busy or comes
                meanwhile.
        """
        first, ticket = of or adapters[0], ticket or Ticket()
        precision = first.precision_on(self._machine.hardware)
        self._workers.refuse_while_busy()
        base = yield from self._fetched(first.source, ticket)
        if base is None:
            return
        yield {"stage": "load", "done": 0, "total": 0}
        job = Job(kind, tuple(one.name for one in adapters), self._settings.visitor)
        # One at a time from loading to the last word: a visitor's load must not slip in between.
        with self._machine.answering.join() as turn:
            for place in turn.places():
                if ticket.is_stopped:
                    return
                yield {"place": place}
            if ticket.is_stopped:
                return
            with self._machine.accelerator.guard():
                self._workers.refuse_while_busy()
                self._machine.accelerator.assign(job, os.getpid())
                self._machine.chat.open()  # a training that comes from now on closes it
            try:
                self._machine.chat.call(
                    "load",
                    model_folder=str(base),
                    precision=precision,
                    device=self._machine.hardware.device,
                    adapters={one.name: str(one.folder) for one in adapters},
                    labels=first.labels,
                    seed=first.seed,
                    fingerprints={one.name: one.fingerprint for one in adapters if one.fingerprint},
                )
                self._machine.bases[self._machine.chat.pid, first.source] = base
                if not ticket.is_stopped:
                    yield from work()
            finally:
                self._machine.accelerator.release(job)

    def _fetched(self, source: str, ticket: Ticket) -> Generator[dict[str, Any], None, Path | None]:
        """Return the folder of a base, fetched once for as long as the chat process lives.

        So questions need not wait for the Hub, and weights that change there do not change in the
        middle of a table. None if it was stopped.
        """
        pid = self._machine.chat.pid
        known = None if pid is None else self._machine.bases.get((pid, source))
        if known is not None and known.is_dir():
            return known
        folder = None
        for event in self._models.fetch(source):
            if ticket.is_stopped:
                return None
            if "result" in event:
                folder = Path(event["result"])
            else:
                yield event
        return folder

    def _asker(self, asker: str) -> str:
        return f"{self._settings.visitor or ''}/{asker}"
