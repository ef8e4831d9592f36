"""Runs side by side: the settings in which they differ, their curves, what they answered last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.recipe import Recipe
from lora_studio.recipes.diff import flat
from lora_studio.runs.history import History

MOST_POINTS = 400
"""A curve that lies over others has no more points than that."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that is not the same in all of the recipes."""

    name: str
    """Its dotted name, as `adapter.r`."""
    values: tuple[Any, ...]
    """Its value in each, in their order."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's losses, each as (step, nats per token)."""

    train: list[tuple[int, float]]
    """Of its steps; of many, some hundred evenly, the last among them."""
    held_out: list[tuple[int, float]]
    """Of its evaluations, that of the untrained adapter at step 0 included."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What runs said last to one prompt."""

    prompt: str
    said: tuple[tuple[int, str] | None, ...]
    """Step and answer of each run, None of one that was not asked it."""


def differences(recipes: Sequence[Recipe]) -> list[Difference]:
    """Return the settings that differ, in the order of the recipe file."""
    columns: list[Mapping[str, Any]] = [dict(flat(recipe)) for recipe in recipes]
    rows = [
        Difference(name, tuple(column[name] for column in columns))
        for name in (columns[0] if columns else ())
    ]
    return [row for row in rows if any(value != row.values[0] for value in row.values)]


def curve(history: History) -> Curve:
    """Return a run's losses; what is no number is left out."""
    return Curve(
        train=_thinned(_points(history.steps)),
        held_out=_thinned(_points(history.evals)),
    )


def last_answers(histories: Sequence[History]) -> list[Answers]:
    """Return what each run answered last to each prompt that some of them were asked."""
    last = [
        {entry["prompt"]: (entry["step"], entry["answer"]) for entry in history.samples}
        for history in histories
    ]
    prompts = dict.fromkeys(prompt for answers in last for prompt in answers)
    return [Answers(prompt, tuple(one.get(prompt) for one in last)) for prompt in prompts]


def _points(entries: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    found = [(entry["step"], entry["loss"]) for entry in entries if entry.get("loss") is not None]
    return sorted(found)


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    every = -(-len(points) // MOST_POINTS) or 1
    return [*points[:-1:every], *points[-1:]]
