"""What the newest evaluation of a run took for what, for the live view to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_studio.runs.history import History
from lora_studio.ui.language import Voice

MOST_CLASSES = 20
"""A larger table cannot be read; then the pairs that were confused most often are told."""
MOST_PAIRS = 12


def confusion(history: History, voice: Voice) -> dict[str, Any] | None:
    """Return the newest confusion matrix; None where there is none.

    Returns:
        `title`, and either `labels` with `rows` (true class by predicted class, counts) or
        `pairs`, sentences on the most confused pairs.
    """
    labels: Sequence[str] = history.plan.get("labels") or ()
    measured = [entry for entry in history.evals if entry.get("confusion")]
    if not labels or not measured:
        return None
    rows, step = measured[-1]["confusion"], measured[-1]["step"]
    if len(labels) <= MOST_CLASSES:
        title = voice("confusion_title", step=step)
        return {"title": title, "labels": list(labels), "rows": rows}
    return {"title": voice("confusion_pairs", step=step), "pairs": _pairs(labels, rows, voice)}


def _pairs(labels: Sequence[str], rows: Sequence[Sequence[int]], voice: Voice) -> list[str]:
    """Return the most confused pairs as sentences, the most frequent first."""
    wrong = [
        (count, true, predicted)
        for true, row in enumerate(rows)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    wrong.sort(key=lambda pair: -pair[0])
    if not wrong:
        return [voice("confusion_none")]
    return [
        voice(
            "confusion_pair",
            true=labels[true],
            predicted=labels[predicted],
            count=f"{count:,}",
            rows=f"{sum(rows[true]):,}",
        )
        for count, true, predicted in wrong[:MOST_PAIRS]
    ]
