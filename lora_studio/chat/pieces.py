"""What the tokens of a text write, each by itself, and what others would have in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.chat.streaming import UNFINISHED, Detokenizer

Written = dict[int, str]
"""Text by the place of a token."""


def written(
    tokenizer: Any, ids: Sequence[int], places: Sequence[int], choices: Mapping[int, int]
) -> tuple[Written, Written]:
    """Return what tokens write, and what others would have; see `chat.request.Score`.

    Args:
        tokenizer: Decodes token ids.
        ids: A text.
        places: Those of its tokens that matter, in order, at least one.
        choices: Tokens that might have stood there, by place.
    """
    detokenizer = Detokenizer(tokenizer, ids[: places[0]])
    pieces: Written = {}
    first: Written = {}
    held, since = "", places[0]
    for place in range(places[0], places[-1] + 1):
        if place in choices:
            other = detokenizer.peek(choices[place])
            first[place] = "" if other.endswith(UNFINISHED) else other.replace(UNFINISHED, "")
        held += detokenizer.push(ids[place])
        pieces[place] = ""
        if detokenizer.is_whole or place == places[-1]:
            for part in range(since, place + 1):
                if choices.get(part) == ids[part]:
                    first[part] = first[part] or held
            pieces[place], held, since = held, "", place + 1
    return pieces, first
