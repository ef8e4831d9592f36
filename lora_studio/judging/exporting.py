"""Votes as files for other programs: a table, JSON Lines, pairs to learn preferences from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from lora_studio.judging.store import Cast
from lora_studio.judging.votes import Said

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that begins so is run as a formula by spreadsheets (owasp.org, CSV Injection)."""
COLUMNS = (
    "id", "cast_at", "base", "question", "contender", "answer", "place", "is_best", "verdict",
    "is_blind", "sampling", "weights", "reason", "precision", "is_shared",
)  # fmt: skip


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV that a spreadsheet opens as text; lines end as RFC 4180 has them.

    A text that would be a formula gets an apostrophe in front, which spreadsheets do not show.
    """
    out = io.StringIO()
    csv.writer(out).writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def votes_csv(votes: Iterable[Cast]) -> str:
    """Return the votes as CSV, a line for each answer."""
    return csv_text([COLUMNS, *(row for one in votes for row in _rows(one))])


def votes_jsonl(votes: Iterable[Cast]) -> Iterator[str]:
    """Yield the votes as lines of JSON."""
    for one in votes:
        vote = one.vote
        fields = {
            "id": one.id,
            "cast_at": vote.cast_at,
            **vote.question.to_dict(),
            "answers": [
                {
                    "contender": said.contender.key,
                    **said.contender.to_dict(),
                    "answer": said.answer,
                    "weights": dict(said.weights),
                    "reason": said.reason,
                }
                for said in vote.answers
            ],
            "verdict": vote.verdict,
            "is_blind": vote.is_blind,
        }
        yield json.dumps(fields, ensure_ascii=False) + "\n"


def preferences_jsonl(votes: Iterable[Cast]) -> Iterator[str]:
    """Yield what TRL's trainers of preferences read: a prompt, a chosen and a rejected answer.

    The best answer is paired with each of the others. Left out are votes without a best answer or
    on answers to different conversations, and pairs whose answers are the same or of which one was
    cut short. Conversations come as messages, continued texts as texts (TRL documentation, Dataset
    formats, Preference).
    """
    for one in votes:
        vote = one.vote
        if not isinstance(vote.verdict, int) or not vote.question.is_shared:
            continue
        best = vote.answers[vote.verdict]
        for said in vote.answers:
            if said.answer == best.answer or not (said.is_whole and best.is_whole):
                continue
            pair = {"chosen": best.answer, "rejected": said.answer}
            if vote.question.text is not None:
                line: dict[str, Any] = {"prompt": vote.question.text, **pair}
            else:
                line = {"prompt": vote.question.to_dict()["messages"]}
                line |= {
                    side: [{"role": "assistant", "content": answer}]
                    for side, answer in pair.items()
                }
            yield json.dumps(line, ensure_ascii=False) + "\n"


def _rows(one: Cast) -> Iterator[tuple[Any, ...]]:
    vote = one.vote
    asked = vote.question
    question = (
        asked.text
        if asked.text is not None
        else json.dumps(asked.to_dict()["messages"], ensure_ascii=False)
    )
    sampling = json.dumps(dict(asked.sampling), ensure_ascii=False, sort_keys=True)
    verdict = "best" if isinstance(vote.verdict, int) else vote.verdict
    for place, said in enumerate(vote.answers):
        yield (
            one.id, vote.cast_at, asked.base, question, said.contender.key, said.answer, place,
            int(vote.verdict == place), verdict, int(vote.is_blind), sampling, _weights(said),
            said.reason, asked.precision, int(asked.is_shared),
        )  # fmt: skip


def _weights(said: Said) -> str:
    return json.dumps(dict(said.weights), ensure_ascii=False, sort_keys=True)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return "'" + value
    return value
