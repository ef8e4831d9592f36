"""What a model sees while learning is what it sees while answering, in every chat format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from conversations import (
    AGAIN,
    ANSWER,
    CONVERSATIONS,
    GEMMA,
    LAST,
    MISTRAL,
    QUESTION,
    SHARED,
    SYSTEM,
    chat,
    tokenizer_with,
    trained,
)

from lora_studio.data import templates
from lora_studio.data.chat_formats import TEMPLATES
from lora_studio.data.encoding import IGNORE_INDEX, Encoded, encode
from lora_studio.data.examples import Message
from lora_studio.errors import DatasetError, ModelError
from lora_studio.recipe import ChatTemplateName

# In the style of the models' own templates: what they write, refuse and drop.
CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
QWEN = """\
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content -}}
{{- '\\n</tool_response><|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# Reasoning is kept after the last question only, and the last answer always has some.
QWEN3 = """\
{%- set seen = namespace(last=messages|length - 1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set seen.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{%- set content = message.content.split('</think>')[-1].lstrip('\\n') -%}
{%- set thought = '' -%}
{%- if '</think>' in message.content -%}
{%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > seen.last and (loop.last or thought) -%}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content + '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PHI = """\
{%- for message in messages -%}
{%- if message.role in ['system', 'user', 'assistant'] -%}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{{- '<|assistant|>\\n' if add_generation_prompt else eos_token -}}
"""
ZEPHYR = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' -}}
{%- if loop.last and add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
{%- endfor -%}
"""

REAL = SHARED | {
    "chatml": (CHATML, "<|im_end|>"),
    "qwen": (QWEN, "<|im_end|>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "mistral": (MISTRAL, "</s>"),
    "phi": (PHI, "<|endoftext|>"),
    "zephyr": (ZEPHYR, "</s>"),
}
OURS: tuple[ChatTemplateName, ...] = get_args(ChatTemplateName)


def learned(messages: tuple[Message, ...], tokenizer: Any) -> Encoded:
    row = encode(chat(*messages), tokenizer, 10_000)
    first = next(at for at, label in enumerate(row.labels) if label != IGNORE_INDEX)
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    before = answers[-1] if row.last_answer_only else answers[0]
    asked = templates.prompt_ids(tokenizer, messages[:before])
    assert row.input_ids[:first] == asked
    last = templates.prompt_ids(tokenizer, messages[: answers[-1]])
    assert row.input_ids[: len(last)] == last
    return row


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest, tiny_gpt2: Path) -> tuple[Any, str]:
    template, end = REAL[request.param]
    tokenizer = tokenizer_with(tiny_gpt2, template, end=end)
    return tokenizer, end


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_model_s_own_template_trains_answers_after_the_prompt_of_inference(
    real: tuple[Any, str], name: str
) -> None:
    tokenizer, end = real
    messages = CONVERSATIONS[name]
    answers = [message.content for message in messages if message.role == "assistant"]
    row = learned(messages, tokenizer)
    if row.last_answer_only:
        assert tokenizer.chat_template == QWEN3
        answers = answers[-1:]
    runs = trained(row, tokenizer)
    assert len(runs) == len(answers)
    for run, answer in zip(runs, answers, strict=True):
        said = run.removeprefix("<think>\n\n</think>\n\n").strip()
        closings = ("<|end|>", f"<|end|>\n{end}") if tokenizer.chat_template == PHI else (end,)
        assert said in [answer + closing for closing in closings]


def test_gemma_refuses_a_system_turn_and_gets_it_with_the_question(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, GEMMA, end="<end_of_turn>")
    turns = [{"role": turn.role, "content": turn.content} for turn in (SYSTEM, QUESTION)]
    with pytest.raises(DatasetError, match="System role not supported"):
        templates.Renderer(tokenizer).turns(turns)
    text = tokenizer.decode(learned((SYSTEM, QUESTION, ANSWER), tokenizer).input_ids)
    assert f"user\n{SYSTEM.content}\n\n{QUESTION.content}<end_of_turn>" in text


@pytest.mark.parametrize("template", [GEMMA, MISTRAL])
def test_turns_that_do_not_alternate_are_refused(tiny_gpt2: Path, template: str) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, template, end="</s>")
    for messages in ((QUESTION, AGAIN, LAST), (QUESTION, ANSWER, LAST)):
        with pytest.raises(DatasetError, match="must alternate"):
            learned(messages, tokenizer)


def test_earlier_reasoning_is_dropped_and_only_the_last_answer_trained(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, QWEN3, end="<|im_end|>")
    thought = Message("assistant", "<think>\nEasy.\n</think>\n\nParis.")
    row = learned((QUESTION, thought, AGAIN, LAST), tokenizer)
    assert row.last_answer_only
    assert "Easy." not in tokenizer.decode(row.input_ids)
    row = learned((QUESTION, thought), tokenizer)
    assert trained(row, tokenizer) == [f"{thought.content}<|im_end|>"]


def test_phi_closes_what_is_over_with_one_more_end(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, PHI, end="<|endoftext|>")
    turns = [
        {"role": turn.role, "content": turn.content} for turn in (QUESTION, ANSWER, AGAIN, LAST)
    ]
    full = templates.Renderer(tokenizer).turns(turns)
    assert full.endswith("<|end|>\n<|endoftext|>")
    beginning = templates.Renderer(tokenizer).beginning(full, turns[:2])
    assert beginning.endswith(f"{ANSWER.content}<|end|>\n")
    assert full.startswith(beginning)
    assert templates.Renderer(tokenizer).beginning(full, turns) == full
    ends = tokenizer.convert_ids_to_tokens(sorted(templates.end_ids(tokenizer)))
    assert set(ends) == {"<|end|>", "<|endoftext|>"}


def test_a_template_that_trips_refuses(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, end="</s>")
    for template in ("{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ nobody.knows }}"):
        tokenizer.chat_template = template
        with pytest.raises(DatasetError) as caught:
            templates.prompt_ids(tokenizer, (QUESTION,))
        assert caught.value.key == "data.template_refuses"


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("marks", [True, False], ids=["marks", "no marks"])
def test_our_templates_train_every_answer_and_its_end(
    tiny_gpt2: Path, *, ours: ChatTemplateName, name: str, marks: bool
) -> None:
    end = "</s>" if marks else "<|endoftext|>"
    tokenizer = tokenizer_with(tiny_gpt2, end=end, marks=marks, begins=marks)
    assert templates.ensure_chat_template(tokenizer, ours)
    assert not templates.ensure_chat_template(tokenizer, "plain")
    assert templates.name_of(tokenizer) == ours
    messages = CONVERSATIONS[name]
    row = learned(messages, tokenizer)
    answers = [message.content for message in messages if message.role == "assistant"]
    assert [run.lstrip(" ") for run in trained(row, tokenizer)] == [a + end for a in answers]
    assert row.input_ids.count(tokenizer.bos_token_id) == marks
    assert not row.last_answer_only
    assert tokenizer.eos_token_id in templates.end_ids(tokenizer)
    text = tokenizer.decode(row.input_ids)
    assert all(message.content in text for message in messages)


@pytest.mark.parametrize(
    ("ours", "text"),
    [
        (
            "chatml",
            (
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
                "<|im_start|>assistant\nA<end>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
        (
            "llama3",
            (
                "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nA<end>"
                "<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
        (
            "gemma",
            (
                "<start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end>\n"
                "<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n"
            ),
        ),
        ("mistral", "[INST] S\n\nQ [/INST] A<end>[INST] R [/INST]"),
        (
            "phi",
            (
                "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<end>\n"
                "<|user|>\nR<|end|>\n<|assistant|>\n"
            ),
        ),
        (
            "zephyr",
            (
                "<|system|>\nS</s>\n<|user|>\nQ</s>\n<|assistant|>\nA<end>\n"
                "<|user|>\nR</s>\n<|assistant|>\n"
            ),
        ),
        (
            "alpaca",
            (
                "S\n\n### Instruction:\nQ\n\n### Response:\nA<end>\n\n"
                "### Instruction:\nR\n\n### Response:\n"
            ),
        ),
        ("vicuna", "S USER: Q ASSISTANT: A<end>USER: R ASSISTANT:"),
        (
            "plain",
            (
                "### System:\nS\n\n### User:\nQ\n\n### Assistant:\nA<end>\n\n### User:\nR\n\n"
                "### Assistant:\n"
            ),
        ),
    ],
)
def test_our_templates_write_the_published_formats(
    tiny_gpt2: Path, ours: ChatTemplateName, text: str
) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, end="<|endoftext|>")
    templates.ensure_chat_template(tokenizer, ours)
    said = zip(("system", "user", "assistant", "user"), "SQAR", strict=True)
    messages = [Message(role, content) for role, content in said]  # type: ignore[arg-type]
    rendered = templates.render(tokenizer, messages, add_generation_prompt=True)
    assert rendered == text.replace("<end>", "<|endoftext|>")


@pytest.mark.parametrize("ours", OURS)
def test_our_templates_take_turns_of_any_order_and_tools(
    tiny_gpt2: Path, ours: ChatTemplateName
) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, end="</s>")
    templates.ensure_chat_template(tokenizer, ours)
    called, result = Message("assistant", '[{"name": "f"}]'), Message("tool", "7 도")
    row = learned((QUESTION, AGAIN, called, result, ANSWER, LAST), tokenizer)
    assert len(trained(row, tokenizer)) == (3 if ours != "mistral" else 2)
    assert "7 도" in tokenizer.decode(row.input_ids)


@pytest.mark.parametrize("ours", ["alpaca", "vicuna"])
def test_what_stands_before_everything_gives_way_to_a_system_turn(
    tiny_gpt2: Path, ours: ChatTemplateName
) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, end="</s>")
    templates.ensure_chat_template(tokenizer, ours)
    without = templates.render(tokenizer, (QUESTION,), add_generation_prompt=True)
    assert without.startswith(("Below is an instruction", "A chat between a curious user"))
    within = templates.render(tokenizer, (SYSTEM, QUESTION), add_generation_prompt=True)
    assert within.startswith(SYSTEM.content)


def test_every_name_of_the_recipe_has_a_template_of_its_own(tiny_gpt2: Path) -> None:
    assert set(TEMPLATES) == set(OURS)
    assert len(set(TEMPLATES.values())) == len(OURS)
    tokenizer = tokenizer_with(tiny_gpt2, end="</s>")
    assert templates.name_of(tokenizer) is None
    tokenizer.chat_template = CHATML
    assert templates.name_of(tokenizer) is None
    assert not templates.ensure_chat_template(tokenizer, "llama3")


def test_a_tokenizer_without_an_end_is_refused(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, end="</s>")
    tokenizer.eos_token = None
    with pytest.raises(ModelError):
        templates.ensure_chat_template(tokenizer, "chatml")
