"""What a class is called: the cell of a label column, and the order of all names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from lora_studio.data import turns
from lora_studio.errors import DatasetError

MOST_CLASSES = 1000
MANY_CLASSES = 20
LEAST_ROWS_EACH = 2
"""More than `MANY_CLASSES` of fewer rows each, on average, are taken for another column."""
SHOWN_NAMES = 3
SHOWN_CHARACTERS = 40
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


def name_of(cell: Any) -> str:
    """Return the class that a cell names: 1.0 is `1`, true is `true`, a list of one its item.

    Raises:
        turns.UnusableRowError: If the cell is blank, or holds several.
    """
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, list | dict) and cell:
        raise turns.UnusableRowError("data.skip_many_labels")
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    name = "" if turns.is_blank(cell) else " ".join(turns.text_of(cell).split())
    if not name:
        raise turns.UnusableRowError("data.skip_no_label")
    return unicodedata.normalize("NFC", name)


def ordered(names: Iterable[str]) -> list[str]:
    """Return names in the order of their ids: as numbers where all are numbers, else by text."""
    names = list(names)
    if all(map(NUMBER.fullmatch, names)):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names)


def refuse_many(names: Iterable[str], *, rows: int, columns: Sequence[str]) -> None:
    """Refuse names that are hardly classes: too many, or too few rows of each.

    Args:
        names: All different names.
        rows: How many rows they stand in.
        columns: Those to choose another one from.

    Raises:
        DatasetError: With the first names.
    """
    found = list(names)
    is_thin = len(found) > MANY_CLASSES and rows < LEAST_ROWS_EACH * len(found)
    if is_thin or len(found) > MOST_CLASSES:
        shown = ", ".join(f"“{name[:SHOWN_CHARACTERS]}”" for name in found[:SHOWN_NAMES])
        raise DatasetError(
            "data.too_many_classes",
            classes=len(found),
            rows=rows,
            shown=shown,
            most=MOST_CLASSES,
            columns=columns,
        )
