"""How likely the tokens of texts are, to the base and to adapters.

One list of numbers serves all who ask: perplexity, the colouring of answers, what was forgotten,
whether an export is the same. Only the tokens that count are scored by the head, a fifth of a small
model's work and the most of its memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lora_studio.chat.base import LoadedBase
from lora_studio.chat.pieces import Written, written
from lora_studio.chat.request import Passage, Score, ScoreProgress, Who, voice
from lora_studio.errors import StudioError

BATCH_TOKENS = 2048
"""Most tokens of one forward pass, padding and all who judge included; matrices of a processor
want 700 and more, and twice as many gain nothing."""
BATCH_SCORES = 2**27
"""Most scores of one forward pass, tokens times vocabulary: 512 MB in float32."""


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """What is to be judged, by whom."""

    passages: Sequence[Passage]
    adapters: Sequence[Who]
    first_choice: bool
    pieces: bool


@dataclass(slots=True)
class _Found:
    """What is known of a text so far, by the places of its tokens."""

    missing: int
    logprobs: list[dict[int, float]]
    first: dict[int, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    """Judged tokens of one text that are scored together."""

    text: int
    ids: Sequence[int]
    """The tokens before the last judged one."""
    places: Sequence[int]
    """Of the judged ones; what stands at `place` is foretold at `place - 1`."""
    wanted: Sequence[int]
    """The judged tokens."""


def score(
    loaded: LoadedBase, task: ScoreTask, stopped: Callable[[], bool]
) -> Iterator[ScoreProgress | Score]:
    """Judge texts batch by batch; see `lora_studio.chat.engine.Engine.score`."""
    total = len(task.passages)
    for one in task.passages:
        if loaded.context is not None and len(one.ids) > loaded.context:
            raise StudioError("chat.text_too_long", tokens=len(one.ids), limit=loaded.context)
    found = [
        _Found(len(_places(one)), [{} for _ in task.adapters]) for one in task.passages
    ]  # fmt: skip
    empty = [number for number, one in enumerate(found) if not one.missing]
    yield from (_result(loaded, task, number, found[number]) for number in empty)
    done = len(empty)
    yield {"done": done, "total": total}
    for batch in _batches(_parts(loaded, task), len(task.adapters), _vocabulary(loaded)):
        if stopped():
            return
        try:
            _judge(loaded, task, batch, found)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise StudioError("chat.out_of_memory") from error
        for number in dict.fromkeys(part.text for part in batch):
            if not found[number].missing:
                done += 1
                yield _result(loaded, task, number, found[number])
        yield {"done": done, "total": total}


def _places(one: Passage) -> list[int]:
    """Return where the judged tokens stand; nothing comes before the first one."""
    judged = zip(itertools.count(), one.ids, one.counts, strict=False)
    return [place for place, _, counts in judged if counts and place]


def _vocabulary(loaded: LoadedBase) -> int:
    return int(loaded.model.config.get_text_config().vocab_size)


def _parts(loaded: LoadedBase, task: ScoreTask) -> Iterator[_Part]:
    """Yield the texts, one with more judged tokens than fit into memory in several parts."""
    most = max(1, BATCH_SCORES // (_vocabulary(loaded) * len(task.adapters)))
    for number, one in enumerate(task.passages):
        judged = _places(one)
        for start in range(0, len(judged), most):
            places = judged[start : start + most]
            wanted = [one.ids[place] for place in places]
            yield _Part(number, one.ids[: places[-1]], places, wanted)


def _batches(parts: Iterator[_Part], voices: int, vocabulary: int) -> Iterator[list[_Part]]:
    """Yield parts of about the same length together, the longest first."""
    batch: list[_Part] = []
    most = 0
    for part in sorted(parts, key=lambda one: -len(one.ids)):
        rows, most = (len(batch) + 1) * voices, max(most, len(part.places))
        tokens = rows * len(batch[0].ids if batch else part.ids)
        if batch and (tokens > BATCH_TOKENS or rows * most * vocabulary > BATCH_SCORES):
            yield batch
            batch, most = [], len(part.places)
        batch.append(part)
    if batch:
        yield batch


def _judge(
    loaded: LoadedBase, task: ScoreTask, batch: Sequence[_Part], found: list[_Found]
) -> None:
    """Run a batch past everybody, those who can share a forward pass together."""
    for judges in loaded.together(task.adapters):
        rows = [(number, part) for number in judges for part in batch]
        spoken = [task.adapters[number] for number, _ in rows]
        logits = _logits(loaded, [part for _, part in rows], spoken)
        for (number, part), scores in zip(rows, logits, strict=True):
            _note(found[part.text], number, part, scores)
            if task.first_choice and not voice(task.adapters[number]):
                _note_first(found[part.text], part, scores)
    for part in batch:
        found[part.text].missing -= len(part.places)


@torch.no_grad()
def _logits(loaded: LoadedBase, rows: Sequence[_Part], asked: Sequence[Who]) -> Tensor:
    """Return the scores that foretell each row's judged tokens, shape (B, K, V).

    Rows are padded at their ends, which a causal model does not see before; so no mask is needed.
    """
    width, most = max(len(row.ids) for row in rows), max(len(row.places) for row in rows)
    device = loaded.model.device
    ids = torch.tensor([[*row.ids, *[row.ids[-1]] * (width - len(row.ids))] for row in rows])
    at = [[*(place - 1 for place in row.places), *[0] * (most - len(row.places))] for row in rows]
    chosen = torch.tensor(at, device=device)
    with loaded.answering_as(asked), _only(loaded.model.get_output_embeddings(), chosen):
        scores: Tensor = loaded.model(ids.to(device), use_cache=False).logits
    return scores


@contextmanager
def _only(head: nn.Module, chosen: Tensor) -> Iterator[None]:
    """Let the head see only the chosen places of each row, shape (B, K).

    The model's own forward stays, with whatever scaling or capping it does to the scores.
    """
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]

    def select(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs[0][rows, chosen], *inputs[1:]

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _note(found: _Found, judge: int, part: _Part, scores: Tensor) -> None:
    """Keep the log-probabilities of a part's tokens, from scores of shape (K, V)."""
    scores = scores[: len(part.places)].float()
    wanted = torch.tensor(part.wanted, device=scores.device)
    own = scores.gather(1, wanted[:, None])[:, 0] - scores.logsumexp(-1)
    found.logprobs[judge].update(zip(part.places, own.tolist(), strict=True))


def _note_first(found: _Found, part: _Part, scores: Tensor) -> None:
    """Keep the likeliest token of each place, and its log-probability."""
    scores = scores[: len(part.places)].float()
    best, tokens = scores.max(-1)
    chances = (best - scores.logsumexp(-1)).tolist()
    pairs = zip(tokens.tolist(), chances, strict=True)
    found.first.update(zip(part.places, pairs, strict=True))


def _result(loaded: LoadedBase, task: ScoreTask, number: int, found: _Found) -> Score:
    """Return what was found of a text, in the order of its tokens."""
    one = task.passages[number]
    places = _places(one)
    choices = {place: token for place, (token, _) in found.first.items()}
    pieces: Written = {}
    first: Written = {}
    if places and (task.pieces or task.first_choice):
        pieces, first = written(loaded.tokenizer, one.ids, places, choices)
    result: Score = {
        "text": number,
        "pieces": [pieces[place] for place in places] if task.pieces else [],
        "logprobs": [[chances[place] for place in places] for chances in found.logprobs],
    }
    if task.first_choice:
        result["is_first"] = [choices[place] == one.ids[place] for place in places]
        result["first"] = [first[place] for place in places]
        result["first_logprobs"] = [found.first[place][1] for place in places]
    return result
