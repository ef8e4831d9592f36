"""Measurements: how good an adapter is on rows it never learned from, and what it forgot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_studio.cases.adapters import Adapters
from lora_studio.cases.held_out import HeldOutRows
from lora_studio.cases.loading import Loading
from lora_studio.cases.machine import Machine
from lora_studio.cases.runs import Runs
from lora_studio.errors import RunError
from lora_studio.hardware import resolve_precision
from lora_studio.judging.prompts import Prompt
from lora_studio.library.names import AT, Named
from lora_studio.measuring import measurements
from lora_studio.measuring.answering import require_quick
from lora_studio.measuring.evaluation import losses, measure
from lora_studio.measuring.measurements import Measured
from lora_studio.measuring.primitives import Primitives
from lora_studio.measuring.wanted import MOST_ROWS, Subject, Wanted
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
    ) -> Iterator[dict[str, Any]]:
        """Measure an adapter beside its base; what is found is kept with its run.

        Closing the iterator ends it, and leaves what was measured before. What is found on rows of
        another run stands beside what was found on its own. Of a run that is shipped with the
        program nothing is kept.

        Args:
            name: A run, one of its checkpoints, or an adapter of the library.
            wanted: How much.
            rows_of: The run whose held-out rows are taken; by default the one that made it.

        Yields:
            `{"stage", "done", "total"}`, once the model is loaded with `seconds_left`, at last
            `{"result": lora_studio.measuring.measurements.Measured}`.

        Raises:
            StudioError: If there is no such adapter, its base cannot be loaded, another job is
                busy, the expression is too slow, or what was found cannot be kept.
        """
        wanted = self._allowed(wanted or Wanted())
        named = self._adapters.resolve(name)
        material = yield from self._rows.read(named, wanted, rows_of)
        require_quick(wanted.match, material.held_out.rows)
        subject = self._subject(named)

        def work() -> Iterator[dict[str, Any]]:
            yield from measure(subject, material, wanted, self._primitives())

        for event in self._loading.loaded([named], work, kind=KIND):
            if "result" in event:
                self._keep(named, event["result"])
            yield event

    def compare_losses(
        self, first: str, second: str, *, rows_of: str | None = None, rows: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Measure the loss of two adapters of one base on the same held-out rows.

        Args:
            first: As in `evaluate`.
            second: Likewise.
            rows_of: The run whose held-out rows are taken; by default the one that made `first`.
            rows: How many; None is as many as `evaluate` takes.

        Yields:
            As `evaluate`; the result is a `lora_studio.measuring.measurements.Loss`, whose `mean`
            has the first adapter as `base` and the second as `adapter`; None without such rows.

        Raises:
            StudioError: As `evaluate`.
        """
        wanted = self._allowed(Wanted(rows=rows, probe=False))
        named = [self._adapters.resolve(name) for name in (first, second)]
        material = yield from self._rows.read(named[0], wanted, rows_of)
        held_out = material.held_out.rows
        if not held_out:
            yield {"result": None}
            return

        def work() -> Iterator[dict[str, Any]]:
            yield from losses(held_out, (first, second), self._primitives())

        yield from self._loading.loaded(named, work, kind=KIND)

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

    def stop(self) -> None:
        """Have answers that are being written end; who reads `evaluate` closes it besides."""
        job = self._machine.accelerator.holder()
        if job is not None and job.kind == KIND and job.visitor == self._settings.visitor:
            self._machine.chat.interrupt("stop")

    def read(self, name: str) -> Measured | None:
        """Return what was measured of an adapter; None for nothing, or if its weights are others.

        Raises:
            StudioError: If there is no such adapter.
        """
        return next((found for found in self.read_all(name) if not found.rows_of), None)

    def read_all(self, name: str) -> list[Measured]:
        """Return what was measured of an adapter, on its own rows and then on those of other runs.

        Raises:
            StudioError: If there is no such adapter.
        """
        named = self._adapters.resolve(name)
        folder = self._folder(named)
        return measurements.read_all(folder, named.folder, step=_step(named)) if folder else []

    def _allowed(self, wanted: Wanted) -> Wanted:
        """Return how much is measured here; where everybody may measure, no more than usual."""
        usual = MOST_ROWS[self._machine.hardware.device]
        rows = usual if wanted.rows is None else wanted.rows
        if not self._settings.is_showcase:
            return replace(wanted, rows=rows)
        return replace(wanted, rows=min(rows, usual), answers=None if wanted.answers else 0)

    def _subject(self, named: Named) -> Subject:
        hardware = self._machine.hardware
        return Subject(
            adapter=named.name,
            weights=measurements.weights_of(named.folder),
            base=named.source,
            precision=resolve_precision(named.precision, hardware),
            device=hardware.device,
            labels=named.labels,
        )

    def _primitives(self) -> Primitives:
        chat = self._machine.chat

        return Primitives(
            score=lambda texts, who: chat.stream(
                "score", texts=list(texts), adapters=list(who), pieces=False
            ),
            generate=lambda panes, sampling: chat.stream(
                "generate", panes=list(panes), sampling=sampling
            ),
            classify=lambda text, who: chat.call("classify", text=text, adapters=list(who)),
        )

    def _keep(self, named: Named, measured: Measured) -> None:
        folder = self._folder(named)
        if folder is None:
            return
        try:
            measurements.keep(folder, measured, step=_step(named))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise RunError("measuring.not_kept", folder=str(folder), reason=reason) from error

    def _folder(self, named: Named) -> Path | None:
        """Return where an adapter's measurements lie, None for one whose are not kept."""
        if named.run is None:
            return named.folder.parent
        return None if self._runs.is_recorded(named.run) else named.run.path


def _step(named: Named) -> str:
    """Return the step of a checkpoint's adapter, empty for any other."""
    return named.name.partition(AT)[2]
