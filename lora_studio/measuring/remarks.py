"""What is said of a measurement beside its numbers, as keys of the table and their values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_studio.measuring.measurements import Measured
from lora_studio.wording import say

Remark = tuple[str, dict[str, Any]]


def remarks(found: Measured, language: str = "en") -> Iterator[Remark]:
    """Yield what rows it was, what was answered, what is forgotten, and what was not measured.

    Args:
        found: The measurement.
        language: In which values are named; that of the sentences.
    """
    yield from on_rows(found)
    if found.answers is not None:
        answers = found.answers
        about = {"rows": answers.rows, "tokens": answers.max_new_tokens, "cut": answers.cut_off}
        yield "measuring.answered", about
    for entry in found.forgetting:
        before, after = entry.perplexity
        yield (
            f"measuring.forgot_{entry.verdict}",
            {
                "text": say(f"measuring.language_{entry.language}", language),
                "base": f"{entry.base:.3f}",
                "adapter": f"{entry.adapter:.3f}",
                "rise": f"{entry.rise:+.1%}",
                "before": f"{before:.4g}",
                "after": f"{after:.4g}",
            },
        )
    for key in found.notes:
        yield key, {}


def on_rows(found: Measured) -> Iterator[Remark]:
    """Yield which rows it was measured on, and whether the adapter learned from them."""
    counted = found.loss or found.classes
    if counted is None:
        return
    rows = {"rows": f"{counted.rows:,}", "held_out": f"{found.held_out:,}"}
    if not found.rows_of:
        yield "measuring.on_rows", rows
        return
    yield "measuring.on_rows_of", rows | {"run": found.rows_of}
    if found.seen is None:
        yield "measuring.perhaps_seen", {}
    elif found.seen:
        yield "measuring.seen", {"seen": f"{found.seen:,}"}
    else:
        yield "measuring.not_seen", {}
