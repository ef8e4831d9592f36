"""What two recipes do differently, setting by setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from lora_studio.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that has another value in each of two recipes."""

    name: str
    """Its dotted name, as `adapter.r`."""
    left: Any
    """Its value in the first."""
    right: Any
    """Its value in the second."""


def changes(left: Recipe, right: Recipe) -> list[Change]:
    """Return the settings in which two recipes differ, in the order of the recipe file."""
    others = dict(flat(right))
    return [
        Change(name, value, others[name]) for name, value in flat(left) if value != others[name]
    ]


def flat(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Yield every setting's dotted name and its value; lists and names with values are whole."""
    yield from _flat(recipe, "")


def _flat(branch: Any, at: str) -> Iterator[tuple[str, Any]]:
    for entry in fields(branch):
        value = getattr(branch, entry.name)
        if is_dataclass(value):
            yield from _flat(value, f"{at}{entry.name}.")
        else:
            yield f"{at}{entry.name}", value
