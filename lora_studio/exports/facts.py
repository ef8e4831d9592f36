"""What is known of an adapter that is published, gathered from its run and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.adapters.configuration import largest_rank, read_settings
from lora_studio.errors import AdapterError, StudioError
from lora_studio.library.names import Named, read_origin, resolve
from lora_studio.measuring import measurements
from lora_studio.measuring.measurements import Measured
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History
from lora_studio.settings import Settings

CARD = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Smaller:
    """A time that an adapter was made smaller."""

    of: str
    """What it was made of,"""
    before: int | None
    """and the rank of that, None where it is gone."""
    rank: int | None
    lost: float | None
    """‖ΔW - ΔW'‖ / ‖ΔW‖, Frobenius norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an adapter that is published."""

    adapter: Named
    licence: str | None = None
    """Of the base, as its own card says."""
    history: History | None = None
    """Of the run that trained it, None where none here did."""
    step: str = ""
    """Of the run's checkpoint that it is, if it is one."""
    smaller: tuple[Smaller, ...] = ()
    """How it was made smaller since, the last time first."""
    came_with: str | None = None
    """The card of one that no run here trained."""
    report: Mapping[str, Any] | None = None
    """Of the data, the plain values of `data.report.Report`."""
    measured: Measured | None = None
    has_curves: bool = False
    """Whether the picture of the curves lies beside the card."""
    merged: Mapping[str, Any] | None = None
    """Where the whole model is published, the plain values of `exports.orders.Shipped`; empty
    before it is made."""


def facts_of(adapter: Named, licence: str | None, settings: Settings) -> Facts:
    """Gather what a card says of an adapter.

    Args:
        adapter: What is published.
        licence: Of its base.
        settings: Where that is which it was made of.
    """
    first, smaller = _traced(adapter, settings)
    run = first.run if first else None
    return Facts(
        adapter=adapter,
        licence=licence,
        history=None if run is None else History(run).update(),
        step=first.step if first else "",
        smaller=smaller,
        came_with=_text(adapter.folder / CARD) if run is None else None,
        report=None if run is None else _report(run),
        measured=measurements.read(adapter.home, adapter.folder, step=adapter.step),
    )


def _traced(adapter: Named, settings: Settings) -> tuple[Named | None, tuple[Smaller, ...]]:
    """Return what an adapter was made of in the first place, None where that is gone, and how."""
    steps: list[Smaller] = []
    current, seen = adapter, {adapter.name}
    while current.run is None:
        try:
            origin = read_origin(current.folder.parent)
        except AdapterError:
            break
        if origin.kind != "shrunk":
            break
        earlier = _there(origin.of, current.fingerprint, settings)
        before = _rank(earlier) if earlier else None
        steps.append(Smaller(of=origin.of, before=before, rank=origin.rank, lost=origin.error))
        if earlier is None or earlier.name in seen:
            return None, tuple(steps)
        current = earlier
        seen.add(current.name)
    return current, tuple(steps)


def _there(name: str, fingerprint: str | None, settings: Settings) -> Named | None:
    """Return the adapter of a name, unless it is gone or one of another base has that name now."""
    try:
        found = resolve(name, settings)
    except StudioError:
        return None
    return found if found.fingerprint == fingerprint else None


def _rank(adapter: Named) -> int | None:
    try:
        return largest_rank(read_settings(adapter.folder))
    except AdapterError:
        return None


def _report(run: RunFolder) -> Mapping[str, Any] | None:
    with suppress(OSError, ValueError):
        found: Mapping[str, Any] = json.loads((run.data / "report.json").read_text("utf-8"))
        return found
    return None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
