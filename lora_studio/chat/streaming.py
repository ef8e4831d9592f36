"""Tokens of a running batch, turned into text events row by row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from lora_studio.chat.request import Event, Reason, TextEvent
from lora_studio.data.templates import decoded

UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""
SEED_TOKENS = 8


class Detokenizer:
    """Turns one row's tokens into text as they come, never half a character.

    A character may span several tokens, and what one token reads as may depend on the one
    before it. So each step decodes a short window that starts one settled stretch back, and
    shows what is new up to the first unfinished character. Bytes that never become a character
    at the very end are not shown.

    Args:
        tokenizer: Decodes token ids.
        prompt: The tokens before the answer; its last ones keep a leading space alive, which
            SentencePiece decoders drop at the start of a text.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = self._seed(prompt)
        self._settled = len(self._ids)
        self._shown = len(self._decode())

    def push(self, token: int) -> str:
        """Take the next token and return the text that is now certain, maybe none."""
        self._ids.append(token)
        text = self._decode()
        certain = text.rstrip(UNFINISHED)
        new = certain[self._shown :]
        self._shown = max(self._shown, len(certain))
        if len(certain) == len(text):
            self._ids = self._ids[self._settled :]
            self._settled = len(self._ids)
            self._shown = len(self._decode())
        return new

    @property
    def is_whole(self) -> bool:
        """Whether the text so far ends with a whole character."""
        return len(self._ids) == self._settled

    def peek(self, token: int) -> str:
        """Return what would stand behind the last whole character with another next token.

        Special tokens go by their names, bytes that are no character by `UNFINISHED`.
        """
        before = decoded(self._tokenizer, self._ids[: self._settled], special=True)
        return decoded(self._tokenizer, [*self._ids, token], special=True)[len(before) :]

    def _seed(self, prompt: Sequence[int]) -> list[int]:
        """Return the shortest end of the prompt that reads as whole characters."""
        for length in range(1, min(SEED_TOKENS, len(prompt)) + 1):
            end = list(prompt[-length:])
            if UNFINISHED not in decoded(self._tokenizer, end):
                return end
        return []

    def _decode(self) -> str:
        return decoded(self._tokenizer, self._ids)


@dataclass(slots=True)
class Row:
    """One row of the batch: the pane it answers, and how far it is."""

    pane: int
    detokenizer: Detokenizer
    tokens: int = 0
    first_s: float | None = None
    has_text: bool = False
    done: bool = False


class RowStreamer(BaseStreamer):
    """Receives a batch's tokens step by step and emits each row's events.

    Args:
        rows: One per row of the batch, in order.
        end_ids: Tokens that end an answer. What a row emits after one is padding.
        emit: Called with every event, on the generating thread.
        stopped: Whether someone asked to stop.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        end_ids: Collection[int],
        emit: Callable[[Event], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._rows = rows
        self._end_ids = frozenset(end_ids)
        self._emit = emit
        self._stopped = stopped
        self._prompt_seen = False
        self._start = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt once, shape (B, T), then one token a row, shape (B,)."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for row, token in zip(self._rows, value.tolist(), strict=True):
            if row.done:
                continue
            if token in self._end_ids:
                self._finish(row, "end")
                continue
            row.tokens += 1
            if row.first_s is None:
                row.first_s = time.perf_counter() - self._start
            if text := row.detokenizer.push(token):
                self._tell(row, text, row.first_s)

    def end(self) -> None:
        """Finish the rows that did not reach an end token of their own."""
        reason: Reason = "stopped" if self._stopped() else "length"
        for row in self._rows:
            if not row.done:
                self._finish(row, reason)

    def _tell(self, row: Row, text: str, first_s: float) -> None:
        event: TextEvent = {"pane": row.pane, "text": text}
        if not row.has_text:
            event["first_s"] = first_s
        row.has_text = True
        self._emit(event)

    def _finish(self, row: Row, reason: Reason) -> None:
        row.done = True
        seconds = time.perf_counter() - self._start
        self._emit(
            {
                "pane": row.pane,
                "done": True,
                "tokens": row.tokens,
                "seconds": seconds,
                "first_s": row.first_s,
                "tokens_per_s": row.tokens / seconds if seconds else 0.0,
                "reason": reason,
            }
        )


class StopFlag(StoppingCriteria):
    """Ends a batch at the next token once the flag is set; no exception is involved."""

    def __init__(self, flag: threading.Event) -> None:
        self._flag = flag

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return the flag for every row, bool, shape (B,)."""
        return torch.full((len(input_ids),), self._flag.is_set(), device=input_ids.device)
