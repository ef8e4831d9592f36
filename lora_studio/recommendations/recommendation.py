"""Recommended values with their reasons, what they follow from, and what departs from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from lora_studio.errors import StudioError
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import Recipe
from lora_studio.recommendations.table import (
    FAR_OFF,
    MOST_ROWS_PER_STEP,
    OWN,
    GoalName,
    Source,
    rate_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What is known of the data; nothing of it depends on the settings recommended from it."""

    rows: int
    """Conversations, or pieces of a text, to learn from and held out."""
    tokens: int
    """Their tokens."""
    trained_tokens: int
    """How many of them are trained on in one pass."""
    is_text: bool
    """Whether it is plain text, which is cut into pieces, and not conversations."""
    lengths: tuple[tuple[int, int], ...] = ()
    """Lengths of the conversations before cutting: (tokens, rows)."""
    labels: int = 0
    """Classes that the rows are sorted into; 0 for rows that are written."""

    @classmethod
    def from_report(cls, found: Mapping[str, Any]) -> Self:
        """Take the facts from a preview's report (`lora_studio.data.report.Report.to_dict`)."""
        rows = found["trained_rows"] + found["eval_rows"]
        share = rows / max(found["trained_rows"], 1)
        return cls(
            rows=rows,
            tokens=round(found["tokens"] * share),
            trained_tokens=round(found["trained_tokens"] * share),
            is_text=not found["lengths"],
            lengths=tuple((length, n) for length, n in found["lengths"]),
            labels=len(found.get("labels") or ()),
        )

    def covering(self, share: float) -> int:
        """Return the shortest length that a share of the conversations does not exceed."""
        wanted = share * sum(n for _, n in self.lengths)
        seen = 0
        for length, n in sorted(self.lengths):
            seen += n
            if seen >= wanted:
                return length
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """One value and why."""

    value: Any
    """As the recipe holds it."""
    reason_key: str
    """Key of the sentence that says why."""
    reason_values: Mapping[str, Any] = field(default_factory=dict)
    """What fills the sentence's braces."""
    source: Source = OWN
    """Where it is known from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The values for one goal, data, model and machine."""

    goal: GoalName
    values: Mapping[str, Recommended]
    """By the dotted path of the recipe."""
    module_names: tuple[str, ...]
    """Every target module of the model: naming them all is `all-linear`."""
    precision: str
    """The number format that `auto` means on this machine."""

    def applied(self, recipe: Recipe, *paths: str) -> Recipe:
        """Return the recipe with the recommended values, of all settings or of those named."""
        for path in paths or self.values:
            recipe = _with(recipe, path, self.values[path].value)
        return recipe


def differing(recipe: Recipe, recommendation: Recommendation) -> list[str]:
    """Return the paths of the settings that are not as recommended, in the order of the values."""
    return [
        path
        for path, recommended in recommendation.values.items()
        if not _is_same(path, recipe.value(path), recommended.value, recommendation)
    ]


def warnings(recipe: Recipe, info: ModelInfo) -> list[StudioError]:
    """Return what will probably not work, though it can be trained: a sentence for each.

    The learning rate is judged against the one for the model's size, whatever the goal.
    """
    found = []
    training = recipe.training
    rate, _ = rate_of(info)
    values = {"rate": f"{training.learning_rate:g}", "usual": f"{rate:g}"}
    if training.learning_rate >= FAR_OFF * rate * (1 - 1e-9):
        times = training.learning_rate / rate
        found.append(StudioError("recommendations.rate_high", **values, times=f"{times:.3g}"))
    elif training.learning_rate <= rate / FAR_OFF * (1 + 1e-9):
        times = rate / training.learning_rate
        found.append(StudioError("recommendations.rate_low", **values, times=f"{times:.3g}"))
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    if rows > MOST_ROWS_PER_STEP:
        found.append(StudioError("recommendations.batch_large", rows=rows, most=MOST_ROWS_PER_STEP))
    return found


def _with(recipe: Recipe, path: str, value: Any) -> Recipe:
    section, _, name = path.rpartition(".")
    if not section:
        return replace(recipe, **{name: value})
    return replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})


def _is_same(path: str, value: Any, wanted: Any, recommendation: Recommendation) -> bool:
    if path == "adapter.target_modules":
        names = set(recommendation.module_names)
        return value == wanted or (not isinstance(value, str) and set(value) == names)
    if path == "precision":
        formats = {recommendation.precision if name == "auto" else name for name in (value, wanted)}
        return len(formats) == 1
    if isinstance(value, float) and isinstance(wanted, float):
        return math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-12)
    return bool(value == wanted)
