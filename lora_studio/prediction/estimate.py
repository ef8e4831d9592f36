"""Everything that can be said of a run before it starts, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_studio.models.accounting import ParameterCount, count
from lora_studio.models.description import ModelInfo
from lora_studio.prediction.memory import Memory, Place, predict, reading
from lora_studio.prediction.time import run_seconds, step_seconds
from lora_studio.prediction.workload import Workload
from lora_studio.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Parameters, memory and time of a run."""

    parameters: ParameterCount
    """What is trained."""
    memory: Memory
    """Its highest memory."""
    place: Place
    """Where it would run."""
    steps: int | None
    """Optimizer steps; None while the data is not known."""
    step_seconds: float | None
    """Seconds of one; None where this device was not calibrated."""
    seconds: float | None
    """Seconds of all steps and evaluations."""

    @property
    def verdict(self) -> str:
        """`fits`, `tight` or `will_not_fit`."""
        return self.memory.verdict(self.place.free)

    def to_dict(self) -> dict[str, Any]:
        """Return what `estimate --json` prints."""
        return {
            "trainable_parameters": self.parameters.trainable,
            "total_parameters": self.parameters.total,
            "adapter_bytes": self.parameters.adapter_bytes,
            "peak_memory_bytes": self.memory.total,
            "parts": dict(self.memory.parts),
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "optimizer_steps": self.steps,
            "fits": self.verdict != "will_not_fit",
        }


def estimate(
    info: ModelInfo,
    recipe: Recipe,
    place: Place,
    report: Mapping[str, Any] | None = None,
    *,
    rate: float | None = None,
    steps: int | None = None,
    evaluations: int = 0,
    eval_rows: int = 0,
) -> Estimate:
    """Estimate a run in a few milliseconds.

    Args:
        info: The base model.
        recipe: What is trained.
        place: Device and concrete precision.
        report: The data's report, where it was looked at.
        rate: FLOP a second of this device, from `calibration`.
        steps: Optimizer steps, where known.
        evaluations: How often the held-out loss is measured.
        eval_rows: Over how many rows.

    Raises:
        RecipeError: If the model does not have what the adapter names.
    """
    work = reading(info, Workload.of(recipe, report))
    counted = count(info, recipe.adapter, work.labels)
    memory = predict(info, recipe, place, work)
    step_s = seconds = None
    if rate:
        step_s = step_seconds(
            info,
            counted,
            work,
            device=place.device,
            precision=place.precision,
            rate=rate,
            checkpointing=memory.checkpointing,
        )
        if steps is not None:
            seconds = run_seconds(
                step_s, steps=steps, evaluations=evaluations, eval_rows=eval_rows, work=work
            )
    return Estimate(
        parameters=counted,
        memory=memory,
        place=place,
        steps=steps,
        step_seconds=step_s,
        seconds=seconds,
    )
