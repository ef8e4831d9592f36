"""One request's answers: which panes share a batch, and how a batch is generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from lora_studio.chat.base import LoadedBase
from lora_studio.chat.drawing import processors
from lora_studio.chat.prompts import pad_left, prompt_ids
from lora_studio.chat.request import Event, ModeEvent, Pane, Sampling
from lora_studio.chat.streaming import Detokenizer, Row, RowStreamer, StopFlag
from lora_studio.errors import StudioError


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be answered, and where to."""

    panes: Sequence[Pane]
    sampling: Sampling
    emit: Callable[[Event], None]
    stop: threading.Event


def answer(loaded: LoadedBase, request: Request) -> None:
    """Answer a request, from encoding to the last event.

    Raises:
        StudioError: If a prompt is empty or too long, before anything is written; or if memory
            runs out.
    """
    prompts = [prompt_ids(pane, loaded.tokenizer, loaded.context) for pane in request.panes]
    rooms = [_room(loaded, request.sampling, ids) for ids in prompts]
    batches = list(_batches(loaded, request.panes, rooms))
    request.emit(_mode(loaded, request.panes, batches))
    for rows in batches:
        try:
            _answer_batch(loaded, request, {row: prompts[row] for row in rows})
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise StudioError("chat.out_of_memory") from error


def _answer_batch(loaded: LoadedBase, request: Request, prompts: dict[int, list[int]]) -> None:
    """Answer the panes of `prompts` (pane number to token ids) in one batch; all have one room."""
    end_ids = _end_ids(loaded)
    rows = [Row(pane, Detokenizer(loaded.tokenizer, ids)) for pane, ids in prompts.items()]
    streamer = RowStreamer(rows, end_ids=end_ids, emit=request.emit, stopped=request.stop.is_set)
    if request.stop.is_set():
        streamer.end()
        return
    pad_id = loaded.tokenizer.pad_token_id
    ids, mask = pad_left(list(prompts.values()), pad_id)
    device = loaded.model.device
    sampling, panes = request.sampling, [request.panes[pane] for pane in prompts]
    room = _room(loaded, sampling, next(iter(prompts.values())))
    seeds = [sampling.seed if pane.seed is None else pane.seed for pane in panes]
    with loaded.answering_as([pane.who for pane in panes]):
        loaded.model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_generation_config(room, end_ids, pad_id),
            logits_processor=processors(sampling, seeds, device),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([StopFlag(request.stop)]),
        )


def _generation_config(room: int, end_ids: list[int], pad_id: int) -> GenerationConfig:
    """Return settings that owe nothing to the model's own: only weights shall differ."""
    return GenerationConfig(
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        max_new_tokens=room,
        repetition_penalty=1.0,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id,
    )


def _room(loaded: LoadedBase, sampling: Sampling, prompt: Sequence[int]) -> int:
    """Return how many tokens an answer may have behind a prompt."""
    longest = sampling.max_new_tokens
    return longest if loaded.context is None else min(longest, loaded.context - len(prompt))


def _batches(
    loaded: LoadedBase, panes: Sequence[Pane], rooms: Sequence[int]
) -> Iterator[list[int]]:
    """Yield the panes' numbers, those that can share a batch together.

    A batch has room behind its longest prompt, so a pane that has less shares with its like only.
    """
    for rows in loaded.together([pane.who for pane in panes]):
        for room in sorted({rooms[row] for row in rows}, reverse=True):
            yield [row for row in rows if rooms[row] == room]


def _mode(loaded: LoadedBase, panes: Sequence[Pane], batches: Sequence[Sequence[int]]) -> ModeEvent:
    if len(batches) == 1:
        return {"mode": "batched"}
    alone = next((why for pane in panes if (why := loaded.alone(pane.who))), None)
    if alone is None or len(loaded.together([pane.who for pane in panes])) == 1:
        return {"mode": "sequential", "reason": "chat.one_by_one_room"}
    name, reason = alone
    return {"mode": "sequential", "reason": reason, "adapter": name}


def _end_ids(loaded: LoadedBase) -> list[int]:
    """Return every token that ends an answer, by the model's, tokenizer's or template's account."""
    own = loaded.model.generation_config.eos_token_id
    ids = set(own) if isinstance(own, (list, tuple)) else {own}
    return sorted((ids | loaded.end_ids) - {None})
