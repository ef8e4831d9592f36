"""Who asks, and whether they want no more: a stop that ends its own answers and no others'."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Ticket:
    """What one person asks for at one place, be it several things one after the other."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """What the engine knows it by."""
    is_stopped: bool = False
    """For good: who asks again takes another ticket."""


class Tickets:
    """The tickets that are held now, by who holds them."""

    def __init__(self) -> None:
        self._held: dict[str, list[Ticket]] = {}
        self._turn = threading.Lock()

    @contextmanager
    def held(self, asker: str) -> Iterator[Ticket]:
        """Give a ticket for as long as the block takes.

        Args:
            asker: Who asks and from where; `stop` finds it by this.
        """
        ticket = Ticket()
        with self._turn:
            self._held.setdefault(asker, []).append(ticket)
        try:
            yield ticket
        finally:
            with self._turn:
                self._held[asker].remove(ticket)
                if not self._held[asker]:
                    del self._held[asker]

    def stop(self, asker: str) -> list[Ticket]:
        """Mark the tickets of an asker as stopped, and return them."""
        with self._turn:
            tickets = list(self._held.get(asker, ()))
        for ticket in tickets:
            ticket.is_stopped = True
        return tickets
