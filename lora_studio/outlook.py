"""What can be said of a run before it starts: what is wrong, what is odd, what it takes. No torch.

The page asks for this at every move of a slider, a start asks once more: both get the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_studio import methods
from lora_studio.errors import ModelError, RecipeError, StudioError
from lora_studio.hardware import Hardware, default_precision, precisions, resolve_precision
from lora_studio.methods import Offer
from lora_studio.models import accounting
from lora_studio.models.description import ModelInfo
from lora_studio.models.targets import selected
from lora_studio.prediction.estimate import Estimate, estimate
from lora_studio.prediction.fixes import Fix, fixes
from lora_studio.prediction.memory import Place
from lora_studio.prediction.workload import Workload
from lora_studio.recipe import Recipe
from lora_studio.recommendations.recommendation import warnings
from lora_studio.runs import launching
from lora_studio.training import trackers
from lora_studio.training.plan import evaluates_every, measured_rows, total_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A recipe on this machine, before anything is paid for."""

    info: ModelInfo | None
    """The base model; None where it was never looked at."""
    precision: str
    """The concrete number format; what suits the machine where the one asked for cannot be used."""
    offers: Mapping[str, Offer]
    """Which methods go with the recipe's other choices."""
    problems: tuple[StudioError, ...]
    """Why the recipe cannot be trained."""
    warnings: tuple[StudioError, ...]
    """What will probably disappoint."""
    estimate: Estimate | None
    """What it takes; None without a model, or with problems."""
    fixes: tuple[Fix, ...]
    """Changes that make it fit; empty where it does."""


def look_ahead(
    recipe: Recipe,
    info: ModelInfo | None,
    hardware: Hardware,
    report: Mapping[str, Any] | None = None,
    *,
    free: int | None = None,
    rate: float | None = None,
) -> Outlook:
    """Judge a recipe in a few milliseconds.

    Args:
        recipe: What is asked for.
        info: The base model, where it is known.
        hardware: The machine.
        report: The data's report, where it was looked at.
        free: Free bytes of the device, where they are known afresh.
        rate: FLOP a second of this device, where it was measured.
    """
    precision, problems = _precision(recipe, hardware)
    problems += methods.problems(recipe, precision, hardware.device)
    problems += launching.problems(recipe, precision, hardware)
    if info is not None:
        problems += _misfits(info, recipe, report)
    place = Place.of(hardware, precision, free)
    usable = [found.name for found in precisions(hardware) if found.available]
    can_count = info is not None and not problems
    return Outlook(
        info=info,
        precision=precision,
        offers=methods.offers(recipe, precision, hardware.device),
        problems=(*problems, *trackers.problems(recipe.training.report_to)),
        warnings=tuple(warnings(recipe, info)) if info else (),
        estimate=_estimate(info, recipe, place, report, rate) if info and can_count else None,
        fixes=tuple(fixes(info, recipe, place, report, precisions=usable))
        if info and can_count
        else (),
    )


def _precision(recipe: Recipe, hardware: Hardware) -> tuple[str, list[StudioError]]:
    try:
        return resolve_precision(recipe.precision, hardware), []
    except ModelError as error:
        return default_precision(hardware), [error]


def _misfits(
    info: ModelInfo, recipe: Recipe, report: Mapping[str, Any] | None
) -> list[StudioError]:
    """Return what of the recipe this model does not have."""
    labels = Workload.of(recipe, report).labels
    if labels is not None and (cannot := accounting.unsortable(info)):
        return cannot
    return [
        *accounting.problems(*accounting.classifying(info, recipe.adapter, labels)),
        *methods.rank_problems(recipe.adapter, _sizes(info, recipe)),
    ]


def _sizes(info: ModelInfo, recipe: Recipe) -> dict[str, int]:
    """Return the shorter side of each kind of layer that gets an adapter."""
    return {group.name: min(group.d_in, group.d_out) for group, _ in selected(info, recipe.adapter)}


def _estimate(
    info: ModelInfo,
    recipe: Recipe,
    place: Place,
    report: Mapping[str, Any] | None,
    rate: float | None,
) -> Estimate | None:
    try:
        return estimate(info, recipe, place, report, rate=rate, **_counts(recipe, report, place))
    except RecipeError:
        return None


def _counts(recipe: Recipe, report: Mapping[str, Any] | None, place: Place) -> dict[str, Any]:
    """Return how many steps and evaluations a run has, as far as that is known."""
    if report is None:
        return {"steps": recipe.training.max_steps}
    steps = total_steps(recipe, report["trained_rows"])
    held = measured_rows(recipe, place.device, report["eval_rows"])
    every = evaluates_every(recipe, steps, device=place.device, rows=held)
    # One evaluation comes before the first step, one after the last.
    evaluations = 1 + math.ceil(steps / every) if held else 0
    return {"steps": steps, "evaluations": evaluations, "eval_rows": held}
