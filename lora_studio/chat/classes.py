"""How likely each class is for a text, to the base and to each adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_studio.chat.base import LoadedBase
from lora_studio.chat.request import Who
from lora_studio.data.templates import token_ids
from lora_studio.errors import StudioError


def probabilities(
    loaded: LoadedBase, text: str | Sequence[int], adapters: Sequence[Who]
) -> list[list[float]]:
    """Return the softmax of the class scores, for each of `adapters`, None the base.

    One after the other: each adapter brings a head of its own, which changes every row.

    Raises:
        StudioError: If the text is empty or longer than the model reads.
    """
    ids = _ids(loaded, text) if isinstance(text, str) else list(text)
    if loaded.context is not None and len(ids) > loaded.context:
        raise StudioError("chat.text_too_long", tokens=len(ids), limit=loaded.context)
    tokens = torch.tensor([ids], device=loaded.model.device)
    found: list[list[float]] = []
    for adapter in adapters:
        with loaded.answering_as([adapter]):
            scores = loaded.model(tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        found.append(torch.softmax(scores.float(), dim=-1).tolist())
    return found


def _ids(loaded: LoadedBase, text: str) -> list[int]:
    if not text.strip():
        raise StudioError("chat.empty_prompt")
    return token_ids(loaded.tokenizer, [text], add_special_tokens=True)[0]
