"""The tables of votes: made, brought up to date where an older program made them, and queried."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

from lora_studio.errors import StudioError

STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE votes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        fingerprint TEXT NOT NULL UNIQUE,
        cast_at TEXT NOT NULL,
        base TEXT NOT NULL,
        question TEXT NOT NULL,
        is_blind INTEGER NOT NULL,
        verdict TEXT NOT NULL
    )""",
        """CREATE TABLE answers (
        vote INTEGER NOT NULL REFERENCES votes (id) ON DELETE CASCADE,
        place INTEGER NOT NULL,
        contender TEXT NOT NULL,
        contender_settings TEXT NOT NULL,
        answer TEXT NOT NULL,
        PRIMARY KEY (vote, place)
    ) WITHOUT ROWID""",
    ),
    (
        "ALTER TABLE votes ADD COLUMN precision TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE votes ADD COLUMN is_shared INTEGER NOT NULL DEFAULT 1",
        # Within a text of the question these quotes would have backslashes before them.
        """UPDATE votes SET is_shared = 0 WHERE instr(question, '"is_shared": false')""",
        "ALTER TABLE answers ADD COLUMN weights TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE answers ADD COLUMN reason TEXT NOT NULL DEFAULT ''",
    ),
)
"""What makes a file of each version out of one of the version before."""
VERSION = len(STEPS)
"""Kept as the file's `user_version`."""
ADD_VOTE = """
    INSERT INTO votes
        (fingerprint, cast_at, base, question, is_blind, verdict, precision, is_shared)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
ADD_ANSWER = """
    INSERT INTO answers (vote, place, contender, contender_settings, answer, weights, reason)
    VALUES (?, ?, ?, ?, ?, ?, ?)
"""
# The base comes last: its key begins with a bracket, which stands before every letter.
# A vote counts once for two contenders, in however many panes each of them stood.
PAIRED = """
    SELECT votes.base, votes.precision, one.contender_settings, one.weights,
           other.contender_settings, other.weights, votes.is_blind,
           CASE
               WHEN best.place IS NULL THEN 'tie'
               WHEN (best.contender_settings, best.weights)
                   = (one.contender_settings, one.weights) THEN 'one'
               WHEN (best.contender_settings, best.weights)
                   = (other.contender_settings, other.weights) THEN 'other'
           END AS winner,
           count(DISTINCT votes.id), max(votes.cast_at)
    FROM votes
    JOIN answers AS one ON one.vote = votes.id
    JOIN answers AS other ON other.vote = votes.id AND one.contender > other.contender
    LEFT JOIN answers AS best
        ON best.vote = votes.id AND CAST(best.place AS TEXT) = votes.verdict
    WHERE votes.is_shared
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    HAVING winner IS NOT NULL
"""


def ensure(database: sqlite3.Connection, file: Path) -> None:
    """Make the tables, or what older ones lack.

    Raises:
        StudioError: If a newer program wrote them.
    """
    if _version(database) == VERSION:
        return
    database.execute("BEGIN IMMEDIATE")
    version = _version(database)  # somebody else may have been quicker
    for statement in itertools.chain(*STEPS[version:]):
        database.execute(statement)
    if version < VERSION:
        database.execute(f"PRAGMA user_version = {VERSION}")
    database.execute("COMMIT")
    if version > VERSION:
        raise StudioError("judging.newer_votes", file=str(file), version=version, known=VERSION)


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])
