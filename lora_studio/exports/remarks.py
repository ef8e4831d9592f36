"""What is said of an export or a push beside its files, as keys of the table and their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Remark = tuple[str, dict[str, Any]]

PLACES = {
    True: "shipping.place_there",
    False: "shipping.place_new",
    None: "shipping.place_unknown",
}
"""What is said of a repository, by whether it was there."""


def on_export(found: Mapping[str, Any]) -> Iterator[Remark]:
    """Yield what is to be minded, and how far the export is from what it was made of.

    Args:
        found: The plain values of `exports.orders.Shipped`.
    """
    yield from _notes(found)
    check, again = found["check"], found["again"]
    if check is not None:
        about = {"check": check["relative"], "change": found["change"]["relative"]}
        yield "shipping.checked", about | {"tokens": check["tokens"]}
    if again is not None:
        about = {"again": again["relative"], "starts": again["answers"]}
        yield "shipping.checked_again", about | {"of": again["answer_tokens"]}


def on_push(found: Mapping[str, Any]) -> Iterator[Remark]:
    """Yield what is to be minded, and what goes from the repository.

    Args:
        found: The plain values of `exports.orders.Published`.
    """
    yield from _notes(found)
    if found["deleted"]:
        yield "shipping.deletes", {"where": found["repository"], "files": found["deleted"]}


def on_place(found: Mapping[str, Any]) -> Remark:
    """Return whether the repository of a push was there before."""
    return PLACES[found["exists"]], {"where": found["repository"]}


def _notes(found: Mapping[str, Any]) -> Iterator[Remark]:
    for note in found["notes"]:
        yield note["key"], note["values"]
