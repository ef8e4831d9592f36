"""Classes that a dataset names apart from its rows, which hold only their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

KEY = b"huggingface"
NO_LABEL = -1
"""How `datasets` writes that a row has no label."""

Names = Mapping[str, Sequence[str]]
"""Names of the classes by column."""


def of_schema(metadata: Mapping[bytes, bytes] | None) -> Names:
    """Return the names that `datasets` has written into the schema of a file."""
    try:
        return of_features(json.loads((metadata or {}).get(KEY, b"{}"))["info"]["features"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def of_features(features: Mapping[str, Any]) -> Names:
    """Return the names among a dataset's features, as their `to_dict` gives them."""
    return {
        column: [str(name) for name in feature["names"]]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def named(row: dict[str, Any], names: Names) -> dict[str, Any]:
    """Return a row with the names of its classes in place of their numbers."""
    return row | {column: _name(row.get(column), known) for column, known in names.items()}


def _name(value: Any, names: Sequence[str]) -> Any:
    if value == NO_LABEL:
        return None
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
