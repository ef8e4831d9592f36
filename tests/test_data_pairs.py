from __future__ import annotations

import time
import unicodedata

import pytest

from lora_studio.data.examples import Record
from lora_studio.data.formats import understand
from lora_studio.data.pairs import Pair, find, looks_like
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

ENGLISH = [("How do I return it?", "Send it back."), ("When?", "On Monday."), ("Why?", "Because.")]
KOREAN = [("배송은 얼마나 걸리나요?", "이틀이요."), ("환불은요?", "돼요."), ("왜요?", "그냥요.")]


def written(pairs: list[tuple[str, str]], question: str, answer: str, between: str = "\n") -> str:
    """Write pairs with the given marks; {n} counts them."""
    return "\n\n".join(
        question.format(n=at, q=asked) + between + answer.format(n=at, a=said)
        for at, (asked, said) in enumerate(pairs, start=1)
    )


@pytest.mark.parametrize("pairs", [ENGLISH, KOREAN], ids=["en", "ko"])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Q: {q}", "A: {a}"),
        ("q: {q}", "a: {a}"),
        ("Q. {q}", "A. {a}"),
        ("Q{n}. {q}", "A{n}. {a}"),
        ("Q{n}) {q}", "A{n}) {a}"),
        ("Q{n}: {q}", "A: {a}"),
        ("Q {n}: {q}", "A {n}: {a}"),
        ("{n}. Q: {q}", "   A: {a}"),
        ("- Q: {q}", "- A: {a}"),
        ("> Q: {q}", "> A: {a}"),
        ("Question: {q}", "Answer: {a}"),
        ("QUESTION {n}: {q}", "ANSWER {n}: {a}"),
        ("Question {n}\n{q}", "Answer {n}\n{a}"),
        ("**Q:** {q}", "**A:** {a}"),
        ("**Q**: {q}", "**A**: {a}"),
        ("**Q{n}.** {q}", "**A{n}.** {a}"),
        ("**Q: {q}**", "A: {a}"),
        ("**Q{n}. {q}**", "{a}"),
        ("**Question:** {q}", "**Answer:** {a}"),
        ("### Q: {q}", "A: {a}"),
        ("### Q{n}. {q}", "{a}"),
        ("### Question {n}\n\n{q}", "### Answer\n\n{a}"),
        ("Q：{q}", "A：{a}"),
        ("질문: {q}", "답변: {a}"),
        ("질문 {n}. {q}", "답변 {n}. {a}"),
        ("질문{n}) {q}", "답{n}) {a}"),
        ("[질문] {q}", "[답변] {a}"),
        ("【질문】 {q}", "【답변】 {a}"),
        ("**질문:** {q}", "**답변:** {a}"),
        ("**질문** {n}: {q}", "**답변**: {a}"),
        ("## 질문 {n}\n{q}", "## 답변\n{a}"),
        ("문: {q}", "답: {a}"),
        ("문 {n}. {q}", "답. {a}"),
        ("문) {q}", "답) {a}"),
        ("문제 {n}: {q}", "정답: {a}"),
        ("## {q}", "{a}"),
        ("## {q} ##", "{a}"),
        ("## {n}. {q}", "{a}"),
        ("## {n}.{n} {q}", "{a}"),
        ("## ({n}) {q}", "{a}"),
        ("### **{q}** {{#anchor-{n}}}", "{a}"),
        ("**{q}**", "{a}"),
        ("**{n}. {q}**", "{a}"),
        ("{n}. **{q}**", "{a}"),
        ("{n}. {q}", "   {a}"),
        ("{q}\n---", "{a}"),
    ],
)
def test_marked_and_asking_lines_are_pairs(
    pairs: list[tuple[str, str]], question: str, answer: str
) -> None:
    for between in ("\n", "\n\n"):
        text = "# FAQ\n\n" + written(pairs, question, answer, between)
        for form in (text, text.replace("\n", "\r\n")):
            assert [(pair.question, pair.answer.strip()) for pair in find(form)] == pairs
            assert looks_like(form)


def test_questions_and_answers_may_share_a_line() -> None:
    assert find("질문: 뭐 해요? 답변: 놀아요.\n질문: 왜요? 답변: 심심해서요.") == [
        Pair("뭐 해요?", "놀아요.", 1),
        Pair("왜요?", "심심해서요.", 2),
    ]
    assert find("Q: Why? A: So.")[0] == Pair("Why?", "So.", 1)


ANSWER = """First paragraph.

- one
- two

   1. deep

```
Q: not a question
# not a heading
```

Last: A: paragraph."""


@pytest.mark.parametrize("form", ["Q: {q}\nA: {a}", "## {q}\n\n{a}", "**{q}?**\n{a}"])
def test_an_answer_keeps_its_paragraphs_lists_and_code(form: str) -> None:
    text = "\n\n".join(form.format(q=f"Number {at}?", a=ANSWER) for at in range(3))
    assert [pair.answer for pair in find(text)] == [ANSWER] * 3


def test_a_question_may_have_several_lines() -> None:
    text = "Q: Given\n\n- a\n- b\n\nwhich one?\nA: b\n\n질문:\n어느 것?\n답변:\n나."
    assert find(text) == [
        Pair("Given\n\n- a\n- b\n\nwhich one?", "b", 1),
        Pair("어느 것?", "나.", 9),
    ]


def test_choices_are_part_of_the_question() -> None:
    text = "Q1. Capital of Korea?\nA. Busan\nB. Seoul\nAnswer: B\n\nQ2. Why?\nA. So."
    assert find(text) == [
        Pair("Capital of Korea?\nA. Busan\nB. Seoul", "B", 1),
        Pair("Why?", "So.", 6),
    ]


