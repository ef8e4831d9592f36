"""The cheapest changes that make a run fit, each one tried against the prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_studio.models.description import ModelInfo
from lora_studio.prediction.memory import TIGHT, Memory, Place, predict
from lora_studio.prediction.workload import Workload
from lora_studio.recipe import Recipe

LEAST_LENGTH = 64
LEAST_RANK = 4
SMALLER = ("int8", "nf4")
"""Precisions to go down to, the larger first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """Other settings, and what they save."""

    kind: str
    """`batch`, `checkpointing`, `precision`, `length`, `rank`, or `all` where only all do."""
    old: str
    """What is set now."""
    new: str
    """What would be set."""
    changes: tuple[str, ...]
    """As `--set` takes them: `data.max_length=512`."""
    saved: int
    """Bytes less at the highest moment."""
    memory: Memory
    """The prediction with them."""


def fixes(
    info: ModelInfo,
    recipe: Recipe,
    place: Place,
    report: Mapping[str, Any] | None = None,
    *,
    precisions: Sequence[str] = (),
) -> list[Fix]:
    """Return changes after which a run fits, those that change least of the result first.

    Args:
        info: The base model.
        recipe: What does not fit.
        place: Where.
        report: The data's report, where it was looked at.
        precisions: Number formats that this machine can use.

    Returns:
        One for each kind of change that is enough alone; else one `all` of several. Nothing where
        the run fits already, or cannot be made to.
    """
    before = predict(info, recipe, place, Workload.of(recipe, report))
    if before.verdict(place.free) != "will_not_fit":
        return []
    ways = list(_ways(recipe, place, Workload.of(recipe, report), precisions))

    def first_fit(steps: Sequence[Step], already: tuple[str, ...] = ()) -> Fix | None:
        for kind, old, new, changes in steps:
            step = (kind, old, new, already + changes)
            fix = _tried(info, recipe, place, report, before=before, step=step)
            if fix.memory.verdict(place.free) != "will_not_fit":
                return fix
        return None

    found = [fix for fix in map(first_fit, ways) if fix is not None]
    together: tuple[str, ...] = ()
    for steps in () if found else ways:
        fix = first_fit([("all", "", "", changes) for *_, changes in steps], together)
        if fix is not None:
            return [replace(fix, new=", ".join(fix.changes))]
        together += steps[-1][-1] if steps else ()
    return found


def fixes_after_failure(
    info: ModelInfo,
    recipe: Recipe,
    place: Place,
    report: Mapping[str, Any] | None = None,
    *,
    precisions: Sequence[str] = (),
) -> list[Fix]:
    """Return changes for a run that was seen not to fit, whatever was predicted: as `fixes`.

    What is free counts as less than what was predicted, by the margin of a tight run; where no
    change saves as much, as a little less.
    """
    before = predict(info, recipe, place, Workload.of(recipe, report))
    pinned = replace(recipe.training, activation_checkpointing=before.checkpointing)
    ran = replace(recipe, training=pinned)
    for limit in (round(before.needed / TIGHT), before.needed):
        less = replace(place, free=min(place.free, limit - 1))
        found = fixes(info, ran, less, report, precisions=precisions)
        if found:
            return found
    return []


Step = tuple[str, str, str, tuple[str, ...]]


def _ways(
    recipe: Recipe, place: Place, work: Workload, precisions: Sequence[str]
) -> Iterator[list[Step]]:
    """Yield each kind of change in steps, the smallest first.

    Fewer rows at a time with as many more passes learn the same; recomputing costs time; a
    smaller number format some precision; shorter rows lose text; a lower rank what can be learned.
    """
    training = recipe.training
    rows, passes = training.per_device_train_batch_size, training.gradient_accumulation_steps
    batches = [(rows // 2**n, passes * 2**n) for n in range(1, rows.bit_length())]
    yield [
        (
            "batch",
            f"{rows}×{passes}",
            f"{fewer}×{more}",
            (
                f"training.per_device_train_batch_size={fewer}",
                f"training.gradient_accumulation_steps={more}",
            ),
        )
        for fewer, more in batches
        if more <= 1024
    ]
    if training.activation_checkpointing is False:
        yield [("checkpointing", "", "", ("training.activation_checkpointing=true",))]
    at = SMALLER.index(place.precision) + 1 if place.precision in SMALLER else 0
    yield [
        ("precision", place.precision, name, (f"precision={name}",))
        for name in SMALLER[at:]
        if name in precisions
    ]
    length = min(recipe.data.max_length, work.length)
    for_length = [length // 2**n for n in range(1, length.bit_length())]
    yield [
        ("length", str(length), str(less), (f"data.max_length={less}",))
        for less in for_length
        if less >= LEAST_LENGTH
    ]
    ranks = [recipe.adapter.r // 2**n for n in range(1, recipe.adapter.r.bit_length())]
    yield [
        ("rank", str(recipe.adapter.r), str(r), (f"adapter.r={r}",))
        for r in ranks
        if r >= LEAST_RANK
    ]


def _tried(
    info: ModelInfo,
    recipe: Recipe,
    place: Place,
    report: Mapping[str, Any] | None,
    *,
    before: Memory,
    step: Step,
) -> Fix:
    kind, old, new, changes = step
    changed = recipe.changed(changes)
    there = place if changed.precision == recipe.precision else replace(
        place, precision=changed.precision
    )  # fmt: skip
    memory = predict(info, changed, there, Workload.of(changed, report))
    saved = before.total - memory.total
    return Fix(kind=kind, old=old, new=new, changes=changes, saved=saved, memory=memory)
