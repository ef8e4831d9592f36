"""Templates that mark what the model writes: marks that fit are followed, others are named."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conversations import (
    AGAIN,
    ANSWER,
    CONVERSATIONS,
    LAST,
    QUESTION,
    SYSTEM,
    chat,
    tokenizer_with,
    trained,
)

from lora_studio.data import masking, templates
from lora_studio.data.encoding import ChatEncoder, Encoded, Whole
from lora_studio.data.examples import Message
from lora_studio.data.preparation import prepare
from lora_studio.data.prepared import Prepared
from lora_studio.errors import DatasetError
from lora_studio.recipe import ChecksSpec, DataSpec


def template(header: str, answer: str, *, begin: str = "", others: str = "") -> str:
    """Return a template from what it writes before and for an answer."""
    others = others or "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    return (
        f"{begin}{{%- for message in messages %}}{{%- if message.role == 'assistant' %}}"
        f"{answer}{{%- else %}}{others}{{%- endif %}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{header}{{%- endif %}}"
    ).replace("\n", "{{ '\\n' }}")


HEADER = "<|im_start|>assistant\n"
START, STOP = "{%- generation %}", "{%- endgeneration %}"
SAID = "{{- message.content }}"
FIVE, REST = "{{- message.content[:5] }}", "{{- message.content[5:] }}"
CHATML = template(HEADER, f"{HEADER}{START}{SAID}{STOP}<|im_end|>\n")
LLAMA3_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
LLAMA3 = template(
    LLAMA3_HEADER,
    f"{LLAMA3_HEADER}{START}{{{{- message.content | trim + '<|eot_id|>' }}}}{STOP}",
    begin="{{- bos_token }}",
    others=(
        "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{{ message.content | trim }}<|eot_id|>"
    ),
)
# As TRL's for Phi 3: the end of a whole conversation is a mark of its own.
PHI = (
    template(
        "<|assistant|>\n",
        f"<|assistant|>\n{START}{SAID}<|end|>\n{STOP}",
        others="<|{{ message.role }}|>\n{{ message.content }}<|end|>\n",
    )
    + f"{{%- if not add_generation_prompt %}}{START}{{{{- eos_token }}}}{STOP}{{%- endif %}}"
)
MISTRAL = template(
    "",
    f"{{{{- ' ' }}}}{START}{SAID}{STOP}{{{{- eos_token }}}}",
    begin="{{- bos_token }}",
    others="[INST] {{ message.content }} [/INST]",
)
# As TRL's for Qwen 2.5 and SmolLM3's own: the header is marked too, or its last line end.
HEADER_MARKED = template(HEADER, f"{START}{HEADER}{SAID}<|im_end|>\n{STOP}")
LINE_END_MARKED = template(
    HEADER, f"<|im_start|>assistant{START}{{{{- '\\n' + message.content }}}}<|im_end|>{STOP}\n"
)
ENDLESS = template("assistant:\n", f"assistant:\n{START}{SAID}{STOP}\n", others="user:\n\n")
FITTING = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "phi": (PHI, "<|endoftext|>"),
    "header": (HEADER_MARKED, "<|im_end|>"),
    "line end": (LINE_END_MARKED, "<|im_end|>"),
    "endless": (ENDLESS, "<|endoftext|>"),
}
# Reasoning is shown in the last answer only, as by Qwen 3.
THINKING = template(
    HEADER,
    f"{HEADER}{START}{{%- if loop.last %}}<think>\n\n</think>\n\n{{%- endif %}}"
    f"{{{{- message.content.split('</think>')[-1].lstrip() }}}}{STOP}<|im_end|>\n",
)
MISFITTING = {
    "the question": template(
        HEADER,
        f"{HEADER}{SAID}<|im_end|>\n",
        others=f"<|im_start|>user\n{START}{SAID}{STOP}<|im_end|>\n",
    ),
    "everything": f"{START}{re.sub('{%- (end)?generation %}', '', CHATML)}{STOP}",
    "half": template(
        HEADER,
        f"{HEADER}{FIVE}{START}{REST}{STOP}<|im_end|>",
    ),
    "the beginning": template(
        HEADER,
        f"{HEADER}{START}{FIVE}{STOP}{REST}<|im_end|>",
    ),
    "the last only": template(
        HEADER,
        f"{HEADER}{{%- if loop.last %}}{START}{SAID}{STOP}{{%- else %}}{SAID}{{%- endif %}}"
        "<|im_end|>\n",
    ),
    "the next header": template(
        HEADER,
        f"{HEADER}{START}{SAID}<|im_end|>\n"
        f"{{%- if not loop.last %}}<|im_start|>user\n{{%- endif %}}{STOP}",
        others=(
            "{%- if loop.first %}<|im_start|>user\n{%- endif %}{{- message.content }}<|im_end|>\n"
        ),
    ),
    "the next header, without ends": template(
        "assistant:\n",
        f"assistant:\n{START}{SAID}\n{{%- if not loop.last %}}user:\n{{%- endif %}}{STOP}",
        others="{%- if loop.first %}user:\n{%- endif %}{{- message.content }}\n",
    ),
    "the next header, after another answer": template(
        HEADER,
        f"{HEADER}{{%- if loop.last %}}<think></think>{{%- endif %}}{START}{SAID}<|im_end|>\n"
        f"{{%- if not loop.last %}}<|im_start|>user\n{{%- endif %}}{STOP}",
        others=(
            "{%- if loop.first %}<|im_start|>user\n{%- endif %}{{- message.content }}<|im_end|>\n"
        ),
    ),
    "an earlier header": template(
        HEADER,
        f"{{%- if loop.last %}}{HEADER}{START}{SAID}{STOP}"
        f"{{%- else %}}{START}{HEADER}{SAID}{STOP}{{%- endif %}}<|im_end|>\n",
    ),
    "more than an end": template(HEADER, f"{HEADER}{START}{SAID}{STOP}<|im_end|>\n[over]"),
    # What a macro writes is not yet written when transformers looks where a mark begins.
    "a macro": template(
        HEADER,
        f"{{%- macro say() %}}{HEADER}{START}{SAID}{STOP}<|im_end|>\n{{%- endmacro %}}"
        "{{- say() }}",
    ),
    "a longer prompt": template(f"{HEADER}<think>\n", f"{HEADER}{START}{SAID}{STOP}<|im_end|>\n"),
    "another prompt": template("<|im_start|>bot\n", f"{HEADER}{START}{SAID}{STOP}<|im_end|>\n"),
}
THOUGHT = Message("assistant", "<think>\nEasy.\n</think>\n\nParis 🍋")


def unmarked(source: str) -> str:
    """Return a template without its marks."""
    return re.sub(r"\{%- (end)?generation %\}", "", source)


def encoded(tokenizer: Any, *messages: Message) -> Whole:
    (row,) = ChatEncoder(tokenizer).encode([chat(*messages)])
    assert isinstance(row, Whole)
    return row


def learned(tokenizer: Any, row: Whole) -> list[str]:
    return trained(Encoded.cut(row, 0, len(row.ids)), tokenizer)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", FITTING)
def test_marks_say_what_each_turn_adds(
    tiny_gpt2: Path, name: str, messages: tuple[Message, ...]
) -> None:
    source, end = FITTING[name]
    row = encoded(tokenizer_with(tiny_gpt2, source, end=end), *messages)
    plain = tokenizer_with(tiny_gpt2, unmarked(source), end=end)
    compared = encoded(plain, *messages)
    assert not row.marks_misfit
    assert (row.ids, row.text) == (compared.ids, compared.text)
    if name == "endless":  # there the end of an earlier line is not marked, and not learned
        row = Whole(row.ids, tuple((a, b + (b < len(row.ids))) for a, b in row.spans), row.text)
    assert row.spans == compared.spans
    answers = [message.content for message in messages if message.role == "assistant"]
    runs = learned(plain, row)
    assert len(runs) == len(answers)
    assert all(run.startswith(said) for run, said in zip(runs, answers, strict=True))


def test_marks_are_read_not_guessed(tiny_gpt2: Path) -> None:
    source = template(HEADER, f"{HEADER}<think></think>{START}{SAID}{STOP}<|im_end|>\n")
    tokenizer = tokenizer_with(tiny_gpt2, source, end="<|im_end|>")
    row = encoded(tokenizer, QUESTION, ANSWER, AGAIN, LAST)
    assert learned(tokenizer, row) == [f"{turn.content}<|im_end|>" for turn in (ANSWER, LAST)]
    plain = tokenizer_with(tiny_gpt2, unmarked(source), end="<|im_end|>")
    compared = learned(plain, encoded(plain, QUESTION, ANSWER, AGAIN, LAST))
    assert compared[0] == f"<think></think>{ANSWER.content}<|im_end|>"


def test_an_end_right_after_the_marks_is_learned(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, CHATML, end="<|im_end|>")
    row = encoded(tokenizer, SYSTEM, AGAIN, LAST, QUESTION, ANSWER)
    assert row.text.count("<|im_end|>") == 5
    assert [row.ids[stop - 1] for _, stop in row.spans] == [tokenizer.eos_token_id] * 2


def test_earlier_answers_that_are_rewritten_are_learned_as_they_stand(tiny_gpt2: Path) -> None:
    messages = (QUESTION, THOUGHT, AGAIN, LAST)
    tokenizer = tokenizer_with(tiny_gpt2, THINKING, end="<|im_end|>")
    row = encoded(tokenizer, *messages)
    assert (row.last_answer_only, row.marks_misfit) == (False, False)
    shown = f"<think>\n\n</think>\n\n{LAST.content}<|im_end|>"
    assert learned(tokenizer, row) == ["Paris 🍋<|im_end|>", shown]
    asked = templates.prompt_ids(tokenizer, messages[:-1])
    assert row.ids[: row.spans[-1][0]] == asked
    plain = tokenizer_with(tiny_gpt2, unmarked(THINKING), end="<|im_end|>")
    assert encoded(plain, *messages).last_answer_only


@pytest.mark.parametrize("name", MISFITTING)
def test_marks_that_do_not_fit_are_not_followed(tiny_gpt2: Path, name: str) -> None:
    source = MISFITTING[name]
    messages = (QUESTION, ANSWER, AGAIN, LAST)
    row = encoded(tokenizer_with(tiny_gpt2, source, end="<|im_end|>"), *messages)
    compared = encoded(tokenizer_with(tiny_gpt2, unmarked(source), end="<|im_end|>"), *messages)
    assert row.marks_misfit
    assert not compared.marks_misfit
    assert (row.ids, row.spans, row.text) == (compared.ids, compared.spans, compared.text)


def test_marks_around_a_question_do_not_fit(tiny_gpt2: Path) -> None:
    answer = "{{- messages[loop.index0 + 1].content if not loop.last }}"
    source = (
        "{%- for message in messages %}{%- if message.role == 'user' %}"
        f"{START}{SAID}=={answer}{STOP}{{{{- eos_token if not loop.last }}}}"
        "{%- endif %}{%- endfor %}"
    )
    tokenizer = tokenizer_with(tiny_gpt2, source, end="</s>")
    row = encoded(tokenizer, QUESTION, ANSWER)
    assert row.marks_misfit
    assert learned(tokenizer, row) == [f"{ANSWER.content}</s>"]


def test_a_template_that_refuses_an_open_question_is_asked_only_where_it_must(
    tiny_gpt2: Path,
) -> None:
    refuses = (
        "{%- if messages[-1].role == 'user' and not add_generation_prompt %}"
        "{{- raise_exception('No answer') }}{%- endif %}"
    )
    for source, misfits in ((CHATML, False), (HEADER_MARKED, True)):
        row = encoded(tokenizer_with(tiny_gpt2, refuses + source, end="<|im_end|>"), AGAIN, LAST)
        assert row.marks_misfit is misfits


def test_marks_in_a_comment_are_none(tiny_gpt2: Path) -> None:
    source = "{#- Knows no {% generation %} marks -#}" + unmarked(CHATML)
    assert not templates.Renderer(tokenizer_with(tiny_gpt2, source)).marks_answers
    assert templates.Renderer(tokenizer_with(tiny_gpt2, CHATML)).marks_answers


def test_a_greeting_is_read_not_trained(tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, CHATML, end="<|im_end|>")
    row = encoded(tokenizer, Message("assistant", "Welcome!"), QUESTION, ANSWER)
    assert not row.marks_misfit
    assert learned(tokenizer, row) == [f"{ANSWER.content}<|im_end|>"]


def test_a_slow_tokenizer_does_without_marks() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer(extra_ids=0)
    source = template(
        "A:", f"A:{START}{SAID}{STOP}{{{{- eos_token }}}}", others="U:{{ message.content }}"
    )
    tokenizer.chat_template = source
    row = encoded(tokenizer, QUESTION, ANSWER)
    assert row.marks_misfit
    assert learned(tokenizer, row) == [f"{ANSWER.content}</s>"]


def sentencepiece(source: str, *, swallows: bool = False) -> Any:
    """Return a tokenizer like Llama 2's: spaces join the next word, rare letters are bytes."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *letters, "[INST]"]
    trainer = trainers.BpeTrainer(special_tokens=specials, show_progress=False)
    bpe.train_from_iterator(["The capital of France is Paris. What next?"] * 3, trainer)
    bpe.add_special_tokens([AddedToken("[/INST]", rstrip=swallows)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>", chat_template=source,
    )  # fmt: skip


def test_characters_of_several_tokens_and_joined_spaces_are_whole() -> None:
    tokenizer = sentencepiece(MISTRAL)
    lemon = Message("assistant", "Paris 🍋")
    row = encoded(tokenizer, QUESTION, ANSWER, AGAIN, lemon)
    assert not row.marks_misfit
    runs = [tokenizer.convert_ids_to_tokens(row.ids[start:stop]) for start, stop in row.spans]
    assert [run[-1] for run in runs] == ["</s>", "</s>"]
    assert "[/INST]" not in runs[0] + runs[1]
    assert runs[1][-5:-1] == ["<0xF0>", "<0x9F>", "<0x8D>", "<0x8B>"]
    assert "".join(runs[0][:-1]).lstrip("▁").replace("▁", " ") == ANSWER.content
    plain = encoded(sentencepiece(unmarked(MISTRAL)), QUESTION, ANSWER, AGAIN, lemon)
    assert row.spans == plain.spans


def test_a_special_token_that_swallows_a_line_end_is_not_learned() -> None:
    source = MISTRAL.replace("{{- ' ' }}", "")
    tokenizer = sentencepiece(source, swallows=True)
    spaced = Message("assistant", "\n Paris")
    row = encoded(tokenizer, QUESTION, spaced, AGAIN, spaced)
    assert not row.marks_misfit
    firsts = [tokenizer.convert_ids_to_tokens(row.ids[start]) for start, _ in row.spans]
    assert firsts == ["▁Pa", "▁Pa"]


def test_an_answer_that_shares_a_token_with_the_prompt_is_kept_apart(tiny_gpt2: Path) -> None:
    source = template(
        "assistant: ", f"{{{{- 'assistant: ' }}}}{START}{SAID}{STOP}\n", others="user:\n"
    )
    source = source.replace("%}assistant: {%- endif", "%}{{- 'assistant: ' }}{%- endif")
    tokenizer = tokenizer_with(tiny_gpt2, source, end="<|endoftext|>")
    coffee = Message("assistant", "The coffee shop")
    row = encoded(tokenizer, QUESTION, coffee, AGAIN, coffee)
    whole = templates.token_ids(tokenizer, [row.text])[0]
    assert row.ids[:-1] != whole
    assert tokenizer.decode(row.ids[:-1]) == row.text
    asked = templates.prompt_ids(tokenizer, (QUESTION, coffee, AGAIN))
    assert row.ids[: len(asked)] == asked
    assert not row.marks_misfit
    first, last = learned(tokenizer, row)
    assert (first, last) == (" The coffee shop", "The coffee shop\n<|endoftext|>")


def test_white_space_without_end_takes_no_time(tiny_gpt2: Path) -> None:
    closer = masking.Closer(tokenizer_with(tiny_gpt2, CHATML, end="<|im_end|>"))
    begun = time.process_time()
    assert closer.is_over(" " * 50_000)
    assert closer.closed_text("a" + " " * 50_000, (0, 1)) == (0, 1)
    assert time.process_time() - begun < 1


def test_tokens_that_only_touch_a_span_stay_out(tiny_gpt2: Path) -> None:
    closer = masking.Closer(tokenizer_with(tiny_gpt2, CHATML, end="<|im_end|>"))
    ids = [100, 101, 102, 103]
    places = [(0, 2), (2, 3), (2, 3), (3, 5)]
    assert masking.tokens_of([(2, 3)], ids, places, closer) == [(1, 3)]
    assert masking.tokens_of([(1, 4)], ids, places, closer) == [(0, 4)]


# Marks an answer of one word wrongly.
SOMETIMES = template(
    HEADER,
    f"{HEADER}{{%- if ' ' in message.content %}}{START}{SAID}{STOP}"
    f"{{%- else %}}{SAID}{{%- endif %}}<|im_end|>\n",
)


def prepared(folder: Path, tokenizer: Any, choice: Any) -> Prepared:
    answers = ["It is Paris.", "Paris", "It is Seoul.", "서울 🍋", "Seoul"]
    rows = [{"prompt": f"Which city? {at}", "completion": said} for at, said in enumerate(answers)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = DataSpec(files=(str(file),), checks=ChecksSpec(answer_marks=choice))
    return prepare(spec, tokenizer, 0, cache=folder / "cache")


def test_the_report_names_rows_whose_marks_do_not_fit(tmp_path: Path, tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, SOMETIMES, end="<|im_end|>")
    kept = prepared(tmp_path, tokenizer, "keep").report
    (found,) = [
        finding for finding in kept.to_dict()["findings"] if finding["check"] == "answer_marks"
    ]
    assert (found["count"], found["rows"]) == (2, [["rows.jsonl", 2], ["rows.jsonl", 5]])
    assert found["example"].endswith("assistant Paris<|im_end|>")
    assert (kept.rows, kept.skipped) == (5, {})
    skipped = prepared(tmp_path, tokenizer, "skip").report
    assert skipped.skipped == {"data.skip_answer_marks": 2}
    assert skipped.rows == 5
    with pytest.raises(DatasetError, match=r"2 \(rows.jsonl:2, rows.jsonl:5\)"):
        prepared(tmp_path, tokenizer, "stop")


def test_marks_that_fit_are_not_reported(tmp_path: Path, tiny_gpt2: Path) -> None:
    tokenizer = tokenizer_with(tiny_gpt2, CHATML, end="<|im_end|>")
    assert not prepared(tmp_path, tokenizer, "stop").report.findings
