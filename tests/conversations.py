"""Conversations, the chat formats models have, and a small tokenizer that knows their marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_studio.data.encoding import IGNORE_INDEX, Encoded
from lora_studio.data.examples import Example, Message, Record

# In the style of the models' own templates: what they write and refuse.
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{- message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
GEMMA = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{- raise_exception('System role not supported') -}}
{%- endif -%}
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{%- set role = 'model' if message.role == 'assistant' else message.role -%}
{{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{%- if message.role == 'user' -%}
{{- '[INST] ' + message.content + ' [/INST]' -}}
{%- elif message.role == 'assistant' -%}
{{- ' ' + message.content + eos_token -}}
{%- else -%}
{{- raise_exception('Only user and assistant roles are supported!') -}}
{%- endif -%}
{%- endfor -%}
"""
SHARED = {"llama3": (LLAMA3, "<|eot_id|>"), "gemma": (GEMMA, "<end_of_turn>")}
"""Templates, and what each ends an answer with."""
MARKS = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>"),
    *("<|assistant|>", "<|end|>", "[INST]", "[/INST]"),
]

SYSTEM = Message("system", "Answer briefly.\n\n짧게.")
QUESTION = Message("user", "What is the capital of France?")
ANSWER = Message("assistant", "The capital of France is Paris.")
AGAIN = Message("user", "수도가 어디예요? 🍋")
LAST = Message("assistant", "서울이에요.\n\n- 정말이에요 🍋")
CONVERSATIONS = {
    "one": (QUESTION, ANSWER),
    "korean": (AGAIN, LAST),
    "two": (QUESTION, ANSWER, AGAIN, LAST),
    "system": (SYSTEM, AGAIN, LAST),
    "all": (SYSTEM, AGAIN, LAST, QUESTION, ANSWER, AGAIN, LAST),
}


def tokenizer_with(
    folder: Path,
    template: str | None = None,
    *,
    end: str = "",
    marks: bool = True,
    begins: bool = False,
) -> Any:
    """Return the small tokenizer with the models' special tokens, or only with its own end."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(MARKS if marks else ["<s>"], special_tokens=True)
    tokenizer.bos_token = "<s>"
    tokenizer.eos_token = end or tokenizer.eos_token
    tokenizer.chat_template = template
    if begins:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    return tokenizer


def chat(*messages: Message) -> Example:
    return Example.of_messages(Record("f", 1, {}), messages)


def trained(row: Encoded, tokenizer: Any) -> list[str]:
    """Return each run of trained tokens as text."""
    runs: list[list[int]] = [[]]
    for label in row.labels:
        if label != IGNORE_INDEX:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]
