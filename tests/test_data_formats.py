from __future__ import annotations

import json
import pickle
import unicodedata
from typing import Any, get_args

import pytest

from lora_studio.data.columns import LAYOUTS
from lora_studio.data.examples import Example, Record
from lora_studio.data.formats import Meaning, understand
from lora_studio.data.turns import UnusableRowError, conversation
from lora_studio.errors import DatasetError, from_dict
from lora_studio.recipe import DataSpec, FormatName

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
FILE = "f.jsonl"


def records(*rows: dict[str, Any] | str) -> list[Record]:
    return [Record(FILE, number, row) for number, row in enumerate(rows, start=1)]


def read(*rows: dict[str, Any] | str, **spec: Any) -> Meaning:
    return understand(FILE, records(*rows), DataSpec(**spec))


def recognise(head: list[Record]) -> FormatName:
    return understand(FILE, head, DataSpec()).format


def turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def one(row: dict[str, Any], **spec: Any) -> list[tuple[str, str]]:
    (example,) = read(row, **spec).examples(Record(FILE, 1, row))
    return turns(example)


def reason(row: dict[str, Any]) -> str:
    filler = dict(zip(row, ["q", "a"], strict=False))
    if isinstance(next(iter(row.values())), list):
        filler = {next(iter(row)): CHAT}
    with pytest.raises(UnusableRowError) as caught:
        read(filler, row).examples(Record(FILE, 2, row))
    return caught.value.reason.removeprefix("data.skip_")


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
            understand(FILE, rows, DataSpec(format=name))
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


def test_a_later_row_may_lack_columns_or_have_more() -> None:
    meaning = read({"question": "q", "answer": "a", "system": "s"})
    (example,) = meaning.examples(Record(FILE, 300, {"question": "r", "answer": "b", "x": 1}))
    assert turns(example) == [("user", "r"), ("assistant", "b")]
    assert example.number == 300
    with pytest.raises(UnusableRowError, match="no_answer"):
        meaning.examples(Record(FILE, 301, {"question": "r"}))


def test_columns_that_nothing_is_taken_from_are_told() -> None:
    meaning = read({"id": 1, "question": "q"}, {"answer": "a", "source": "x"})
    assert meaning.columns == ("id", "question", "answer", "source")
    assert meaning.parts == {"question": "question", "answer": "answer"}
    assert meaning.unused == ("id", "source")
    assert pickle.loads(pickle.dumps(meaning)) == meaning


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


def test_rows_with_the_same_question_are_one_document() -> None:
    rows = records(*({"prompt": p, "completion": c} for p, c in ["ab", "ac", "db"]))
    meaning = understand(FILE, rows, DataSpec())
    first, same, other = (meaning.examples(row)[0] for row in rows)
    assert first.document == same.document != other.document


@pytest.mark.parametrize("cell", [" ", None, float("nan")])
def test_an_empty_cell_of_a_text_column_is_skipped(cell: Any) -> None:
    meaning = read({"text": "one"}, {"text": cell})
    assert meaning.examples(Record(FILE, 1, {"text": "one"}))[0].text == "one"
    with pytest.raises(UnusableRowError, match="empty_text"):
        meaning.examples(Record(FILE, 2, {"text": cell}))


def test_a_document_is_learned_as_it_is() -> None:
    meaning = read("A document.\r\n")
    assert (meaning.format, meaning.parts, meaning.columns) == ("text", {}, ())
    assert meaning.examples(Record(FILE, 1, "A document.\r\n"))[0].text == "A document."
    with pytest.raises(UnusableRowError, match="empty_text"):
        meaning.examples(Record(FILE, 1, " \n"))


@pytest.mark.parametrize(
    ("columns", "question", "answer"),
    [
        (("User Input", "Model Response"), 0, 1),
        (("user_message", "assistant_response"), 0, 1),
        (("systemPrompt", "userPrompt", "modelResponse"), 1, 2),
        (("problem", "solution"), 0, 1),
        (("answer", "title"), 1, 0),
        (("Question (EN)", "Answer (EN)"), 0, 1),
        (("\ufeffquestion", "answer:"), 0, 1),
        (("Q.", "A."), 0, 1),
        (("source", "target"), 0, 1),
        (("document", "summary"), 0, 1),
        (("질문 내용", "답변 내용"), 0, 1),
        (("질문(필수)", "답변(필수)"), 0, 1),
        (("문의내용", "답변내용"), 0, 1),
        (("문제", "정답"), 0, 1),
        (("사용자", "챗봇"), 0, 1),
        (("원문", "번역문"), 0, 1),
        (("프롬프트", "응답"), 0, 1),
        (("지시 사항", "출력"), 0, 1),
        (("번호", "구분", "질의", "회신"), 2, 3),
        (("Frage", "Antwort"), 0, 1),
        (("id", "url", "고객의 말", "우리의 말"), 2, 3),
        (("user_id", "en", "ko"), 1, 2),
    ],
)
def test_columns_by_other_names_are_found(
    columns: tuple[str, ...], question: int, answer: int
) -> None:
    row = {column: f"words of {at}" for at, column in enumerate(columns)}
    said = one(row)
    assert said[-2:] == [("user", f"words of {question}"), ("assistant", f"words of {answer}")]