def test_headings_and_rules_after_an_answer_do_not_belong_to_it() -> None:
    text = "Q: a?\nA: b\n\n---\n\n## Shipping\n\nQ: c?\nA: d\n\n***\n"
    assert find(text) == [Pair("a?", "b", 1), Pair("c?", "d", 8)]
    text = "## a?\nb\n\n### More\n\nx\n\n# Contact\n\nWrite us.\n\n## c?\nd"
    assert find(text) == [Pair("a?", "b\n\n### More\n\nx", 1), Pair("c?", "d", 12)]


def test_a_question_without_an_answer_is_left_out() -> None:
    assert find("Q: a?\nQ: b?\nA: c\nQ: d?\n") == [Pair("b?", "c", 2)]


@pytest.mark.parametrize(
    "question",
    [
        "3D printing?",
        "1984. What is it about?",
        "1.5 litres is how much?",
        "2024년에는 어떻게 되나요?",
        "10 ways to do it?",
    ],
)
def test_a_number_that_does_not_count_stays(question: str) -> None:
    assert find(f"## {question}\n\nSo.")[0].question == question
    text = f"## What?\n\nx\n\n## {question}\n\nSo.\n\n## Why?\n\ny"
    assert find(text)[1].question == question


def test_headings_with_text_are_pairs_only_where_every_one_has_text() -> None:
    text = "# 안내\n\n## 설치\n\n실행해요.\n\n- 하나\n\n## Use\n\nUse it.\n"
    assert find(text) == [Pair("설치", "실행해요.\n\n- 하나", 3), Pair("Use", "Use it.", 9)]
    assert not looks_like(text * 3)
    assert find("# Guide\n\n## Install\n\n## Use\n\nUse it.\n") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Just prose. Is it? Yes.\n\nMore prose: A: and Q: inside.",
        "문의: 02-123-4567\n답을 기다려요.",
        "A: an answer\nA: another",
        "그래서 어떻게 하나요?\n모르겠어요.",
    ],
)
def test_prose_has_no_pairs(text: str) -> None:
    assert find(text) == []
    assert not looks_like(text)


def test_a_few_pairs_in_a_long_text_do_not_look_like_pairs() -> None:
    prose = "A paragraph of prose that goes on for a while. " * 20
    assert not looks_like(f"{prose}\n\n{written(ENGLISH, 'Q: {q}', 'A: {a}')}")
    assert not looks_like(written(ENGLISH[:2], "Q: {q}", "A: {a}"))


@pytest.mark.parametrize(
    "text",
    [
        "Q" + " " * 200_000 + "x",
        "# " + " #" * 100_000 + "x",
        "**" * 100_000,
        "- " * 100_000 + "x",
        "질문 " * 100_000,
        "Q: " + " ** " * 50_000 + "\nA: b",
        "Q: a\n" * 50_000,
        "# a\n" * 50_000,
        "## a?\nb\n" * 30_000,
        "(" * 100_000,
        "1." * 100_000 + "?",
        "# " + '?"' * 400 + "x",
    ],
)
def test_hostile_text_takes_little_time(text: str) -> None:
    start = time.process_time()
    find(text)
    looks_like(text)
    assert time.process_time() - start < 10


def test_a_document_learned_as_pairs_gives_them_by_line() -> None:
    spec = DataSpec(text_as="pairs")
    record = Record("faq.md", 1, "# FAQ\n\n" + written(KOREAN, "Q: {q}", "A: {a}"))
    meaning = understand("faq.md", [record], spec)
    assert meaning.format == "question_answer"
    examples = meaning.examples(record)
    assert [example.number for example in examples] == [3, 6, 9]
    assert [tuple(turn.content for turn in example.messages) for example in examples] == KOREAN
    with pytest.raises(DatasetError) as caught:
        meaning.examples(Record("a.txt", 1, "Just prose."))
    assert caught.value.key == "data.no_pairs"
    assert "a.txt" in caught.value.say("ko")


def test_a_long_document_is_judged_by_its_beginning() -> None:
    text = written(ENGLISH * 3000, "Q: {q}", "A: {a}")
    assert len(text) > 200_000
    start = time.process_time()
    assert looks_like(text * 40)
    assert time.process_time() - start < 3
    assert not looks_like("Prose. " * 40_000 + text)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("질문: {q}", "답변: {a}"),
        ("문 {n}. {q}", "답. {a}"),
        ("[질문] {q}", "[정답] {a}"),
        ("## 질문 {n}\n{q}", "## 답변\n{a}"),
        ("질문: {q}", "   회신: {a}"),
        ("**{q}**", "{a}"),
    ],
)
def test_hangul_taken_apart_is_recognised_and_stays_as_it_is(question: str, answer: str) -> None:
    pairs = [("어떻게 하나요", "이렇게요."), ("언제 오나요", "내일요."), ("왜 그런가요", "그냥요.")]
    apart = [tuple(unicodedata.normalize("NFD", part) for part in pair) for pair in pairs]
    text = unicodedata.normalize("NFD", written(pairs, question, answer))
    assert looks_like(text)
    assert [(pair.question, pair.answer) for pair in find(text)] == apart


def test_an_answer_taken_apart_is_found_in_the_line_of_its_question() -> None:
    text = unicodedata.normalize("NFD", "질문: 언제 오나요? 답변: 내일요.")
    (pair,) = find(text)
    assert unicodedata.normalize("NFC", pair.answer) == "내일요."
