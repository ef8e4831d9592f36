"""Another try of a run that failed, with what would mend it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_studio.cases.models import Models
from lora_studio.cases.planning import Planning
from lora_studio.cases.runs import Runs
from lora_studio.cases.training import Training
from lora_studio.errors import RunError
from lora_studio.hardware import Hardware
from lora_studio.runs.history import History
from lora_studio.training.remedies import Remedies, Remedy


class Retrying:
    """What a run that failed can be tried again with.

    Args:
        hardware: Where it would run.
        models, planning, runs: What is known of it.
        training: Starts it again.
    """

    def __init__(
        self, hardware: Hardware, models: Models, planning: Planning, runs: Runs, training: Training
    ) -> None:
        self._hardware = hardware
        self._models = models
        self._planning = planning
        self._runs = runs
        self._training = training
        self._lighter: dict[str, tuple[tuple[Any, ...], list[Remedy]]] = {}

    def remedies(self, run_id: str) -> list[Remedy]:
        """Return what a run that failed can be tried again with, what changes least first.

        The worker proposes settings with its last word; of one that left none, memory is what
        most often ran out.

        Raises:
            RunError: If there is no such run.
        """
        history = self._runs.history(run_id)
        if history.status == "lost":
            return self._less_memory(history)
        cause = history.cause
        return list(cause.values.get("remedies", ())) if cause is not None else []

    def retry(self, run_id: str, changes: Sequence[str], *, token: str | None = None) -> str:
        """Train the recipe of a run that is over with other settings; return the new run's id.

        Args:
            run_id: The run, which stays as it is.
            changes: As `Recipe.changed` takes them.
            token: For a gated model or dataset.

        Raises:
            RunError: If there is no such run or it goes on.
            StudioError: As `Training.submit`.
        """
        history = self._runs.history(run_id)
        if not history.is_over:
            raise RunError("run.not_over", run=run_id)
        return self._training.submit(history.folder.read_recipe().changed(changes), token=token)

    def _less_memory(self, history: History) -> list[Remedy]:
        """Return changes after which a lost run takes less; the page asks again and again."""
        folder, precision = history.folder, history.plan.get("precision")
        file = folder.data / "report.json"
        basis = precision, _written_ns(folder.recipe), _written_ns(file)
        known = self._lighter.get(folder.id)
        if known is not None and known[0] == basis:
            return known[1]
        recipe = folder.read_recipe()
        info = self._models.known(recipe.model.source)
        if info is None:
            return []
        found = Remedies(
            info=info,
            recipe=recipe,
            hardware=self._hardware,
            precision=precision or self._planning.outlook(recipe).precision,
            report=_read_report(file),
        ).less_memory()
        self._lighter[folder.id] = basis, found
        return found


def _written_ns(file: Path) -> int | None:
    """Return when a file was last written, None if there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _read_report(file: Path) -> dict[str, Any] | None:
    """Return the report of a run's data, None where there is none or its writer was killed."""
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return report
