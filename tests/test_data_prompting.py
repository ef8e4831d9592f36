from __future__ import annotations

import pickle
import time
import unicodedata
from typing import Any

import pytest

from lora_studio.data.examples import Example, Record
from lora_studio.data.formats import Meaning, understand
from lora_studio.data.turns import UnusableRowError
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

FILE = "표.csv"
ROW = {
    "이름": "루나",
    "age": 3,
    "likes": ["물고기", "공"],
    "col name": "x",
    "none": None,
    "nan": float("nan"),
    "yes": True,
    "답변": "야옹.",
}


def read(template: str, *rows: dict[str, Any], **spec: Any) -> Meaning:
    head = [Record(FILE, number, row) for number, row in enumerate(rows or (ROW,), start=2)]
    return understand(FILE, head, DataSpec(template=template, **spec))


def first(template: str, row: dict[str, Any] | None = None, **spec: Any) -> Example:
    (example,) = read(template, row or ROW, **spec).examples(Record(FILE, 2, row or ROW))
    return example


def rendered(template: str) -> str:
    return first(template, format="text").text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 이름 }} is {{ age }}.", "루나 is 3."),
        ('{{ row["col name"] }}|{{ row.age }}', "x|3"),
        ('{{ row.get("col name") }}|{{ row["이름"] }}', "x|루나"),
        ("a{{ none }}b{{ nan }}c", "abc"),
        ("{{ yes }} {{ likes }}", 'true ["물고기", "공"]'),
        ("{% for like in likes %}- {{ like }}\n{% endfor %}", "- 물고기\n- 공"),
        ("{% for a, b in row.items() if a == 'age' %}{{ a }}={{ b }}{% endfor %}", "age=3"),
        ("{% if none %}no{% else %}yes{% endif %}", "yes"),
        ("{% set x = 이름 ~ '/' ~ age ~ none %}{{ x | upper }}", "루나/3"),
        ("{{ likes | join(', ') }} {{ likes[0] }} {{ likes | length }}", "물고기, 공 물고기 2"),
        ("{{ age * 2 + 1 }} {{ '-' * 3 }} {{ 'a' + 'b' }} {{ 7 % 2 }}", "7 --- ab 1"),
        ("{{ 이름 | replace('나', '비') }} {{ missing | default('?') }}", "루비 ?"),
        ("{{ likes | tojson }} {{ '<b>' }} {{ (7 / 3) | round(2) }}", '["물고기", "공"] <b> 2.33'),
        ("{{ ' a b '.strip().split(' ') | last }} {{ 'x' in ['x', 'y'] }}", "b true"),
        ("{% for n in range(3) %}{{ loop.index }}{% endfor %}", "123"),
        ("{# a remark #}{{ 이름 if age is defined and age > 2 }}", "루나"),
    ],
)
def test_a_template_writes_the_text_of_a_row(template: str, text: str) -> None:
    assert rendered(template) == text


def test_with_an_answer_the_template_makes_the_question() -> None:
    named = first("{{ 이름 }}?", {**ROW, "대꾸": "응."}, columns={"answer": "대꾸"})
    assert [(turn.role, turn.content) for turn in named.messages] == [
        ("user", "루나?"),
        ("assistant", "응."),
    ]
    guessed = read("{{ 이름 }}?")
    assert (guessed.format, guessed.parts) == ("question_answer", {"answer": "답변"})
    assert set(guessed.unused) == ROW.keys() - {"이름", "답변"}
    system = first("{{ 이름 }}?", columns={"system": "col name"})
    assert [turn.content for turn in system.messages] == ["x", "루나?", "야옹."]


@pytest.mark.parametrize("spec", [{"format": "text"}, {"columns": {"answer": ""}}])
def test_the_whole_text_can_be_asked_for(spec: dict[str, Any]) -> None:
    meaning = read("{{ 이름 }}", **spec)
    assert (meaning.format, meaning.parts) == ("text", {})


@pytest.mark.parametrize("template", ["{{ 이름 }}: {{ 답변 }}", '{{ 이름 }}: {{ row["답변"] }}'])
def test_a_template_that_uses_the_answer_makes_the_whole_text(template: str) -> None:
    assert first(template).text == "루나: 야옹."


def test_a_column_whose_hangul_is_taken_apart_is_found() -> None:
    name = unicodedata.normalize("NFD", "이름")
    meaning = read("{{ 이름 }}", {name: "루나", "x": "y"})
    assert meaning.examples(Record(FILE, 2, {name: "루나"}))[0].text == "루나"
    assert meaning.unused == ("x",)


def test_a_meaning_with_a_template_can_be_pickled() -> None:
    meaning = read("{{ 이름 }}?")
    assert pickle.loads(pickle.dumps(meaning)).examples(Record(FILE, 2, ROW))


