"""What one batch and one epoch of a recipe put through the model. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lora_studio.recipe import Recipe

FEWEST_LABELS = 2
"""Classes to reckon with while the data is not known; a head over more is small all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Tokens of a run."""

    rows: int
    """Rows per forward pass."""
    length: int
    """Tokens of the longest row that can occur."""
    labelled: float
    """Share of tokens that are trained on, 0 to 1; 1 while the data is not known."""
    accumulation: int
    """Forward passes per optimizer step."""
    padded_length: float
    """Mean tokens of a row of a usual batch, padding included."""
    train_rows: int | None
    """Rows of an epoch, None while the data is not known."""
    labels: int | None = None
    """Classes of a text classification; None where the model learns to write."""

    @classmethod
    def of(cls, recipe: Recipe, report: Mapping[str, Any] | None = None) -> Self:
        """Gather it from a recipe and, where its data was looked at, the report's plain values."""
        training, limit = recipe.training, recipe.data.max_length
        tokens = report["tokens"] if report else 0
        longest = min(report["tokens_longest"], limit) if report else limit
        return cls(
            rows=training.per_device_train_batch_size,
            length=longest,
            labelled=report["trained_tokens"] / tokens if report and tokens else 1.0,
            accumulation=training.gradient_accumulation_steps,
            padded_length=_padded(report, training.per_device_train_batch_size, limit)
            if report
            else longest,
            train_rows=report["trained_rows"] if report else None,
            labels=_labels(recipe, report),
        )

    @property
    def tokens(self) -> int:
        """Tokens of the largest batch, padding included."""
        return self.rows * self.length

    @property
    def scored(self) -> int:
        """Positions of the largest batch that the head scores on a CPU."""
        return math.ceil(self.tokens * self.labelled)


def _labels(recipe: Recipe, report: Mapping[str, Any] | None) -> int | None:
    if recipe.task_type != "SEQ_CLS":
        return None
    return len((report or {}).get("labels", ())) or FEWEST_LABELS


def _padded(report: Mapping[str, Any], rows: int, limit: int) -> float:
    """Return the expected length of the longest of `rows` rows, of those that were counted.

    The expectation of a maximum: Σ length·(F(length)^rows - F(before)^rows).
    """
    counted = [(min(length, limit), times) for length, times in report["lengths"]]
    total = sum(times for _, times in counted)
    if not total:  # pieces of texts, about equally long
        return float(report["tokens"] / max(report["trained_rows"], 1))
    expected, below, seen = 0.0, 0.0, 0
    for length, times in counted:
        seen += times
        upto = (seen / total) ** rows
        expected += length * (upto - below)
        below = upto
    return expected
