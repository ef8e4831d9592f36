"""Settings for another try after a failure, each one judged by the prediction. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_studio.hardware import Hardware, precisions
from lora_studio.models.description import ModelInfo
from lora_studio.prediction.fixes import Fix, fixes_after_failure
from lora_studio.prediction.memory import Memory, Place, predict
from lora_studio.prediction.workload import Workload
from lora_studio.recipe import Recipe

MOST_REMEDIES = 3
"""More than so many would have to be read instead of chosen from."""
LOWER_RATE = 10
"""A learning rate at which numbers ran away is tried again at a tenth."""
SHORT_FORMATS = ("fp16", "bf16")

Remedy = dict[str, Any]
"""As an event keeps it: `kind`, `old`, `new`, `changes` as `Recipe.changed` takes them, and
`saved`, the bytes less at the highest moment, 0 where memory is not what it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies:
    """What to change in a recipe that failed here."""

    info: ModelInfo
    """Its base model."""
    recipe: Recipe
    """What was tried."""
    hardware: Hardware
    """The machine."""
    precision: str
    """The concrete number format it was tried in."""
    report: Mapping[str, Any] | None = None
    """The data's report, where the data was read."""

    def has_plenty(self) -> bool:
        """Return whether memory is no question here, so that no step has to be rehearsed."""
        memory, place = self._memory(self.precision)
        return memory.has_plenty(place.free)

    def less_memory(self) -> list[Remedy]:
        """Return changes after which it fits by the prediction, those that change least first."""
        usable = [found.name for found in precisions(self.hardware) if found.available]
        place = Place.of(self.hardware, self.precision)
        found = fixes_after_failure(self.info, self.recipe, place, self.report, precisions=usable)
        return [_remedy(fix) for fix in found[:MOST_REMEDIES]]

    def steadier(self) -> list[Remedy]:
        """Return changes after which numbers are less likely to run away.

        A tenth of the learning rate; and where a 16-bit format may have overflowed (fp16 ends at
        65504), fp32 as far as it fits.
        """
        rate = self.recipe.training.learning_rate
        lower = rate / LOWER_RATE
        found = [_change("rate", f"{rate:g}", f"{lower:g}", f"training.learning_rate={lower:g}")]
        if self.precision in SHORT_FORMATS and self._fits("fp32"):
            found.append(_change("format", self.precision, "fp32", "precision=fp32"))
        return found

    def _fits(self, precision: str) -> bool:
        memory, place = self._memory(precision)
        return memory.verdict(place.free) != "will_not_fit"

    def _memory(self, precision: str) -> tuple[Memory, Place]:
        changed = replace(self.recipe, precision=precision)  # type: ignore[arg-type]
        place = Place.of(self.hardware, precision)
        return predict(self.info, changed, place, Workload.of(changed, self.report)), place


def _remedy(fix: Fix) -> Remedy:
    return _change(fix.kind, fix.old, fix.new, *fix.changes) | {"saved": fix.saved}


def _change(kind: str, old: str, new: str, *changes: str) -> Remedy:
    return {"kind": kind, "old": old, "new": new, "changes": list(changes), "saved": 0}
