"""Measurements: how good an adapter is on rows it never learned from, and what it forgot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_studio.cases.adapters import Adapters
from lora_studio.cases.held_out import HeldOutRows
from lora_studio.cases.loading import Loading
from lora_studio.cases.machine import Machine
from lora_studio.cases.runs import Runs
from lora_studio.chat.tickets import Ticket
from lora_studio.errors import RunError, StudioError
from lora_studio.files import reason_of
from lora_studio.judging.prompts import Prompt
from lora_studio.library.names import Named
from lora_studio.measuring import measurements
from lora_studio.measuring.answering import asked_rows, require_quick
from lora_studio.measuring.evaluation import losses, measure
from lora_studio.measuring.measurements import Measured
from lora_studio.measuring.primitives import Primitives
from lora_studio.measuring.wanted import Subject, Wanted
from lora_studio.settings import Settings

KIND = "evaluate"


class Measurements:
    """What is measured of the adapters of one person.

    Args:
        settings: Where they are.
        machine: What measures.
        runs: Whose held-out rows there are.
        adapters: Knows adapters by name.
        loading: Loads them.
    """

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        runs: Runs,
        adapters: Adapters,
        loading: Loading,
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._runs = runs
        self._adapters = adapters
        self._loading = loading
        self._rows = HeldOutRows(machine, runs, adapters)

    def evaluate(
        self,
        name: str,
        wanted: Wanted | None = None,
        *,
        rows_of: str | None = None,
        asker: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Measure an adapter beside its base; what is found is kept with its run.

        Closing the iterator ends it, and leaves what was measured before. What is found on rows of
        another run stands beside what was found on its own. Of a run that is shipped with the
        program nothing is kept. Nobody deletes the adapter meanwhile.

        Args:
            name: A run, one of its checkpoints, or an adapter of the library.
            wanted: How much.
            rows_of: The run whose held-out rows are taken; by default the one that made it.
            asker: Who asks, as `stop` knows them.

        Yields:
            `{"stage", "done", "total"}`, once the model is loaded with `seconds_left`, at last
            `{"result": lora_studio.measuring.measurements.Measured}`.

        Raises:
            StudioError: If there is no such adapter, its base cannot be loaded, another job is
                busy, the expression is too slow, somebody stops it, or what was found cannot be
                kept.
        """
        wanted = self._allowed(wanted or Wanted())
        with self._adapters.using(name) as named, self._loading.ticket(asker) as ticket:
            material = yield from self._rows.read(named, wanted, rows_of)
            rows = material.held_out.rows
            require_quick(wanted.match, asked_rows(rows, wanted.answers or 0))
            subject = self._subject(named)

            def work() -> Iterator[dict[str, Any]]:
                for event in measure(subject, material, wanted, self._primitives(ticket)):
                    if ticket.is_stopped and "result" not in event:
                        raise StudioError("measuring.stopped")
                    yield event

            found = None
            for event in self._loading.loaded([named], work, kind=KIND, ticket=ticket):
                if found := event.get("result"):
                    self._keep(named, found)
                yield event
            if found is None:
                raise StudioError("measuring.stopped")

    def compare_losses(self, first: str, second: str) -> Iterator[dict[str, Any]]:
        """Measure the loss of two adapters of one base on the rows that the run of one held out.

        Args:
            first: As in `evaluate`; the rows are of the run that made it.
            second: Likewise.

        Yields:
            As `evaluate`; the result is a `lora_studio.measuring.measurements.Loss`, whose `mean`
            has the first adapter as `base` and the second as `adapter`; None without such rows.

        Raises:
            StudioError: As `evaluate`, or if they sort texts into classes.
        """
        wanted = self._allowed(Wanted(probe=False))
        with self._adapters.using(first) as one, self._adapters.using(second) as other:
            if one.labels:
                raise StudioError("measuring.sorts")
            material = yield from self._rows.read(one, wanted, None)
            held_out = material.held_out.rows
            if not held_out:
                yield {"result": None}
                return

            def work() -> Iterator[dict[str, Any]]:
                yield from losses(held_out, (first, second), self._primitives(Ticket()))

            yield from self._loading.loaded([one, other], work, kind=KIND)

    def held_out(self, name: str, count: int) -> Iterator[dict[str, Any]]:
        """Read questions that an adapter's run held out, with the answers that its data has.

        Args:
            name: As in `evaluate`.
            count: How many rows are looked at.

        Yields:
            `{"stage", "done", "total"}`, at last `{"result": list[judging.prompts.Prompt]}`: rows
            that are one question and its answer.

        Raises:
            StudioError: If there is no such adapter, or no such row.
        """
        named = self._adapters.resolve(name)
        material = yield from self._rows.read(named, Wanted(rows=count, probe=False), None)
        rows = [row for row in material.held_out.rows if row.is_alone]
        if not rows:
            raise RunError("measuring.no_questions", name=name)
        yield {"result": [Prompt.of(row.question, reference=row.reference) for row in rows]}

    def stop(self, asker: str = "") -> None:
        """Have the measurements end that somebody asked for, and nobody else's."""
        self._loading.stop(asker)

    def read_all(self, name: str) -> list[Measured]:
        """Return what was measured of an adapter, on its own rows and then on those of other runs.

        Raises:
            StudioError: If there is no such adapter.
        """
        named = self._adapters.resolve(name)
        folder = self._folder(named)
        return measurements.read_all(folder, named.folder, step=named.step) if folder else []

    def _allowed(self, wanted: Wanted) -> Wanted:
        """Return how much is measured here; where everybody may measure, no more than usual."""
        device = self._machine.hardware.device
        return wanted.settled(device, is_limited=self._settings.is_showcase)

    def _subject(self, named: Named) -> Subject:
        hardware = self._machine.hardware
        return Subject(
            adapter=named.name,
            weights=named.weights(),
            base=named.source,
            precision=named.precision_on(hardware),
            device=hardware.device,
            labels=named.labels,
        )

    def _primitives(self, ticket: Ticket) -> Primitives:
        chat = self._machine.chat

        return Primitives(
            score=lambda texts, who: chat.stream(
                "score", texts=list(texts), adapters=list(who), pieces=False, ticket=ticket.id
            ),
            generate=lambda panes, sampling: chat.stream(
                "generate", panes=list(panes), sampling=sampling, ticket=ticket.id
            ),
            classify=lambda ids, who: chat.call("classify", text=list(ids), adapters=list(who)),
        )

    def _keep(self, named: Named, measured: Measured) -> None:
        folder = self._folder(named)
        if folder is None:
            return
        try:
            measurements.keep(folder, measured, step=named.step)
        except OSError as error:
            raise RunError(
                "measuring.not_kept", folder=str(folder), reason=reason_of(error)
            ) from error

    def _folder(self, named: Named) -> Path | None:
        """Return where an adapter's measurements lie, None for one whose are not kept."""
        is_recorded = named.run is not None and self._runs.is_recorded(named.run)
        return None if is_recorded else named.home
