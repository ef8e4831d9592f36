"""From a conversation or a text to the token ids a model continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch

from lora_studio.chat.request import Pane
from lora_studio.data import templates
from lora_studio.data.examples import Message, Role
from lora_studio.errors import StudioError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(pane: Pane, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the prompt's token ids, the same that training shows before an answer.

    Raises:
        StudioError: If there is nothing to continue.
        DatasetError: If the chat template refuses the conversation.
    """
    if pane.text is not None:
        beginning = [tokenizer.bos_token_id] if templates.adds_beginning(tokenizer) else []
        ids = [*beginning, *templates.token_ids(tokenizer, [pane.text])[0]]
    elif any(message["content"].strip() for message in pane.messages):
        turns = [Message(cast("Role", one["role"]), one["content"]) for one in pane.messages]
        ids = templates.prompt_ids(tokenizer, turns)
    else:
        ids = []
    if not ids:
        raise StudioError("chat.empty_prompt")
    return ids


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack prompts of uneven length so that all of them end in the last column.

    Returns:
        Token ids and attention mask, both int64, shape (B, T).
    """
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
