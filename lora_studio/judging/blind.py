"""Panes in an order that nobody knows until the vote.

The order stays on the server: the browser is shown letters and texts, by place.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Which pane stands at which place."""

    order: tuple[int, ...]
    """The pane at each place, from the left."""

    @classmethod
    def draw(cls, panes: int, seed: int | None = None) -> Self:
        """Draw an order of so many panes, each equally likely.

        Args:
            panes: How many.
            seed: The same gives the same; None draws one that nobody can guess.
        """
        order = list(range(panes))
        random.Random(secrets.randbits(64) if seed is None else seed).shuffle(order)
        return cls(tuple(order))

    @classmethod
    def open(cls, panes: int) -> Self:
        """Return the order of panes whose names are seen."""
        return cls(tuple(range(panes)))

    def pane_at(self, place: int) -> int:
        """Return the pane that stands at a place."""
        return self.order[place]


def letter(place: int) -> str:
    """Return the name of a place while the panes' own are hidden: A, B, C, D."""
    return chr(ord("A") + place)
