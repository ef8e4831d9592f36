from __future__ import annotations

import json
import unicodedata
from typing import Any, get_args

import pytest

from lora_studio.data.columns import LAYOUTS
from lora_studio.data.examples import Example, Record, Skipped
from lora_studio.data.formats import normalise, recognise
from lora_studio.errors import DatasetError
from lora_studio.recipe import FormatName

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def records(*rows: dict[str, Any] | str, file: str = "f.jsonl") -> list[Record]:
    return [Record(file, number, row) for number, row in enumerate(rows, start=1)]


def turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def one(row: dict[str, Any]) -> list[tuple[str, str]]:
    (example,), skipped = normalise(records(row), "auto", "skip")
    assert not skipped
    return turns(example)


def reason(row: dict[str, Any]) -> str:
    filler = dict(zip(row, ["q", "a"], strict=False))
    if isinstance(next(iter(row.values())), list):
        filler = {next(iter(row)): CHAT}
    _, (skipped,) = normalise(records(filler, row), "auto", "skip")
    assert skipped.number == 2
    return skipped.reason.removeprefix("data.skip_")


def test_every_format_of_the_recipe_has_a_layout() -> None:
    assert {*LAYOUTS, "auto"} == set(get_args(FormatName))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("A whole document.", "text"),
        ({"text": "x"}, "text"),
        ({"Poem": "x"}, "text"),
        ({"text": "x", "url": "y"}, "text"),
        ({"prompt": "p", "completion": "c"}, "prompt_completion"),
        ({"Prompt": "p", "Response": "c"}, "prompt_completion"),
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca"),
        ({"instruction": "i", "output": "o", "text": "all of it"}, "alpaca"),
        ({"instruction": "i", "context": "c", "response": "r", "category": "x"}, "alpaca"),
        ({"question": "q", "answer": "a"}, "question_answer"),
        ({"Query": "q", "Response": "a"}, "question_answer"),
        ({"Q": "q", "A": "a"}, "question_answer"),
        ({" 질문 ": "q", "답변": "a"}, "question_answer"),
        ({unicodedata.normalize("NFD", "질문"): "q", "답변": "a"}, "question_answer"),
        ({"messages": CHAT}, "messages"),
        ({"messages": json.dumps(CHAT)}, "messages"),
        ({"conversations": CHAT}, "conversations"),
        ({"conversation": CHAT, "id": 3}, "conversations"),
    ],
)
def test_formats_are_recognised_by_their_columns(row: Any, name: FormatName) -> None:
    assert recognise(records(row)) == name


def test_an_unknown_table_is_refused_with_its_columns_and_the_choices() -> None:
    with pytest.raises(DatasetError) as caught:
        recognise(records({"height": 1, "width": 2}))
    assert "height, width" in str(caught.value)
    assert "instruction, (input), output" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "text"])
def test_a_chosen_format_that_does_not_fit_names_what_it_expects(name: FormatName) -> None:
    for rows in (records({"height": 1, "width": 2}), records("A document.")):
        with pytest.raises(DatasetError) as caught:
            normalise(rows, name, "skip")
        assert LAYOUTS[name].expected in str(caught.value)


def test_an_alpaca_input_follows_its_instruction_after_a_blank_line() -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": 3, "system": "Be brief."}
    assert one(row) == [("system", "Be brief."), ("user", "Add.\n\n1, 2"), ("assistant", "3")]
    assert one(row | {"input": None, "system": ""})[0] == ("user", "Add.")


@pytest.mark.parametrize(
    ("cell", "answer"),
    [
        (42, "42"),
        (0, "0"),
        (2.5, "2.5"),
        (False, "false"),
        (["a", "나"], '["a", "나"]'),
        (" Seoul \r\n\r\n🍋 ", "Seoul \n\n🍋"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
    ],
)
def test_cells_of_any_type_become_answers(cell: Any, answer: str) -> None:
    assert one({"question": "q", "answer": cell})[-1] == ("assistant", answer)


@pytest.mark.parametrize("cell", [None, "", "  \n", float("nan")])
def test_a_row_without_an_answer_is_skipped_with_its_number(cell: Any) -> None:
    assert reason({"question": "q", "answer": cell}) == "no_answer"


def test_a_row_whose_answer_column_is_missing_is_skipped() -> None:
    rows = records({"question": "q", "answer": "a"}, {"question": "r"})
    examples, skipped = normalise(rows, "auto", "skip")
    assert len(examples) == 1
    assert skipped == [Skipped("f.jsonl", 2, "data.skip_no_answer")]


def test_missing_answers_can_be_refused_by_row() -> None:
    rows = records(*({"question": "q", "answer": "a" if at % 2 else ""} for at in range(30)))
    with pytest.raises(DatasetError, match=r"15 \(f\.jsonl:1, f\.jsonl:3.*…\)"):
        normalise(rows, "auto", "stop")


def test_sharegpt_names_become_roles() -> None:
    row = {
        "system": "Be kind.",
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "Human", "value": "Bye"},
            {"from": "assistant", "value": "See you"},
            {"from": "human", "value": "Still there?"},
        ],
    }
    assert one(row) == [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
        ("assistant", "See you"),
    ]


def test_text_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "What"}, {"type": "text", "text": "now?"}]
    row = {"messages": [{"role": "user", "content": parts}, CHAT[1]]}
    assert one(row)[0] == ("user", "What\nnow?")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "no_answer"),
        ([CHAT[0]], "no_answer"),
        ([CHAT[1]], "no_question"),
        ([CHAT[0], {"role": "assistant", "content": None}, *CHAT], "empty_turn"),
        ([{"role": "narrator", "content": "x"}, *CHAT], "unknown_role"),
        ([{"role": "user", "content": [{"type": "image"}]}, CHAT[1]], "unreadable_turns"),
        (["hi"], "unreadable_turns"),
    ],
)
def test_an_unusable_conversation_is_skipped_with_its_reason(messages: Any, why: str) -> None:
    assert reason({"messages": messages}) == why


def test_a_pair_without_a_question_is_skipped() -> None:
    assert reason({"prompt": " ", "completion": "x"}) == "no_question"


def test_files_of_different_formats_mix() -> None:
    rows = [
        *records("A document.", file="a.txt"),
        *records({"질문": "q", "답변": "a"}, file="b.csv"),
        *records({"messages": CHAT}, file="c.json"),
    ]
    examples, skipped = normalise(rows, "auto", "skip")
    assert [example.is_chat for example in examples] == [False, True, True]
    assert not skipped


def test_rows_with_the_same_question_are_one_document() -> None:
    rows = records(*({"prompt": p, "completion": c} for p, c in ["ab", "ac", "db"]))
    first, same, other = normalise(rows, "auto", "skip")[0]
    assert first.document == same.document != other.document


def test_empty_cells_of_a_text_column_are_skipped() -> None:
    rows = records({"text": "one"}, {"text": " "}, {"text": None})
    examples, skipped = normalise(rows, "auto", "skip")
    assert [example.text for example in examples] == ["one"]
    assert {row.reason for row in skipped} == {"data.skip_empty_text"}
