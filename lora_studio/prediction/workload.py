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
    """Mean tokens of a row of a usual batch, what it is padded with included."""
    train_rows: int | None
    """Rows of an epoch, None while the data is not known."""
    packed: bool = False
    """Whether rows are laid end to end, without padding."""
    shared: int = 0
    """Tokens that all rows of a batch begin with and that are computed once."""
    fused: bool = False
    """Whether the layers that can be are computed in fewer passes."""
    labels: int | None = None
    """Classes of a text classification; None where the model learns to write."""

    @classmethod
    def of(cls, recipe: Recipe, report: Mapping[str, Any] | None = None) -> Self:
        """Gather it from a recipe and, where its data was looked at, the report's plain values."""
        training, limit = recipe.training, recipe.data.max_length
        tokens = report["tokens"] if report else 0
        shares = report is not None and recipe.packs and not recipe.adapter.lora_dropout
        longest = min(report["tokens_longest"], limit) if report else limit
        return cls(
            rows=training.per_device_train_batch_size,
            length=longest,
            labelled=report["trained_tokens"] / tokens if report and tokens else 1.0,
            accumulation=training.gradient_accumulation_steps,
            padded_length=_padded(recipe, report) if report else longest,
            train_rows=report["trained_rows"] if report else None,
            packed=recipe.packs,
            shared=report.get("shared_tokens", 0) if report and shares else 0,
            fused=training.fused_layers and recipe.task_type != "SEQ_CLS",
            labels=_labels(recipe, report),
        )

    @property
    def tokens(self) -> int:
        """Tokens of the largest batch that are computed, padding included."""
        return self.rows * self.length - (self.rows - 1) * self.shared

    @property
    def usual_tokens(self) -> float:
        """Tokens of a usual batch that are computed, padding included."""
        return self.rows * self.padded_length - (self.rows - 1) * self.shared

    @property
    def scored(self) -> int:
        """Positions of the largest batch that the head scores."""
        return math.ceil(self.rows * self.length * self.labelled)


def _labels(recipe: Recipe, report: Mapping[str, Any] | None) -> int | None:
    if recipe.task_type != "SEQ_CLS":
        return None
    return len((report or {}).get("labels", ())) or FEWEST_LABELS


def _padded(recipe: Recipe, report: Mapping[str, Any]) -> float:
    """Return the expected length of a row and of what it is padded with.

    Rows laid end to end have no padding, those beside others of their length next to none. Else it
    is the longest of a batch, of those that were counted: the expectation of a maximum,
    Σ length·(F(length)^rows - F(before)^rows).
    """
    rows, limit = recipe.training.per_device_train_batch_size, recipe.data.max_length
    counted = [(min(length, limit), times) for length, times in report["lengths"]]
    total = sum(times for _, times in counted)
    if recipe.packs or recipe.training.groups or not total:  # pieces of texts, about equally long
        return float(report["tokens"] / max(report["trained_rows"], 1))
    expected, below, seen = 0.0, 0.0, 0
    for length, times in counted:
        seen += times
        upto = (seen / total) ** rows
        expected += length * (upto - below)
        below = upto
    return expected
