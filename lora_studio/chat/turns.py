"""One at a time, first come first served, and everybody knows their place in the line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

LOOK_EVERY_S = 1.0
"""A place is told again after so many seconds, so that who waits can be interrupted."""


class Turns:
    """A line of those who want the same thing.

    with turns.join() as turn:
        for place in turn.places():
            ...  # tell it
        ...  # work
    """

    def __init__(self) -> None:
        self._line: list[Turn] = []
        self._moved = threading.Condition()

    def join(self) -> Turn:
        """Return a turn; its place in the line is taken when it is entered."""
        return Turn(self._line, self._moved)


class Turn:
    """One's own place in a line; left by leaving the block, by whatever way.

    Args:
        line: Everybody's turns, the first of them at work.
        moved: Guards the line and wakes who waits in it.
    """

    def __init__(self, line: list[Turn], moved: threading.Condition) -> None:
        self._line = line
        self._moved = moved

    def __enter__(self) -> Self:
        """Stand at the end of the line."""
        with self._moved:
            self._line.append(self)
        return self

    def places(self, every_s: float = LOOK_EVERY_S) -> Iterator[int]:
        """Wait for one's turn; yield how many are before, at each change and every `every_s`.

        Nothing is yielded to one whose turn it is at once.
        """
        while (place := self._place()) > 0:
            yield place
            with self._moved:
                if self._line.index(self) == place:
                    self._moved.wait(every_s)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the line, wherever one stands in it."""
        with self._moved:
            self._line.remove(self)
            self._moved.notify_all()

    def _place(self) -> int:
        with self._moved:
            return self._line.index(self)