@pytest.mark.parametrize(
    "rows",
    [
        [{"height": "1", "width": "2"}],
        [{"day": "2024-01-02", "words": "some"}],
        [{"a1": "x", "b1": "y", "c1": "z"}],
        [{"en": "", "ko": ""}],
        [{"en": "x", "ko": None}],
    ],
)
def test_columns_that_tell_nothing_are_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DatasetError) as caught:
        read(*rows)
    assert caught.value.key == "data.unrecognised"
    assert all(column in caught.value.say("ko") for column in rows[0])


def test_one_column_of_words_beside_labels_is_a_text() -> None:
    meaning = read({"id": "a1", "시 전문": "가을이 왔어요."}, {"id": "a2", "시 전문": "봄이에요."})
    assert (meaning.format, meaning.parts) == ("text", {"text": "시 전문"})


def test_a_context_follows_its_question_and_squad_s_first_answer_counts() -> None:
    row = {
        "id": "1",
        "title": "서울",
        "context": "서울은 수도예요.",
        "question": "수도는?",
        "answers": {"text": ["서울", "서울시"], "answer_start": [0, 0]},
    }
    assert one(row) == [("user", "수도는?\n\n서울은 수도예요."), ("assistant", "서울")]


@pytest.mark.parametrize("name", ["chat_log", "대화 기록"])
def test_turns_are_found_under_any_name(name: str) -> None:
    assert read({"id": 1, name: CHAT, "words": "x"}).format == "messages"
    assert read({"id": 1, name: SHARED}).format == "conversations"
    assert one({"id": 1, name: json.dumps(SHARED)})[-1] == ("assistant", "Hello")


def test_turns_that_pandas_wrote_into_a_csv_file_are_read() -> None:
    assert one({"messages": str(CHAT), "x": "y"}) == [("user", "Hi"), ("assistant", "Hello")]
    with pytest.raises(UnusableRowError, match="unreadable_turns"):
        conversation("[{'role': __import__('os')}]")


@pytest.mark.parametrize(
    ("speaker", "spoken", "user", "assistant", "system"),
    [
        ("role", "content", "user", "assistant", "system"),
        ("role", "content", "user", "model", "developer"),
        ("from", "value", "human", "gpt", "system"),
        ("from", "value", "user", "chatgpt", "system"),
        ("from", "value", "human", "bard", "system"),
        ("speaker", "text", "Customer", "Agent", "System"),
        ("role", "text", "사용자", "어시스턴트", "시스템"),
        ("화자", "발화", "고객", "상담사", "시스템"),
        ("역할", "내용", "질문자", "챗봇", "시스템"),
    ],
)
def test_speakers_by_other_names_become_roles(
    speaker: str, spoken: str, user: str, assistant: str, system: str
) -> None:
    said = [(system, "친절하게."), (user, "Hi"), (assistant, "안녕"), (user, "?"), (assistant, "!")]
    row = {"messages": [{speaker: who, spoken: what} for who, what in said]}
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert one(row) == list(zip(roles, [what for _, what in said], strict=True))


def test_pairs_in_a_list_become_turns() -> None:
    row = {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]}
    assert [content for _, content in one(row)] == [*"abcd"]


CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "서울"}'},
}
CALLED = '[{"name": "weather", "arguments": {"city": "서울"}}]'


