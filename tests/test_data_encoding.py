from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conversations import (
    AGAIN,
    ANSWER,
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
from lora_studio.data.encoding import IGNORE_INDEX, ChatEncoder, Encoded, Whole, encode
from lora_studio.data.examples import Message
from lora_studio.errors import DatasetError, ModelError

# SmolLM2's: a default system turn, ChatML.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3's way: reasoning is shown in the last answer only.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The prompt opens something that the written conversation does not have.
OPENED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Ends its prompt with a space, and no answer has an end.
BARE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
MARKED = CHATML.replace(
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}"
    "{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}",
)
MARKED_PAST_THE_END = MARKED.replace(
    "{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}",
    "{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endif %}",
)
# Under these an earlier answer's tokens differ from those it had when it was given.
REWRITTEN = (THINKING, OPENED, BARE)

ALL = SHARED | {
    "chatml": (CHATML, "<|im_end|>"),
    "mistral": (MISTRAL, "<|endoftext|>"),
    "thinking": (THINKING, "<|im_end|>"),
    "opened": (OPENED, "<|im_end|>"),
    "bare": (BARE, "<|endoftext|>"),
    "marked": (MARKED, "<|im_end|>"),
    "marked past the end": (MARKED_PAST_THE_END, "<|im_end|>"),
    "plain": (templates.PLAIN_TEMPLATE, "<|endoftext|>"),
}


@pytest.fixture(params=ALL)
def case(request: pytest.FixtureRequest, tiny_gpt2: Path) -> tuple[Any, str]:
    template, end = ALL[request.param]
    return tokenizer_with(tiny_gpt2, template), end


@pytest.mark.parametrize("messages", [(QUESTION, ANSWER), (QUESTION, ANSWER, AGAIN, LAST)])
def test_training_sees_the_prompt_of_inference(
    case: tuple[Any, str], messages: tuple[Message, ...]
) -> None:
    tokenizer, _ = case
    row = encode(chat(*messages), tokenizer, 1000)
    turns = [{"role": turn.role, "content": turn.content} for turn in messages[:-1]]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert asked == templates.prompt_ids(tokenizer, messages[:-1])
    assert row.input_ids[: len(asked)] == asked
    assert row.labels[len(asked)] != IGNORE_INDEX or "think" in tokenizer.decode(row.input_ids)


def test_only_answers_and_their_end_are_trained(case: tuple[Any, str]) -> None:
    tokenizer, end = case
    for question, answer in ((QUESTION, ANSWER), (AGAIN, LAST)):
        (run,) = trained(encode(chat(question, answer), tokenizer, 1000), tokenizer)
        text = run.removesuffix(end).removeprefix("<think>\n\n</think>\n\n")
        assert run.endswith(end)
        assert text.strip() == answer.content


def test_every_answer_of_a_conversation_is_trained(case: tuple[Any, str]) -> None:
    tokenizer, end = case
    row = encode(chat(QUESTION, ANSWER, AGAIN, LAST), tokenizer, 1000)
    runs = trained(row, tokenizer)
    if tokenizer.chat_template in REWRITTEN:
        assert row.last_answer_only
        assert [LAST.content in run for run in runs] == [True]
    else:
        assert not row.last_answer_only
        assert [run.strip() for run in runs] == [ANSWER.content + end, LAST.content + end]


def test_the_beginning_token_is_never_doubled(case: tuple[Any, str]) -> None:
    tokenizer, _ = case
    row = encode(chat(QUESTION, ANSWER), tokenizer, 1000)
    begins = "bos_token" in tokenizer.chat_template
    assert row.input_ids.count(tokenizer.bos_token_id) == begins


def test_space_after_the_end_token_is_not_trained(tiny_llama: Path) -> None:
    for template in (CHATML, MARKED, MARKED_PAST_THE_END):
        tokenizer = tokenizer_with(tiny_llama, template)
        row = encode(chat(QUESTION, ANSWER), tokenizer, 1000)
        assert tokenizer.decode(row.input_ids).endswith("<|im_end|>\n")
        assert row.labels[-2:] == [tokenizer.eos_token_id, IGNORE_INDEX]


