"""What the checks found: how many rows, the first of them, and what the recipe says to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

from lora_studio.errors import DatasetError
from lora_studio.recipe import ChecksSpec
from lora_studio.wording import say

LISTED_ROWS = 20
NAMED_ROWS = 5
EXAMPLE_LENGTH = 160

Place = tuple[str, int]
"""Name of a file, and the row's number in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    """Name of the check, as in `ChecksSpec`."""
    choice: str
    """What the recipe says to do about it."""
    count: int
    """Rows found."""
    rows: tuple[Place, ...]
    """The first 20 of them."""
    example: str
    """A piece of the first of them that shows it, at most 160 characters."""
    looked_at: int | None
    """Rows looked at, where there were more; None for all."""

    def say(self, language: str = "en") -> str:
        """Return the check's name in a person's words."""
        return say(f"data.check_{self.check}", language)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain lists, dicts and numbers."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return plain | {"rows": [list(row) for row in self.rows]}


@dataclass(slots=True)
class _Tally:
    count: int = 0
    rows: list[Place] = field(default_factory=list)
    example: str = ""
    looked_at: int | None = None


class Findings:
    """Collects what the checks find; of each check it keeps a number and the first rows.

    Args:
        checks: What to do about it.
    """

    def __init__(self, checks: ChecksSpec) -> None:
        self._checks = checks
        self._tallies = {entry.name: _Tally() for entry in fields(checks)}

    def add(self, check: str, file: str, number: int, example: str) -> str:
        """Count one row, and return what the recipe says to do about it.

        Args:
            check: Name of the check, as in `ChecksSpec`.
            file: Name of the row's file.
            number: Its number there.
            example: A piece of it that shows what was found; cut where it is long.
        """
        return self.add_many(check, 1, rows=((file, number),), example=example)

    def add_many(self, check: str, count: int, *, rows: Iterable[Place], example: str) -> str:
        """Count `count` rows of which the first are `rows`; else as `add`."""
        tally = self._tallies[check]
        if not tally.count:
            tally.example = _short(example)
        tally.count += count
        tally.rows.extend(islice(rows, LISTED_ROWS - len(tally.rows)))
        return self.choice(check)

    def choice(self, check: str) -> str:
        """Return what the recipe says about a check."""
        choice: str = getattr(self._checks, check)
        return choice

    def limit(self, check: str, looked_at: int) -> None:
        """Note that a check looked at only so many rows."""
        self._tallies[check].looked_at = looked_at

    def listed(self) -> list[Finding]:
        """Return what was found, in the order of `ChecksSpec`."""
        return [
            Finding(
                check=check,
                choice=self.choice(check),
                count=tally.count,
                rows=tuple(tally.rows),
                example=tally.example,
                looked_at=tally.looked_at,
            )
            for check, tally in self._tallies.items()
            if tally.count
        ]


def stop_at(findings: Iterable[Finding]) -> None:
    """Stop where the recipe says so of one of the findings.

    Raises:
        DatasetError: Naming the check and its first rows.
    """
    for finding in findings:
        if finding.choice == "stop":
            named = ", ".join(f"{file}:{number}" for file, number in finding.rows[:NAMED_ROWS])
            more = ", …" if finding.count > NAMED_ROWS else ""
            raise DatasetError(
                f"data.check_stops_{finding.check}", count=finding.count, rows=named + more
            )


def _short(text: str) -> str:
    """Return a piece of text as one line that any file can hold."""
    line = " ".join(text[: EXAMPLE_LENGTH * 8].split())
    line = line.encode("utf-8", "replace").decode("utf-8")
    return line if len(line) <= EXAMPLE_LENGTH else line[: EXAMPLE_LENGTH - 1] + "…"
