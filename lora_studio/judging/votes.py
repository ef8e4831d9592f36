"""A vote: what was asked, who answered what, and which answer was best."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from lora_studio.chat.request import Message
from lora_studio.errors import StudioError
from lora_studio.judging.contenders import Contender

Verdict = int | Literal["tie", "bad"]
"""The place of the best answer as they were shown, from 0 on the left; or all as good as each
other; or all bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer."""

    contender: Contender
    answer: str
    weights: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each adapter's weights, by its name; empty in votes from before it was kept."""
    reason: str = ""
    """Why it ended, as in `chat.request.Reason`; empty in votes from before it was kept."""

    @property
    def is_whole(self) -> bool:
        """Whether it came to its own end, as far as is known."""
        return self.reason not in ("length", "stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What was asked of all panes."""

    base: str
    """Source of the base model: `(base)` of one is not that of another."""
    messages: tuple[Message, ...] = ()
    """The conversation, a system turn first where there is one, the question last."""
    text: str | None = None
    """The text that was continued without a chat template, in place of `messages`."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How tokens were picked, as in `chat.request.Sampling`; `apart` says whether each answer had a
    seed of its own."""
    is_shared: bool = True
    """Whether all had heard the same before; in a longer conversation each has its own answers,
    and `messages` are those of the leftmost."""
    precision: str = ""
    """What the base was held in; empty in votes from before it was kept."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "base": self.base,
            "messages": [dict(message) for message in self.messages],
            "text": self.text,
            "sampling": dict(self.sampling),
            "is_shared": self.is_shared,
            "precision": self.precision,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One judgement of answers to one question.

    Raises:
        StudioError: If there are fewer than two answers, or the verdict names none of them.
    """

    question: Question
    answers: tuple[Said, ...]
    """In the order in which they were shown, from the left."""
    verdict: Verdict
    is_blind: bool = False
    """Whether the names were hidden until the vote."""
    cast_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When, in UTC (ISO 8601)."""

    def __post_init__(self) -> None:
        if len(self.answers) < 2:
            raise StudioError("judging.too_few_answers")
        check_verdict(self.verdict, len(self.answers))

    @property
    def fingerprint(self) -> str:
        """The same for the same answers to the same question, in whatever order they are shown.

        What votes did not keep once makes no difference where it is not known.
        """
        said = sorted(
            (one.contender.key, one.answer, *sorted(one.weights.items())) for one in self.answers
        )
        asked = self.question.to_dict()
        del asked["sampling"]
        if not self.question.precision:
            del asked["precision"]
        text = json.dumps([asked, said], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check_verdict(verdict: object, answers: int) -> None:
    """Refuse a verdict that names none of so many answers.

    Raises:
        StudioError: If so.
    """
    is_place = isinstance(verdict, int) and not isinstance(verdict, bool)
    if verdict in ("tie", "bad") or (is_place and 0 <= verdict < answers):  # type: ignore[operator]
        return
    raise StudioError("judging.bad_verdict", verdict=str(verdict)[:40], answers=answers)
