"""Base against adapter over the same rows, and how sure the difference is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lora_studio.measuring.measurements import Compared

RESAMPLES = 2000
FEWEST_ROWS = 8
"""With fewer rows a bootstrap says too little about the rows that might have come instead."""
SEED = 42

Rows = np.ndarray[Any, np.dtype[np.int64]]
"""Numbers of rows."""


def compared(
    base: Sequence[float],
    adapter: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    seed: int = SEED,
) -> Compared:
    """Compare sums over rows: of base and adapter the total by the total weight.

    The interval is the percentile bootstrap of the paired difference: whole rows are drawn with
    replacement, base and adapter together, 2,000 times, and the middle 95 % is reported (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 14; for language tasks
    Koehn 2004, W04-3250).

    Args:
        base: A sum for each row: its negative log-likelihood, or its score.
        adapter: The same of the adapter.
        weights: What the sums are divided by, as tokens; None is 1 a row.
        seed: What rows are drawn from.
    """
    first, second = np.asarray(base, float), np.asarray(adapter, float)
    weight = np.ones(len(first)) if weights is None else np.asarray(weights, float)
    differences = second - first
    low = high = None
    if np.ptp(differences):  # rows that all differ alike say nothing more when drawn anew
        low, high = interval(
            len(first), lambda rows: float(differences[rows].sum() / weight[rows].sum()), seed=seed
        )
    total = float(weight.sum())
    return Compared(
        base=float(first.sum()) / total, adapter=float(second.sum()) / total, low=low, high=high
    )


def interval(
    count: int, difference: Callable[[Rows], float], *, seed: int = SEED
) -> tuple[float | None, float | None]:
    """Return the bounds between which 95 % of the resampled differences lie; None for few rows.

    Args:
        count: How many rows there are.
        difference: Adapter minus base over the rows that were drawn.
        seed: As in `compared`.
    """
    if count < FEWEST_ROWS:
        return None, None
    draw = np.random.default_rng(seed)
    found = [difference(draw.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
