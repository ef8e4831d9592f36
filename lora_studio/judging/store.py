"""Votes on disk: one SQLite file a person, open only while it is read or written.

Each change is one short transaction, so that two tabs and two processes do not lose each other's.
The rollback journal is kept: the write-ahead log needs shared memory, which network folders lack
(sqlite.org/wal.html).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from lora_studio.chat.request import Message
from lora_studio.errors import StudioError
from lora_studio.judging.contenders import Contender
from lora_studio.judging.tables import ADD_ANSWER, ADD_VOTE, PAIRED, ensure
from lora_studio.judging.votes import Question, Said, Verdict, Vote

NAME = "votes.sqlite"
WAIT_S = 10.0
"""How long to wait for somebody else's transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """A vote that is kept."""

    id: int
    vote: Vote


class Counted(NamedTuple):
    """Votes that say the same of two contenders."""

    base: str
    precision: str
    one: str
    """Settings of a contender, as JSON,"""
    one_weights: str
    """and the weights of its adapters."""
    other: str
    """Those of another; the base's, if it is one of the two."""
    other_weights: str
    is_blind: bool
    winner: str
    """`one`, `other`, or `tie`, both good or both bad."""
    votes: int
    last: str
    """When the last of them was cast."""


class VoteStore:
    """The votes of one person.

    Args:
        file: Where they are kept; made at the first vote.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def cast(self, vote: Vote, *, replaces: int | None = None) -> int:
        """Keep a vote and return its number; one for the same answers is replaced.

        Who has voted on the same answers before was told who gave them: another vote on them is not
        blind.

        Args:
            vote: The vote.
            replaces: Number of a vote that it takes the place of, if that is still there.

        Raises:
            StudioError: If the file cannot be used.
        """
        with self._changing() as database:
            known = database.execute(
                "SELECT 1 FROM votes WHERE fingerprint = ?", [vote.fingerprint]
            ).fetchone()
            is_blind = vote.is_blind and known is None
            database.execute(
                "DELETE FROM votes WHERE fingerprint = ? OR id = ?", [vote.fingerprint, replaces]
            )
            added = database.execute(
                ADD_VOTE,
                [
                    vote.fingerprint,
                    vote.cast_at,
                    vote.question.base,
                    _json(vote.question.to_dict()),
                    is_blind,
                    str(vote.verdict),
                    vote.question.precision,
                    vote.question.is_shared,
                ],
            )
            number = cast("int", added.lastrowid)
            database.executemany(
                ADD_ANSWER,
                [
                    (
                        number,
                        place,
                        said.contender.key,
                        _json(said.contender.to_dict()),
                        said.answer,
                        _json(dict(said.weights)),
                        said.reason,
                    )
                    for place, said in enumerate(vote.answers)
                ],
            )
        return number

    def remove(self, number: int) -> Vote:
        """Take a vote back; return it, so that it can be cast again.

        Raises:
            StudioError: If there is no such vote.
        """
        with self._changing() as database:
            found = next(_read(database, "WHERE votes.id = ?", [number]), None)
            if found is None:
                raise StudioError("judging.no_such_vote", number=number)
            database.execute("DELETE FROM votes WHERE id = ?", [number])
        return found.vote

    def all(self, base: str | None = None) -> list[Cast]:
        """Return the votes as they were cast, those on one base or all.

        Raises:
            StudioError: If the file cannot be used.
        """
        if not self._file.exists():
            return []
        with self._open() as database:
            where = "" if base is None else "WHERE votes.base = ?"
            return list(_read(database, where, [] if base is None else [base]))

    def counted(self) -> list[Counted]:
        """Return how often each two contenders won against each other.

        Left out are votes on answers to different conversations, and of those on more than two
        contenders the pairs of which nothing is said.

        Raises:
            StudioError: If the file cannot be used.
        """
        if not self._file.exists():
            return []
        with self._open() as database:
            return [Counted(*row) for row in database.execute(PAIRED)]

    def unshared(self, base: str | None = None) -> int:
        """Return how many votes `counted` leaves out, of those on one base or of all.

        Raises:
            StudioError: If the file cannot be used.
        """
        if not self._file.exists():
            return 0
        with self._open() as database:
            query = "SELECT count(*) FROM votes WHERE NOT is_shared AND base = ifnull(?, base)"
            return int(database.execute(query, [base]).fetchone()[0])

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one change, which is whole or not at all."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._file, timeout=WAIT_S, isolation_level=None)
            with closing(connection) as database:
                database.execute("PRAGMA foreign_keys = ON")
                ensure(database, self._file)
                yield database
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StudioError:
        return StudioError("judging.votes_unusable", file=str(self._file), reason=str(error))


def _read(database: sqlite3.Connection, where: str, values: list[Any]) -> Iterator[Cast]:
    rows = database.execute(
        "SELECT id, cast_at, question, is_blind, verdict FROM votes "  # noqa: S608 - no value
        f"{where} ORDER BY id",
        values,
    )
    for number, cast_at, question, is_blind, verdict in rows:
        answers = database.execute(
            "SELECT contender_settings, answer, weights, reason FROM answers"
            " WHERE vote = ? ORDER BY place",
            [number],
        )
        vote = Vote(
            question=_question(json.loads(question)),
            answers=tuple(
                Said(
                    contender=Contender.from_dict(json.loads(settings)),
                    answer=answer,
                    weights=json.loads(weights),
                    reason=reason,
                )
                for settings, answer, weights, reason in answers
            ),
            verdict=_verdict(verdict),
            is_blind=bool(is_blind),
            cast_at=cast_at,
        )
        yield Cast(id=number, vote=vote)


def _question(fields: Mapping[str, Any]) -> Question:
    messages = tuple(cast("Message", message) for message in fields["messages"])
    return Question(
        base=fields["base"],
        messages=messages,
        text=fields["text"],
        sampling=fields["sampling"],
        is_shared=fields.get("is_shared", True),
        precision=fields.get("precision", ""),
    )


def _verdict(kept: str) -> Verdict:
    return int(kept) if kept.isdecimal() else cast("Verdict", kept)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
