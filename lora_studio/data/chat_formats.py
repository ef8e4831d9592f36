"""How well-known chat formats write turns, for a model that brings no chat template of its own.

Each is the published prompt format (ChatML: OpenAI's chatml.md; Llama 3, Gemma, Mistral, Phi-3,
Zephyr: their model cards; Alpaca: tatsu-lab/stanford_alpaca; Vicuna v1.1: lm-sys/FastChat) with
one change: every answer ends with the tokenizer's own end token. A base model knows that token and
stops at it; a mark such as `<|eot_id|>` may be plain text to it, or an embedding never trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from lora_studio.recipe import ChatTemplateName

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What stands around the turns of one format."""

    user: tuple[str, str]
    """Before and after what a person says."""
    prompt: str
    """Before an answer, and the last thing before the model speaks."""
    lead: str = ""
    """Between `prompt` and an answer: the model says it too."""
    after: str = ""
    """After an answer and its end token."""
    system: tuple[str, str] | None = None
    """Before and after a system turn; None puts it before the next question, a blank line between,
    for formats that have no such turn."""
    tool: tuple[str, str] | None = None
    """Before and after what a tool returns; None writes it as a person's turn."""
    unprompted: str = ""
    """What stands in the place of a system turn where the conversation begins without one."""


_SHAPES: dict[ChatTemplateName, _Shape] = {
    "chatml": _Shape(
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        tool=("<|im_start|>tool\n", "<|im_end|>\n"),
        prompt="<|im_start|>assistant\n",
        after="\n",
    ),
    "llama3": _Shape(
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        tool=("<|start_header_id|>ipython<|end_header_id|>\n\n", "<|eot_id|>"),
        prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": _Shape(
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        prompt="<start_of_turn>model\n",
        after="\n",
    ),
    "mistral": _Shape(user=("[INST] ", " [/INST]"), prompt="", lead=" "),
    "phi": _Shape(
        system=("<|system|>\n", "<|end|>\n"),
        user=("<|user|>\n", "<|end|>\n"),
        prompt="<|assistant|>\n",
        after="\n",
    ),
    "zephyr": _Shape(
        system=("<|system|>\n", "</s>\n"),
        user=("<|user|>\n", "</s>\n"),
        prompt="<|assistant|>\n",
        after="\n",
    ),
    "alpaca": _Shape(
        system=("", "\n\n"),
        user=("### Instruction:\n", "\n\n"),
        tool=("### Input:\n", "\n\n"),
        prompt="### Response:\n",
        after="\n\n",
        unprompted=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
        ),
    ),
    "vicuna": _Shape(
        system=("", " "),
        user=("USER: ", " "),
        prompt="ASSISTANT:",
        lead=" ",
        unprompted=(
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions. "
        ),
    ),
}


def _written(shape: _Shape) -> str:
    """Return a shape as a Jinja template that knows `messages`, `eos_token` and the rest."""
    between = "\n\n"
    system = (
        _shown(*shape.system)
        if shape.system
        else f"{{%- set kept.before = kept.before + message['content'] + {_quoted(between)} -%}}"
    )
    lines = [
        "{%- set kept = namespace(before='') -%}",
        "{%- for message in messages -%}",
        "{%- if loop.first and message['role'] != 'system' -%}",
        f"{{{{- {_quoted(shape.unprompted)} -}}}}",
        "{%- endif -%}",
        "{%- if message['role'] == 'system' -%}",
        system,
        "{%- elif message['role'] == 'assistant' -%}",
        f"{{{{- {_quoted(shape.prompt + shape.lead)} + message['content'] -}}}}",
        f"{{{{- eos_token + {_quoted(shape.after)} -}}}}",
        "{%- elif message['role'] == 'tool' -%}",
        _shown(*(shape.tool or shape.user)),
        "{%- else -%}",
        _shown(*shape.user, content="kept.before + message['content']"),
        "{%- set kept.before = '' -%}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        f"{{{{- {_quoted(shape.prompt)} -}}}}",
        "{%- endif -%}",
    ]
    return "\n".join(lines) + "\n"


def _shown(before: str, after: str, content: str = "message['content']") -> str:
    return f"{{{{- {_quoted(before)} + {content} + {_quoted(after)} -}}}}"


def _quoted(text: str) -> str:
    """Return a text as Jinja writes it."""
    return json.dumps(text)


TEMPLATES: dict[ChatTemplateName, str] = {
    "plain": PLAIN_TEMPLATE,
    **{name: _written(shape) for name, shape in _SHAPES.items()},
}
"""Each format's Jinja template, without a beginning token."""
