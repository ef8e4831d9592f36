"""What the engine is asked for, and how long it will still take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.chat.request import Pane, Passage, Sampling, Who
from lora_studio.errors import StudioError
from lora_studio.measuring.rows import HeldOutRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Primitives:
    """A loaded base with its adapters, as far as measuring needs it: methods of the engine."""

    score: Callable[[Sequence[Passage], Sequence[Who]], Iterator[Mapping[str, Any]]]
    generate: Callable[[Sequence[Pane], Sampling], Iterator[Mapping[str, Any]]]
    classify: Callable[[Sequence[int], Sequence[Who]], Sequence[Sequence[float]]]


def sums(
    rows: Sequence[HeldOutRow], who: Sequence[Who], primitives: Primitives
) -> Iterator[tuple[int, list[float]]]:
    """Score rows as they get ready.

    Yields:
        A row's place, and for each of those named the negative log-likelihood of its counted
        tokens, summed, in nats.

    Raises:
        StudioError: If somebody stops it, the engine fails, or a model gives no numbers.
    """
    left = len(rows)
    for event in primitives.score([Passage(ids=row.ids, counts=row.counted) for row in rows], who):
        if "text" in event:
            left -= 1
            nll = [-sum(chances) for chances in event["logprobs"]]
            if not all(map(math.isfinite, nll)):
                raise StudioError("measuring.not_finite")
            yield event["text"], nll
    if left:
        raise StudioError("measuring.stopped")


class Pace:
    """Tells how many seconds are left of work in several stages.

    Args:
        work: What each stage takes, in any unit that is the same for all.
    """

    def __init__(self, work: Mapping[str, float]) -> None:
        self._work = dict(work)
        self._stage, self._began = "", 0.0
        self._spent_s = self._done = 0.0

    def progress(self, stage: str, done: int, total: int) -> dict[str, Any]:
        """Return the event that says how far a stage is; stages come one after the other."""
        now = time.monotonic()
        if stage != self._stage:
            self._close(now)
            self._stage, self._began = stage, now
        return {
            "stage": stage,
            "done": done,
            "total": total,
            "seconds_left": self._left(now, done / total if total else 1.0),
        }

    def _close(self, now: float) -> None:
        """Add the stage that is over to what is done."""
        if self._stage:
            self._spent_s += now - self._began
            self._done += self._work.pop(self._stage)

    def _left(self, now: float, share: float) -> float | None:
        """Return the rest of this stage at its own pace, and the others at that of all so far."""
        own, here_s = self._work[self._stage], now - self._began
        done = self._done + share * own
        if not done:
            return None
        others = sum(self._work.values()) - own
        pace = (self._spent_s + here_s) / done
        rest = here_s * (1 - share) / share if share else own * pace
        return round(rest + others * pace, 1)
