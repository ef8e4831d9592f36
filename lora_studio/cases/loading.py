"""A base with adapters in the chat process, for one job at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lora_studio.cases.machine import Machine
from lora_studio.cases.models import Models
from lora_studio.cases.workers import Workers
from lora_studio.chat.tickets import Ticket
from lora_studio.hardware import resolve_precision
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

    def loaded(
        self, adapters: Sequence[Named], work: Work, *, kind: str, ticket: Ticket | None = None
    ) -> Iterator[dict[str, Any]]:
        """Load adapters of one base, then do some work with them; nobody comes in between.

        Args:
            adapters: At least one; base, precision and classes are the first one's.
            work: What is done; its events are passed on.
            kind: What the job is called, as in `runs.accelerator.Job`.
            ticket: Of who asks; once it is stopped nothing more begins.

        Yields:
            `{"stage", "done", "total"}` while the model is fetched and loaded, `{"place"}` while
            others are before, how many; then the events of `work`, none if it was stopped.

        Raises:
            StudioError: If base or adapters cannot be loaded, or another job is busy.
        """
        first, ticket = adapters[0], ticket or Ticket()
        precision = resolve_precision(first.precision, self._machine.hardware)
        self._workers.refuse_while_training()
        base = ""
        for event in self._models.fetch(first.source):
            if ticket.is_stopped:
                return
            base = event.get("result", "")
            if not base:
                yield event
        yield {"stage": "load", "done": 0, "total": 0}
        job = Job(kind, ", ".join(one.name for one in adapters), self._settings.visitor)
        # One at a time from loading to the last word: a visitor's load must not slip in between.
        with self._machine.answering.join() as turn:
            for place in turn.places():
                if ticket.is_stopped:
                    return
                yield {"place": place}
            if ticket.is_stopped:
                return
            with self._machine.accelerator.guard():
                self._workers.refuse_while_training()
                self._machine.accelerator.assign(job, os.getpid())
            try:
                self._machine.chat.call(
                    "load",
                    model_folder=base,
                    precision=precision,
                    device=self._machine.hardware.device,
                    adapters={one.name: str(one.folder) for one in adapters},
                    labels=first.labels,
                    seed=first.seed,
                    fingerprints={one.name: one.fingerprint for one in adapters if one.fingerprint},
                )
                if not ticket.is_stopped:
                    yield from work()
            finally:
                self._machine.accelerator.release(job)
