"""The pending answers of a batch, asked for some at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_studio.chat.request import MOST_ROWS, OF_MANY, Pane, Sampling, finished
from lora_studio.errors import StudioError
from lora_studio.judging.batch import Answer, Batch

OF_A_PROMPT = ("chat.empty_prompt", "chat.too_long", "data.template_refuses")
"""What only the prompt itself is to blame for: the others are asked all the same."""

Ask = Callable[[Sequence[Pane], Sampling], Iterator[Mapping[str, Any]]]
"""Answers panes, with the events of `chat.request`; others may go before them."""


STAGE = "batch"
Happened = Mapping[str, Any] | bool
"""An event that is passed on; or that a prompt has been answered, or has not because of a stop."""


def fill(batch: Batch, ask: Ask) -> Iterator[Mapping[str, Any]]:
    """Ask what is pending; a stop, or closing the iterator, keeps what was answered.

    Args:
        batch: The table.
        ask: Answers panes as `chat.engine.Engine.generate` does.

    Yields:
        `{"stage": "batch", "done", "total"}` in prompts, with `seconds_left`, None at first; and,
        until something has been answered, what `ask` says of stages and of places in the line.

    Raises:
        StudioError: As `ask`, for what is not the fault of one prompt.
    """
    pending, began = batch.pending(), time.monotonic()
    total, before = len(batch.asked.prompts), batch.done
    seconds: float | None = None
    yield {"stage": STAGE, "done": before, "total": total, "seconds_left": None}
    step = max(MOST_ROWS // len(batch.asked.contenders), 1)
    for start in range(0, len(pending), step):
        for happened in _ask(batch, pending[start : start + step], ask):
            if happened is False:
                return
            done = batch.done
            if isinstance(happened, bool):
                left = seconds and seconds * (total - done)
                yield {"stage": STAGE, "done": done, "total": total, "seconds_left": left}
            elif done == before:
                yield happened
        seconds = (time.monotonic() - began) / (batch.done - before)


def _ask(batch: Batch, chosen: Sequence[int], ask: Ask) -> Iterator[Happened]:
    """Put some prompts to all who have not answered; one that is refused is noted as that."""
    try:
        yield from _ask_at_once(batch, chosen, ask)
    except StudioError as error:
        if len(chosen) > 1 and error.key in (*OF_A_PROMPT, OF_MANY):
            for at in filter(batch.missing, chosen):
                yield from _ask(batch, [at], ask)
            return
        if error.key not in OF_A_PROMPT:
            raise
        problem = error.to_dict()
        refused = Answer(text="", tokens=0, seconds=0.0, reason="refused", problem=problem)
        for who in batch.missing(chosen[0]):
            batch.add(chosen[0], who, refused)
        yield True


def _ask_at_once(batch: Batch, chosen: Sequence[int], ask: Ask) -> Iterator[Happened]:
    """Put some prompts to all who have not answered; answers that were stopped are not kept."""
    places = [(at, who) for at in chosen for who in batch.missing(at)]
    panes = [batch.asked.pane(at, who) for at, who in places]
    is_whole = True
    for event in finished(ask(panes, batch.asked.sampling)):
        if "stage" in event or "place" in event:
            yield event
        elif event.get("reason") == "stopped":
            is_whole = False
        elif "done" in event:
            answer = Answer(
                text=event["text"].strip(),
                tokens=event["tokens"],
                seconds=round(event["seconds"], 3),
                reason=event["reason"],
            )
            at, who = places[event["pane"]]
            batch.add(at, who, answer)
            if not batch.missing(at):
                yield True
    if not is_whole:
        yield False
