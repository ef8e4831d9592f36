"""Chat templates: the one a tokenizer brings, or a plain one, rendered the same way everywhere.

Training and answering must show the model the same text before an answer: both go through
`prompt_ids` or `render`, and so does a template that refuses system turns (Gemma's does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_studio.data.examples import Message
from lora_studio.errors import DatasetError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, str]
"""`{"role": …, "content": …}`, as transformers takes it."""

# A heading per turn, a blank line between turns, the end token after each answer. A line end closes
# the heading, so that an answer's first token never melts into it.
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{{- '' if loop.first else '\\n\\n' -}}
{{- '### ' + message['role'] | capitalize + ':\\n' -}}
{{- message['content'] -}}
{{- eos_token if message['role'] == 'assistant' else '' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\n### Assistant:\\n' -}}{%- endif -%}
"""
BEGINNING = "{{- bos_token -}}\n"


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give the tokenizer the plain template where it has none, and an id to pad with.

    The template begins with the tokenizer's beginning token if it puts one before other text.

    Returns:
        Whether the plain template was set.

    Raises:
        ModelError: If the tokenizer has no end token.
    """
    ensure_end_token(tokenizer)
    if tokenizer.chat_template:
        return False
    beginning = BEGINNING if adds_beginning(tokenizer) else ""
    tokenizer.chat_template = beginning + PLAIN_TEMPLATE
    return True


def is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer's chat template is the plain one, set just now or before."""
    return str(tokenizer.chat_template).endswith(PLAIN_TEMPLATE)


def ensure_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that answers can end, and pad with the end token where no other is set.

    Padding carries no label of its own, so that sharing the id does not mask an answer's end.

    Raises:
        ModelError: If the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("data.no_end_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def adds_beginning(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer puts its beginning token before a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer: the end token, and what the template closes it with."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        sample = (Message("user", "a"), Message("assistant", "b"))
        ids = token_ids(tokenizer, [render(tokenizer, sample)])[0]
        last = next((i for i in reversed(ids) if tokenizer.decode([i]).strip()), None)
        ends |= {last} & set(tokenizer.get_added_vocab().values())
    return frozenset(ends)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise texts as they stand: no beginning or end token is added."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return list(encoded["input_ids"])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return what the model sees before it answers `messages`; training shows it the same.

    Raises:
        DatasetError: If the template refuses the messages.
    """
    return token_ids(tokenizer, [render(tokenizer, messages, add_generation_prompt=True)])[0]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Return the messages as the template writes them.

    Raises:
        DatasetError: If the template refuses the messages.
    """
    turns, whole = accepted(tokenizer, messages)
    if not add_generation_prompt:
        return whole
    return render_turns(tokenizer, turns, add_generation_prompt=True)


def accepted(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[list[Turn], str]:
    """Return the messages as turns that the template accepts, and how it writes them.

    Where it refuses a system turn, that turn goes before the first question, a blank line between.

    Raises:
        DatasetError: If the template refuses the messages all the same.
    """
    turns: list[Turn] = [{"role": turn.role, "content": turn.content} for turn in messages]
    try:
        return turns, render_turns(tokenizer, turns)
    except DatasetError:
        if [turn["role"] for turn in turns[:2]] != ["system", "user"]:
            raise
    content = f"{turns[0]['content']}\n\n{turns[1]['content']}"
    turns = [{"role": "user", "content": content}, *turns[2:]]
    return turns, render_turns(tokenizer, turns)


def render_turns(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Return turns as the template writes them, system turns and all.

    Raises:
        DatasetError: If the template refuses them.
    """
    from jinja2.exceptions import TemplateError

    try:
        rendered: Any = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise DatasetError("data.template_refuses", reason=error.message or "") from error
    return str(rendered)