def test_a_column_that_a_later_row_lacks_is_empty() -> None:
    meaning = read("{{ age }} {{ 이름 }}", format="text")
    assert meaning.examples(Record(FILE, 9, {"이름": "루나"}))[0].text == "루나"


def test_rows_that_fail_are_skipped() -> None:
    meaning = read("{{ 10 / age }}", {"age": 2, "b": "c"}, {"age": 0, "b": "c"})
    assert meaning.examples(Record(FILE, 2, {"age": 2}))[0].text == "5.0"
    for row in ({"age": 0}, {"age": "x"}, {}):
        with pytest.raises(UnusableRowError, match="template_error"):
            meaning.examples(Record(FILE, 3, row))
    with pytest.raises(UnusableRowError, match="empty_text"):
        read("{{ none }}", format="text").examples(Record(FILE, 3, ROW))
    with pytest.raises(UnusableRowError, match="no_question"):
        read("{{ none }}").examples(Record(FILE, 3, ROW))


def test_a_template_that_fails_on_every_row_is_refused() -> None:
    with pytest.raises(DatasetError) as caught:
        read("{{ name }}", {"height": 1}, {"height": 2, "width": 3})
    assert caught.value.key == "data.template_fails"
    for language in ("en", "ko"):
        sentence = caught.value.say(language)
        assert all(word in sentence for word in (FILE, "'name' is undefined", "height, width"))
        assert "2" in sentence


@pytest.mark.parametrize(
    ("template", "key", "line"),
    [
        ("{{ a", "data.template_syntax", 1),
        ("a\n\n{% if %}", "data.template_syntax", 3),
        ("a\n{{ x | nosuch }}", "data.template_syntax", 2),
        ("{% for a in b %}", "data.template_syntax", 1),
        ("{{ " + "(" * 5000, "data.template_syntax", 1),
        ("{{ " + "-" * 9000 + "1 }}", "data.template_syntax", 1),
        ("{% if 1 %}" * 500 + "{% endif %}" * 500, "data.template_syntax", 1),
        ("{% for x in y %}" * 30 + "{% endfor %}" * 30, "data.template_syntax", 1),
        ("\n{% macro f() %}{% endmacro %}", "data.template_forbidden", 2),
        ("{% include 'x' %}", "data.template_forbidden", 1),
        ("{% extends 'x' %}", "data.template_forbidden", 1),
        ("{% import 'x' as y %}", "data.template_forbidden", 1),
        ("{% set x %}a{% endset %}", "data.template_forbidden", 1),
        ("{{ 2 ** 99999999 }}", "data.template_forbidden", 1),
        ("{{ [row, row] }}", "data.template_forbidden", 1),
        ("{% for x in y recursive %}{% endfor %}", "data.template_forbidden", 1),
    ],
)
def test_a_broken_template_is_refused_with_its_line(template: str, key: str, line: int) -> None:
    with pytest.raises(DatasetError) as caught:
        read(template)
    assert (caught.value.key, caught.value.values["line"]) == (key, line)
    assert str(line) in caught.value.say("ko")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ row.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(row) }}",
        "{{ 'x'.encode() }}",
        "{{ range(10001) | list }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{{ 이름 * 999 }}{% endfor %}",
        "{{ 'a' * 999999999 }}",
        "{{ 999999999 * 'a' }}",
        "{{ [1] * 999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a' | center(999999999) }}",
        "{{ ('a' * 9999) | replace('a', 'b' * 99999) }}",
        "{{ range(9999) | join('a' * 99999) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 3 | round(-999999999) }}{{ missing }}",
        "{% set a = 'aa' %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
        "{% set a = 'aa' %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
        "{% set a = 'aa' %}" + "{% set a = a | replace('a', 'aa') %}" * 60 + "{{ a }}",
        "{% set a = 99 %}" + "{% set a = a * a %}" * 60 + "{{ a }}",
        "{% set a = [1] %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
        "{{ row[' spent'].cost.real }}",
    ],
)
def test_what_would_harm_fails_soon(template: str) -> None:
    start = time.process_time()
    with pytest.raises(DatasetError) as caught:
        read(template)
    assert caught.value.key in {"data.template_fails", "data.template_syntax"}
    assert time.process_time() - start < 5


def test_a_greedy_template_is_not_tried_on_every_row() -> None:
    start = time.process_time()
    with pytest.raises(DatasetError, match="too much"):
        read("{% set a = [1] %}" + "{% set a = a + a %}" * 60 + "{{ a }}", *([ROW] * 200))
    assert time.process_time() - start < 10


def test_a_template_of_a_book_s_length_is_refused() -> None:
    with pytest.raises(DatasetError, match="20000"):
        read("x" * 20_001)


def test_documents_are_not_touched() -> None:
    record = Record("a.txt", 1, "A document.")
    spec = DataSpec(template="{{ x }}", columns={"text": "x"})
    assert understand("a.txt", [record], spec).examples(record)[0].text == "A document."
