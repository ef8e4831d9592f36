"""What is measured: of which adapter, on what, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from lora_studio.errors import StudioError
from lora_studio.measuring.matching import matcher
from lora_studio.measuring.rows import HeldOut, HeldOutRow

MOST = 100_000
MOST_ROWS = {"cpu": 64, "mps": 128, "cuda": 512}
MOST_ANSWERS = {"cpu": 16, "mps": 32, "cuda": 128}
"""So many where nobody says: some minutes of this device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How much is measured."""

    rows: int | None = None
    """Held-out rows whose loss is measured; None is what `MOST_ROWS` has for the device."""
    answers: int | None = None
    """How many of them are answered; None is what `MOST_ANSWERS` has; 0 leaves it out."""
    match: str = ""
    """As `matching.matcher` takes it; empty leaves it out."""
    probe: bool = True
    """Whether the general texts are read."""

    def __post_init__(self) -> None:
        for name, value, least in (("rows", self.rows, 1), ("answers", self.answers, 0)):
            if value is not None and not least <= value <= MOST:
                raise StudioError(
                    "measuring.bad_count", name=name, value=value, least=least, most=MOST
                )
        if self.match:
            matcher(self.match)

    def settled(self, device: str, *, is_limited: bool = False) -> Self:
        """Return it with the usual numbers where there are none; limited, with no larger ones."""

        def count(wish: int | None, usual: int) -> int:
            if wish is None:
                return usual
            return min(wish, usual) if is_limited else wish

        rows, answers = MOST_ROWS[device], MOST_ANSWERS[device]
        return replace(self, rows=count(self.rows, rows), answers=count(self.answers, answers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured, and where."""

    adapter: str
    weights: str
    base: str
    precision: str
    device: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What it is measured on, as token ids."""

    held_out: HeldOut = field(default_factory=HeldOut)
    lack: str = "measuring.nothing_held_out"
    """Key of the sentence why there are no rows, if there are none."""
    rows_of: str = ""
    seen: int | None = 0
    """As `measurements.Measured` has them."""
    probe: Mapping[str, tuple[HeldOutRow, ...]] = field(default_factory=dict)
    """The general texts, by language."""
