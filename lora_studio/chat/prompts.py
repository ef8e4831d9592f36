"""From a conversation or a text to the token ids a model continues."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lora_studio.chat.request import Pane, Passage, Rendered
from lora_studio.chat.streaming import UNFINISHED
from lora_studio.data import templates
from lora_studio.data.examples import Message, Role
from lora_studio.errors import StudioError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_QUOTED = 48
"""So many characters of a prompt are quoted; a token has one at least, or is part of one."""


def encode(pane: Pane, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the prompt's token ids, the same that training shows before an answer.

    The beginning of an answer that is gone on with stands behind it.

    Raises:
        StudioError: If there is nothing to continue.
        DatasetError: If the chat template refuses the conversation.
    """
    return _written(pane, tokenizer).ids


def prompt_ids(pane: Pane, tokenizer: PreTrainedTokenizerBase, context: int | None) -> list[int]:
    """Return a prompt's token ids, and refuse one that leaves no room for an answer.

    Raises:
        StudioError: As `encode`, or if it is too long.
    """
    ids = encode(pane, tokenizer)
    if context is not None and len(ids) >= context:
        limit = context - 1
        raise StudioError(
            "chat.too_long", tokens=len(ids), limit=limit, cut=len(ids) - limit,
            start=_start(tokenizer, ids[limit:]),
        )  # fmt: skip
    return ids


def rendered(pane: Pane, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Rendered:
    """Return a prompt as the model sees it, one that is too long as well.

    Raises:
        StudioError: As `encode`.
    """
    beginning, text, ids = _written(pane, tokenizer)
    limit = None if context is None else context - 1
    over = [] if limit is None else ids[limit:]
    return {
        "text": f"{tokenizer.bos_token if beginning else ''}{text}",
        "tokens": len(ids),
        "limit": limit,
        "cut": len(over),
        "cut_text": _decoded(tokenizer, over),
    }


def _start(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the first words of what token ids say, in one line."""
    line = " ".join(_decoded(tokenizer, ids[:MOST_QUOTED]).rstrip(UNFINISHED).split())
    is_all = len(ids) <= MOST_QUOTED and len(line) <= MOST_QUOTED
    return line if is_all else f"{line[:MOST_QUOTED].rstrip()}…"


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return what token ids say, from the first whole character on."""
    return templates.decoded(tokenizer, ids, special=True).lstrip(UNFINISHED)


def passage(pane: Pane, tokenizer: PreTrainedTokenizerBase) -> Passage:
    """Return a prompt with the answer it goes on with, whose tokens are to be judged.

    A token that begins in the prompt and ends in the answer is judged too.

    Raises:
        StudioError: As `encode`.
    """
    beginning, text, ids = _written(pane, tokenizer)
    asked = text[: len(text) - len(pane.continues)]
    prompt = [*beginning, *templates.token_ids(tokenizer, [asked])[0]]
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False))))
    return Passage(ids=ids, counts=[place >= same for place in range(len(ids))])


class _Written(NamedTuple):
    """A prompt with the beginning of the answer that is gone on with."""

    beginning: list[int]
    """What the tokenizer puts before every text."""
    text: str
    """What stands behind it."""
    ids: list[int]
    """Both."""


def _written(pane: Pane, tokenizer: PreTrainedTokenizerBase) -> _Written:
    beginning: list[int] = []
    if pane.text is not None:
        text = pane.text
        beginning = [tokenizer.bos_token_id] if templates.adds_beginning(tokenizer) else []
    elif any(message["content"].strip() for message in pane.messages):
        turns = [Message(cast("Role", one["role"]), one["content"]) for one in pane.messages]
        text = templates.render(tokenizer, turns, add_generation_prompt=True)
    else:
        raise StudioError("chat.empty_prompt")
    text += pane.continues
    ids = [*beginning, *templates.token_ids(tokenizer, [text])[0]]
    if not ids:
        raise StudioError("chat.empty_prompt")
    return _Written(beginning, text, ids)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack prompts of uneven length so that all of them end in the last column.

    Returns:
        Token ids and attention mask, both int64, shape (B, T).
    """
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
