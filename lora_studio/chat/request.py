"""What is asked of the engine, and the events that come back: plain values, no model library.

The page's process builds these and sends them to the process that holds the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from lora_studio.errors import StudioError

Reason = Literal["end", "length", "stopped"]
"""Why an answer ended: the model's own end token, no room left, or someone pressed stop."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pane:
    """One answer that is wanted: who answers, and what is asked."""

    adapter: str | None = None
    """Name of a loaded adapter, or None for the base model."""
    messages: Sequence[Message] = ()
    """The conversation so far, its last turn the question."""
    text: str | None = None
    """Text to continue as it is, without a chat template; used instead of `messages`."""


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
    """The same question and seed give the same sampled answers."""

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise StudioError("chat.bad_sampling", name=name, value=value, low=low, high=high)


BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.01, 5),
    "top_p": (0.01, 1),
    "max_new_tokens": (1, 32_768),
    "seed": (0, 2**32 - 1),
}


class ModeEvent(TypedDict):
    """The first event: whether the panes share one batch."""

    mode: Literal["batched", "sequential"]
    reason: NotRequired[str]
    """Sequential only: key of the sentence that says why; its `{name}` is `adapter`."""
    adapter: NotRequired[str]


class TextEvent(TypedDict):
    """More text of one pane's answer; whole characters only."""

    pane: int
    text: str


class DoneEvent(TypedDict):
    """One pane's answer is complete."""

    pane: int
    done: Literal[True]
    tokens: int
    """Tokens of the answer, its end token not counted."""
    seconds: float
    """From the start of the pane's batch, reading of the prompt included."""
    tokens_per_s: float
    reason: Reason


Event = ModeEvent | TextEvent | DoneEvent
