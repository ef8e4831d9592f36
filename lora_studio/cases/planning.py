"""Before a run: what it will take, and whether it can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_studio.cases.data import file_problems, refuse
from lora_studio.cases.machine import Machine
from lora_studio.cases.models import Models
from lora_studio.errors import ModelError, StudioError
from lora_studio.hardware import resolve_precision
from lora_studio.outlook import Outlook, look_ahead
from lora_studio.prediction import calibration
from lora_studio.prediction.memory import Place
from lora_studio.recipe import Recipe
from lora_studio.settings import Settings


class Planning:
    """Tells before a run what it will take, and whether it can be.

    Args:
        settings: Where measurements of this machine are kept.
        machine: Where it would run.
        models: Describes the base.
    """

    def __init__(self, settings: Settings, machine: Machine, models: Models) -> None:
        self._settings = settings
        self._machine = machine
        self._models = models
        self._hardware = machine.hardware

    def precision(self, recipe: Recipe) -> str:
        """Return the number format a recipe would use here.

        Raises:
            ModelError: If this machine cannot use the one that is asked for.
        """
        return resolve_precision(recipe.precision, self._hardware)

    def outlook(self, recipe: Recipe, report: Mapping[str, Any] | None = None) -> Outlook:
        """Say what can be said of a run before it starts, in a few milliseconds.

        Time is known once `calibrate` has been called on this machine, steps once the data is.

        Args:
            recipe: What is trained.
            report: The result of `Data.preview`, where there is one.
        """
        # The RAM that is free changes by the minute; asking a GPU takes longer than a slider waits.
        free = self._machine.free_memory() if self._hardware.device == "cpu" else None
        width = self.width(recipe)
        return look_ahead(
            recipe,
            self._models.known(recipe.model.source),
            self._hardware,
            report,
            free=free,
            rate=calibration.known(self._settings.cache, self._hardware, width) if width else None,
        )

    def calibrate(self, recipe: Recipe) -> Iterator[dict[str, Any]]:
        """Measure this device for a second, unless it was measured today.

        Yields:
            As `Models.inspect`; the result is FLOP a second.
        """
        width = Place.of(self._hardware, self.precision(recipe)).width
        if not calibration.is_due(self._settings.cache, self._hardware, width):
            yield {"result": calibration.known(self._settings.cache, self._hardware, width)}
            return
        asked = {"device": self._hardware.device, "width": width}
        for event in self._machine.bench.stream("calibrate", **asked):
            if "result" in event:
                calibration.keep(self._settings.cache, self._hardware, width, event["result"])
            yield event

    def is_calibrated(self, recipe: Recipe) -> bool:
        """Return whether this device was measured today for the numbers a recipe uses."""
        width = self.width(recipe)
        due = width is None or calibration.is_due(self._settings.cache, self._hardware, width)
        return not due

    def check(self, recipe: Recipe) -> None:
        """Check everything that can be checked without the model.

        Raises:
            ModelError: If this is a Space that lends itself to the starter model only.
            RecipeError: If the recipe cannot work on this machine.
        """
        self._models.check(recipe.model.source)
        if self._settings.space_id and recipe.launch.num_machines > 1:
            refuse([StudioError("launch.not_on_space")])
        refuse([*file_problems(recipe), *self.outlook(recipe).problems])

    def width(self, recipe: Recipe) -> int | None:
        """Return the bytes of a number that is computed with, None for what cannot be used here."""
        try:
            return Place.of(self._hardware, self.precision(recipe)).width
        except ModelError:
            return None
