"""What is asked of the engine, and the events that come back: plain values, no model library.

The page's process builds these and sends them to the process that holds the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from lora_studio.errors import StudioError

Reason = Literal["end", "length", "stopped"]
"""Why an answer ended: the model's own end token, no room left, or someone pressed stop."""
Who = str | Mapping[str, float] | None
"""Who answers: an adapter by its name, several with a weight each, or None for the base."""
Voice = tuple[tuple[str, float], ...]
"""The same in one form: adapters with their weights, none of which is zero."""
MOST_PANES = 4
"""So many answers stand side by side."""
MOST_ROWS = 16
"""So many are written at once: a list of questions is asked in parts. Each token reads all of the
model's weights once, for however many rows."""
SEEDS = 2**32
"""So many seeds there are."""
OF_MANY = "chat.out_of_memory"
"""What fewer questions at once may mend."""
STRENGTHS = (0.0, 2.0)
"""Least and most of an adapter's change that a pane may take; 1 is as it was trained."""
WEIGHTS = (-2.0, 2.0)
"""The same of an adapter in a mixture, where it may be taken away too."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pane:
    """One answer that is wanted: who answers, and what is asked.

    Raises:
        StudioError: If a strength or weight is out of range, or an adapter has a mixture beside it.
    """

    adapter: str | None = None
    """Name of a loaded adapter, or None for the base model."""
    strength: float = 1.0
    """Factor of what the adapter or mixture changes, 0 (the base itself) to 2."""
    mixture: Mapping[str, float] = field(default_factory=dict)
    """Instead of `adapter`: names of loaded adapters, each with a weight from -2 to 2, whose
    changes are added up."""
    messages: Sequence[Message] = ()
    """The conversation so far, its last turn the question."""
    text: str | None = None
    """Text to continue as it is, without a chat template; used instead of `messages`."""
    continues: str = ""
    """Beginning of the answer, which is gone on with; it is not part of the answer's events."""
    seed: int | None = None
    """A seed of its own, instead of the sampling's."""

    def __post_init__(self) -> None:
        if self.adapter is not None and self.mixture:
            raise StudioError("chat.adapter_and_mixture", name=self.adapter)
        _check_range("strength", self.strength, STRENGTHS)
        for name, weight in self.mixture.items():
            _check_range(name, weight, WEIGHTS)
        if self.seed is not None:
            _check_range("seed", self.seed, BOUNDS["seed"])

    @property
    def who(self) -> dict[str, float]:
        """Who answers, the strength included."""
        weights = {self.adapter: 1.0} if self.adapter is not None else self.mixture
        return {name: weight * self.strength for name, weight in weights.items()}


def names_of(who: Who) -> list[str]:
    """Return the adapters that are named, those of no weight too."""
    return [who] if isinstance(who, str) else list(who or ())


def voice(who: Who) -> Voice:
    """Return adapters and weights in the one form; two that mean the same are equal."""
    weights = {} if who is None else {who: 1.0} if isinstance(who, str) else who
    return tuple(sorted((name, float(weight)) for name, weight in weights.items() if weight))


def seed_apart(seed: int, number: int) -> int:
    """Return the seed of one of several that are to differ, counted from 0."""
    return (seed + number) % SEEDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are picked; the same for all panes of one request.

    Raises:
        StudioError: If a value is out of range.
    """

    greedy: bool = True
    """Always take the likeliest token, so that only the weights differ between two answers."""
    temperature: float = 0.7
    """Divides the logits before sampling, 0.01 to 5; not used when greedy."""
    top_p: float = 0.9
    """Sample among the likeliest tokens of this total probability, 0.01 to 1 (arXiv 1904.09751)."""
    max_new_tokens: int = 256
    """Longest answer in tokens; less when the model's context ends before."""
    seed: int = 42
    """The same question and seed give the same sampled answers; panes that agree in all else
    agree in their answers too."""

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            _check_range(name, getattr(self, name), bounds)


BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.01, 5),
    "top_p": (0.01, 1),
    "max_new_tokens": (1, 32_768),
    "seed": (0, SEEDS - 1),
}


def _check_range(name: str, value: float, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not low <= value <= high:
        raise StudioError("chat.bad_sampling", name=name, value=value, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Token ids that are read, and which of them are judged."""

    ids: Sequence[int]
    counts: Sequence[bool]
    """As long as `ids`; the first token is never judged, because nothing comes before it."""


class Rendered(TypedDict):
    """A pane's prompt as the model sees it."""

    text: str
    """With its special tokens, and the beginning of the answer where one is gone on with."""
    tokens: int
    limit: int | None
    """Most tokens that leave room for an answer, or None if the model does not say."""
    cut: int
    """Tokens over the limit: nothing is answered then."""
    cut_text: str
    """The end of the prompt that they are."""


class ModeEvent(TypedDict):
    """The first event: whether the panes share one batch."""

    mode: Literal["batched", "sequential"]
    reason: NotRequired[str]
    """Sequential only: key of the sentence that says why; its `{name}`, if any, is `adapter`."""
    adapter: NotRequired[str]


class TextEvent(TypedDict):
    """More text of one pane's answer; whole characters only."""

    pane: int
    text: str
    first_s: NotRequired[float]
    """With a pane's first text: seconds to its first token, as in `DoneEvent`."""


class DoneEvent(TypedDict):
    """One pane's answer is complete."""

    pane: int
    done: Literal[True]
    tokens: int
    """Tokens of the answer, its end token not counted."""
    seconds: float
    """From the start of the pane's batch, reading of the prompt included."""
    first_s: float | None
    """From there to its first token; None if it has none."""
    tokens_per_s: float
    reason: Reason


Event = ModeEvent | TextEvent | DoneEvent


def finished(events: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Gather what panes answer: each `DoneEvent` comes with the pane's whole `text`.

    Events of no pane are passed on; those with a part of a text are not.
    """
    parts: dict[int, list[str]] = defaultdict(list)
    for event in events:
        if "pane" not in event:
            yield event
        elif "done" in event:
            yield {**event, "text": "".join(parts[event["pane"]])}
        else:
            parts[event["pane"]].append(event["text"])


class ScoreProgress(TypedDict):
    """How many texts are judged; the last one says all of them unless it was stopped."""

    done: int
    total: int


class Score(TypedDict):
    """What everybody thinks of one text's judged tokens; natural logarithms."""

    text: int
    """Its number among the texts."""
    pieces: list[str]
    """What each token writes; nothing where a character goes on in the next one, which then has all
    that has not been written yet."""
    logprobs: list[list[float]]
    """For each of those who were asked, in order: the log-probability of each token."""
    is_first: NotRequired[list[bool]]
    """Whether each token is the base's own first choice."""
    first: NotRequired[list[str]]
    """What the base would rather have written in each token's place, from the last whole character
    on; empty for a part of a character, of which it is not known."""
    first_logprobs: NotRequired[list[float]]
    """And its log-probability to the base."""