def test_an_answer_that_melts_into_the_prompt_is_kept_apart(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, BARE)
    answer = Message("assistant", "The coffee shop")
    row = encode(chat(QUESTION, answer), tokenizer, 1000)
    whole = templates.token_ids(tokenizer, [templates.render(tokenizer, (QUESTION, answer))])[0]
    assert whole != row.input_ids[:-1]
    assert tokenizer.decode(row.input_ids[:-1]) == tokenizer.decode(whole)


def test_a_refused_system_turn_goes_before_the_question(tiny_gpt2: Path) -> None:
    for template in (GEMMA, MISTRAL):
        tokenizer = tokenizer_with(tiny_gpt2, template)
        row = encode(chat(SYSTEM, QUESTION, ANSWER), tokenizer, 1000)
        asked = templates.prompt_ids(tokenizer, (SYSTEM, QUESTION))
        assert row.input_ids[: len(asked)] == asked
        assert f"{SYSTEM.content}\n\n{QUESTION.content}" in tokenizer.decode(asked)


def test_a_conversation_the_template_refuses_is_given_back_as_a_refusal(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, GEMMA)
    bad = chat(QUESTION, AGAIN, ANSWER)
    good, refusal = ChatEncoder(tokenizer).encode([chat(QUESTION, ANSWER), bad])
    assert isinstance(good, Whole)
    assert isinstance(refusal, DatasetError)
    assert "roles must alternate" in str(refusal)
    with pytest.raises(DatasetError):
        encode(bad, tokenizer, 1000)


def test_a_greeting_before_the_first_question_is_read_not_trained(tiny_llama: Path) -> None:
    tokenizer = tokenizer_with(tiny_llama, CHATML)
    greeting = Message("assistant", "Welcome!")
    row = encode(chat(greeting, QUESTION, ANSWER), tokenizer, 1000)
    assert trained(row, tokenizer) == [f"{ANSWER.content}<|im_end|>"]


def test_a_batch_gives_the_same_rows_as_one_at_a_time(case: tuple[Any, str]) -> None:
    tokenizer, _ = case
    examples = [chat(QUESTION, ANSWER), chat(QUESTION, ANSWER, AGAIN, LAST), chat(AGAIN, LAST)]
    rows = ChatEncoder(tokenizer).encode(examples)
    assert [Encoded.cut(row, 0, 1000) for row in rows] == [
        encode(example, tokenizer, 1000) for example in examples
    ]


def test_cutting_is_told_and_so_is_a_lost_answer(tiny_llama: Path) -> None:
    tokenizer = tokenizer_with(tiny_llama, CHATML)
    whole = encode(chat(QUESTION, ANSWER), tokenizer, 1000)
    assert not whole.truncated
    cut = encode(chat(QUESTION, ANSWER), tokenizer, whole.answer_start + 1)
    assert (cut.truncated, cut.lost_answer, cut.trained_tokens) == (True, False, 1)
    lost = encode(chat(QUESTION, ANSWER), tokenizer, whole.answer_start)
    assert (lost.truncated, lost.lost_answer, lost.length) == (True, True, whole.length)


def test_a_tokenizer_without_a_template_gets_the_plain_one(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2)
    tokenizer.pad_token = None
    assert templates.ensure_chat_template(tokenizer)
    assert not templates.ensure_chat_template(tokenizer)
    assert templates.name_of(tokenizer) == "plain"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    text = templates.render(
        tokenizer, (SYSTEM, QUESTION, ANSWER, AGAIN), add_generation_prompt=True
    )
    assert text == (
        "### System:\nAnswer briefly.\n\n짧게.\n\n### User:\nWhat is the capital of France?\n\n"
        "### Assistant:\nThe capital of France is Paris.<|endoftext|>\n\n"
        "### User:\n수도가 어디예요? 🍋\n\n### Assistant:\n"
    )


def test_the_plain_template_begins_as_the_tokenizer_does(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, begins=True)
    templates.ensure_chat_template(tokenizer)
    assert templates.name_of(tokenizer) == "plain"
    assert templates.prompt_ids(tokenizer, (QUESTION,))[0] == tokenizer.bos_token_id
    row = encode(chat(QUESTION, ANSWER), tokenizer, 1000)
    assert row.input_ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_without_an_end_token_is_refused(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        templates.ensure_chat_template(tokenizer)