@pytest.mark.parametrize(
    ("turn", "content"),
    [
        ({"content": None, "tool_calls": [CALL]}, CALLED),
        ({"content": "", "tool_calls": [CALL]}, CALLED),
        ({"tool_calls": [CALL]}, CALLED),
        ({"content": "볼게요.", "tool_calls": [CALL]}, f"볼게요.\n\n{CALLED}"),
        ({"content": None, "function_call": CALL["function"]}, CALLED),
        ({"tool_calls": [{"name": "weather", "arguments": {"city": "서울"}}]}, CALLED),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{broken"}}]}, None),
    ],
)
def test_tool_calls_are_kept_as_json(turn: dict[str, Any], content: str | None) -> None:
    row = {
        "messages": [
            {"role": "system", "content": "You may call tools."},
            {"role": "user", "content": "날씨?"},
            {"role": "assistant", **turn},
            {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "clear"}'},
            {"role": "assistant", "content": "맑아요."},
        ],
        "tools": [{"type": "function"}],
    }
    said = one(row)
    assert [role for role, _ in said] == ["system", "user", "assistant", "tool", "assistant"]
    expected = content or '[{"name": "f", "arguments": "{broken"}]'
    assert said[2:4] == [("assistant", expected), ("tool", '{"sky": "clear"}')]
    called_last = {"messages": row["messages"][:3]}
    assert one(called_last)[-1] == ("assistant", expected)


def test_sharegpt_tool_turns_are_read() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "날씨?"},
            {"from": "function_call", "value": CALLED},
            {"from": "observation", "value": "맑음"},
            {"from": "gpt", "value": "맑아요."},
        ],
        "tools": "[]",
    }
    assert [role for role, _ in one(row)] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": "Hi", "completion": CHAT[1:]},
        {"prompt": CHAT[:1], "completion": "Hello"},
        {"prompt": "Hi", "chosen": CHAT, "rejected": CHAT},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
    ],
)
def test_prompts_and_completions_may_be_lists_of_turns(row: dict[str, Any]) -> None:
    assert one(row) == [("user", "Hi"), ("assistant", "Hello")]


ODD = {"말": "q", "대꾸": "a", "상황": "c", "성격": "s", "기록": CHAT, "글감": "t"}


@pytest.mark.parametrize(
    ("columns", "name", "said"),
    [
        (
            {"question": "말", "answer": "대꾸"},
            "question_answer",
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"question": "말", "answer": "대꾸", "context": "상황", "system": "성격"},
            "question_answer",
            [("system", "s"), ("user", "q\n\nc"), ("assistant", "a")],
        ),
        ({"turns": "기록"}, "messages", [("user", "Hi"), ("assistant", "Hello")]),
        (
            {"turns": "기록", "system": "성격"},
            "messages",
            [("system", "s"), ("user", "Hi"), ("assistant", "Hello")],
        ),
        ({"text": "글감"}, "text", []),
    ],
)
def test_named_columns_say_what_a_row_means(
    columns: dict[str, str], name: str, said: list[tuple[str, str]]
) -> None:
    meaning = read(ODD, columns=columns)
    assert (meaning.format, meaning.parts) == (name, columns)
    assert set(meaning.unused) == ODD.keys() - set(columns.values())
    assert turns(meaning.examples(Record(FILE, 1, ODD))[0]) == said


def test_named_columns_go_before_the_format_and_the_guess() -> None:
    row = {"question": "q", "answer": "a", "answer 2": "b", "text": "t", "system": "s"}
    assert one(row, columns={"answer": "answer 2"}) == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "b"),
    ]
    assert one(row, columns={"answer": "Answer_2"}, format="prompt_completion")[2][1] == "b"
    assert read(row, columns={"text": "text"}, format="alpaca").format == "text"
    assert one(row, columns={"system": ""}) == [("user", "q"), ("assistant", "a")]
    assert one(row, columns={"system": "text"})[0] == ("system", "t")
    assert read({"log": SHARED}, columns={"turns": "log"}).format == "conversations"


def test_the_last_column_of_words_is_the_part_that_is_not_named() -> None:
    assert one({"n": 3, "말": "q", "대꾸": "a"}, columns={"answer": "대꾸"})[0] == ("user", "q")


@pytest.mark.parametrize(
    ("columns", "key", "mentioned"),
    [
        ({"question": "reply"}, "data.no_such_column", ["reply", "question", "one, two, three"]),
        ({"question": "one"}, "data.part_missing", ["answer", "two, three"]),
        ({"turns": "one", "answer": "two"}, "data.parts_clash", ["turns, answer"]),
        ({"text": "one", "question": "two"}, "data.parts_clash", ["text, question"]),
    ],
)
def test_columns_that_cannot_be_are_refused(
    columns: dict[str, str], key: str, mentioned: list[str]
) -> None:
    with pytest.raises(DatasetError) as caught:
        read({"one": "x", "two": "y", "three": "z"}, columns=columns)
    assert caught.value.key == key
    for language in ("en", "ko"):
        assert all(word in caught.value.say(language) for word in mentioned)


def test_column_names_with_commas_stay_whole_in_an_error() -> None:
    with pytest.raises(DatasetError) as caught:
        read({"name, first": 1, "n": 2})
    assert caught.value.values["columns"] == ["name, first", "n"]
    assert "are “name, first”, n, and" in str(caught.value)
    assert from_dict(json.loads(json.dumps(caught.value.to_dict()))).say("ko") == (
        caught.value.say("ko")
    )


def test_an_error_about_no_columns_left_says_so() -> None:
    with pytest.raises(DatasetError, match="are: –"):
        read({"one": "x"}, columns={"question": "one"})


def test_cells_that_no_text_can_show_are_skipped() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert reason({"question": "q", "answer": deep}) == "unreadable_turns"
