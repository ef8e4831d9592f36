from __future__ import annotations

import gc
import json
import random
import sys
import time
import tracemalloc
from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_studio.data.checking import characters, confidential, languages, mojibake
from lora_studio.data.checking import repeats as repeats_module
from lora_studio.data.checking.findings import (
    EXAMPLE_LENGTH,
    LISTED_ROWS,
    Finding,
    Findings,
    stop_at,
)
from lora_studio.data.checking.inspector import Inspector
from lora_studio.data.checking.repeats import NearRepeats, Seen, identity, shingles
from lora_studio.data.examples import Example, Message, Record, Skipped
from lora_studio.errors import DatasetError, from_dict
from lora_studio.recipe import ChecksSpec
from lora_studio.wording import LANGUAGES, say

# Put together here, so that no scanner takes this file for a leak.
GITHUB = "ghp_" + "a1B2" * 9
OPENAI = "sk-proj-" + "Ab3_" * 10
PRIVATE = (
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE" + "abcd" * 16 + "\n-----END RSA PRIVATE KEY-----"
)
ENGLISH = (
    "You can return the blue jacket within thirty days of purchase if it has not been worn and "
    "the label is still on it; the money is paid back to the card that was used for the order."
)
KOREAN = (
    "파란색 재킷은 구매한 날부터 삼십 일 안에 입지 않고 상표를 떼지 않은 상태라면 반품할 수 있고, "
    "결제에 사용한 카드로 금액을 돌려받으실 수 있어요."
)
LONG = " ".join(f"word{i}" for i in range(200))
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine that stands still for seconds says nothing about an example."""


def pair(number: int, question: str, answer: str, system: str = "") -> Example:
    turns = (Message("user", question), Message("assistant", answer))
    if system:
        turns = (Message("system", system), *turns)
    return Example.of_messages(Record("a.csv", number, {}), turns)


def prose(number: int, text: str) -> Example:
    return Example.of_text(Record("a.txt", number, text), text)


def inspect(
    examples: list[Example], *, expect: int = 0, **choices: str
) -> tuple[list[Example | Skipped], dict[str, Finding], Inspector]:
    checks = ChecksSpec(**choices)  # type: ignore[arg-type]
    findings = Findings(checks)
    inspector = Inspector(checks, findings)
    if expect:
        inspector.expect(examples[:expect])
    looked = [inspector.look(example) for example in examples]
    inspector.finish()
    return looked, {finding.check: finding for finding in findings.listed()}, inspector


def said(example: Example | Skipped) -> str:
    assert isinstance(example, Example)
    return example.text or "\n".join(message.content for message in example.messages)


# Findings


def test_every_check_and_choice_has_its_words() -> None:
    for entry in fields(ChecksSpec):
        for language in LANGUAGES:
            assert say(f"data.check_{entry.name}", language)
            assert say(f"data.check_stops_{entry.name}", language, count=3, rows="a.csv:1")


def test_findings_come_in_the_order_of_the_recipe_with_their_first_rows() -> None:
    findings = Findings(ChecksSpec())
    for number in range(50):
        assert findings.add("secrets", "a.csv", number, "x " * 900) == "keep"
    assert findings.add("odd_values", "b.csv", 7, "NaN \ud800\nhere") == "fix"
    odd, secrets = findings.listed()
    assert (odd.check, odd.count, odd.rows, odd.looked_at) == (
        "odd_values",
        1,
        (("b.csv", 7),),
        None,
    )
    assert odd.example == "NaN ? here"
    assert (secrets.count, len(secrets.rows)) == (50, LISTED_ROWS)
    assert len(secrets.example) == EXAMPLE_LENGTH
    assert secrets.say("ko") == "비밀 키와 개인정보"
    assert json.loads(json.dumps(odd.to_dict()))["rows"] == [["b.csv", 7]]


def test_only_the_choice_to_stop_stops_and_the_error_survives_a_pipe() -> None:
    findings = Findings(ChecksSpec(secrets="stop"))
    findings.add("mojibake", "a.csv", 1, "")
    stop_at(findings.listed())
    for number in range(7):
        findings.add("secrets", "a.csv", number, "")
    with pytest.raises(DatasetError) as caught:
        stop_at(findings.listed())
    error = caught.value
    assert error.key == "data.check_stops_secrets"
    assert "personal data: 7 (a.csv:0, " in error.say("en")
    assert "a.csv:4, …" in error.say("ko")
    assert from_dict(json.loads(json.dumps(error.to_dict()))).say("ko") == error.say("ko")


# Exact duplicates


@pytest.mark.parametrize(("question", "answer"), [("Hello?", "Hi."), ("안녕?", "안녕하세요.")])
def test_a_repeated_row_is_reported_skipped_or_stopped_at(question: str, answer: str) -> None:
    rows = [pair(1, question, answer), pair(2, question, "No."), pair(3, f"{question} ", answer)]
    kept, found, _ = inspect(rows)
    assert kept == rows
    assert (found["duplicates"].count, found["duplicates"].rows) == (1, (("a.csv", 3),))
    looked, found, _ = inspect(rows, duplicates="skip")
    assert looked == [*rows[:2], Skipped("a.csv", 3, "data.skip_duplicates")]
    looked, found, _ = inspect(rows, duplicates="stop")
    assert looked == rows
    assert found["duplicates"].choice == "stop"


def test_white_space_and_the_way_accents_are_stored_make_no_difference() -> None:
    decomposed = "\u1112\u1161\u11ab\u1100\u116e\u11a8"
    assert identity("한국  어\n말", ("user",)) == identity(f"{decomposed} 어 말 ", ("user",))
    assert identity("a\tb", ()) == identity("a b", ()) != identity("a c", ())
    assert identity("a b", ("user",)) != identity("a b", ("system",))


def test_who_said_it_makes_a_difference() -> None:
    swapped = Example("a", 2, "d", (Message("user", "b"), Message("assistant", "a")))
    rows = [Example("a", 1, "d", (Message("user", "a"), Message("assistant", "b"))), swapped]
    assert inspect(rows)[1] == {}


def test_rows_are_remembered_in_less_than_sixty_bytes_each() -> None:
    tracemalloc.start()
    try:
        seen = Seen()
        rows = 140_000
        start = tracemalloc.get_traced_memory()[0]
        assert all(seen.add(hash((number,))) for number in range(rows))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(seen) == rows
    assert held - start <= 32 * rows + 10_000
    assert peak - start <= 60 * rows
    assert seen.size_bytes <= 32 * rows
    assert not any(seen.add(hash((number,))) for number in range(rows))


@PATIENT
@given(st.lists(st.integers(-(2**70), 2**70)))
def test_the_structure_answers_as_a_set_does(numbers: list[int]) -> None:
    seen, known = Seen(), set()
    for number in numbers:
        low = number % 2**64 or 1
        assert seen.add(number) == (low not in known)
        known.add(low)


# Near duplicates


@pytest.mark.parametrize(
    ("text", "old", "new"), [(ENGLISH, "blue", "green"), (KOREAN, "파란색", "초록색")]
)
def test_a_row_that_nearly_repeats_another_is_held_out_with_it(
    text: str, old: str, new: str
) -> None:
    rows = [pair(1, "환불?", text * 3), pair(2, "환불?!", (text * 3).replace(old, new, 1))]
    rows.append(pair(3, "What else?", "Nothing that anybody has ever said or will say again here."))
    looked, found, inspector = inspect(rows)
    assert [row.document for row in looked if isinstance(row, Example)] == [
        rows[0].document,
        rows[0].document,
        rows[2].document,
    ]
    assert found["near_duplicates"].rows == (("a.csv", 2),)
    assert "duplicates" not in found
    assert inspector.documents == {rows[1].document: rows[0].document}
    looked, _, inspector = inspect(rows, near_duplicates="skip")
    assert looked == [rows[0], Skipped("a.csv", 2, "data.skip_near_duplicates"), rows[2]]
    assert inspector.documents == {}
    assert inspect(rows, near_duplicates="stop")[1]["near_duplicates"].choice == "stop"


def test_questions_that_were_returned_before_are_still_told_to_have_joined() -> None:
    first, second = pair(1, "Return?", LONG), pair(2, "Give back?", "No idea.")
    third, fourth = pair(3, "Give back?", LONG), pair(4, "Give back?", "Yes.")
    looked, _, inspector = inspect([first, second, third, fourth])
    documents = [inspector.documents.get(row.document, row.document) for row in looked]  # type: ignore[union-attr]
    assert documents == [first.document] * 4


def test_a_long_system_prompt_does_not_make_rows_alike() -> None:
    rows = [
        pair(1, "What is the capital of France, and how many live there?", "Paris.", ENGLISH * 5),
        pair(
            2, "Why do cats purr while they sleep on a warm sofa?", "They are happy.", ENGLISH * 5
        ),
    ]
    assert "near_duplicates" not in inspect(rows)[1]


def test_many_questions_on_one_long_text_are_no_repeats() -> None:
    rows = [pair(i, f"{ENGLISH * 5}\nWhat is number {i}?", f"It is {i}.") for i in range(300)]
    assert "near_duplicates" not in inspect(rows)[1]


def test_short_rows_are_not_judged() -> None:
    assert shingles("one two three four five six seven") == []
    assert shingles("환불은 어떻게 하나요?") == []
    assert shingles("") == []
    assert len(shingles(KOREAN)) > 50
    assert shingles(" ".join("abcdefgh" * 5))[0] == "a b c"


def test_near_duplicates_are_looked_for_in_the_first_rows_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repeats_module, "MOST_ROWS", 3)
    rows = [pair(i, f"Return {i}?", f"{LONG} {i}") for i in range(6)]
    found = inspect(rows)[1]["near_duplicates"]
    assert (found.count, found.looked_at) == (2, 3)
    exactly = inspect(rows[:3])[1]["near_duplicates"]
    assert (exactly.count, exactly.looked_at) == (2, None)


def test_alike_means_an_estimated_similarity_of_085() -> None:
    near = NearRepeats(seed=3)
    words = [f"word{i}" for i in range(400)]
    assert near.earlier(" ".join(words), "", "first") is None
    changed = list(words)
    for at in range(5, 400, 80):
        changed[at] = "other"
    assert near.earlier(" ".join(changed), "", "second") == "first"
    for at in range(5, 400, 20):
        changed[at] = "other"
    assert near.earlier(" ".join(changed), "", "third") is None


# Control characters


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a\x00b\x07c", "abc"),
        ("page\x0cpage\x1fend", "page\npage end"),
        ("\ufeff안녕\u200b하세요", "안녕하세요"),
        ("pass\u200cword and zero\u200dwidth", "password and zerowidth"),
        ("safe\u202etxt.exe\u202c", "safetxt.exe"),
        ("co\xadoperate", "cooperate"),
        ("smile \ud83d\ude00 half \ud83d", "smile 😀 half "),
        ("hidden\U000e0041\U000e0042", "hidden"),
    ],
)
def test_invisible_characters_are_removed(text: str, mended: str) -> None:
    assert characters.find(text) is not None
    assert characters.mend(text) == mended
    assert characters.find(mended) is None


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\r\nwith lines\u3000and\xa0spaces",
        "가족 👨‍👩‍👧 ❤️‍🔥 🏳️‍🌈",
        "می‌خواهم",
        "क्‍ष",
        "\u200fשלום (abc)\u200e",
        "ภาษา\u200bไทย",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ],
)
def test_what_a_script_needs_is_left_alone(text: str) -> None:
    assert characters.find(text) is None
    assert characters.mend(text) == text


def test_each_choice_on_control_characters() -> None:
    row = pair(1, "안녕\u200b?", "Hi\x07 there")
    looked, found, _ = inspect([row])
    assert said(looked[0]) == "안녕?\nHi there"
    assert found["control_characters"].example == "안녕\\u200b? Hi\\u0007 there"
    assert inspect([row], control_characters="keep")[0] == [row]
    assert inspect([row], control_characters="stop")[0] == [row]
    skipped = Skipped("a.csv", 1, "data.skip_control_characters")
    assert inspect([row], control_characters="skip")[0] == [skipped]


def test_a_mended_question_is_known_as_the_same_question() -> None:
    looked, found, _ = inspect([pair(1, "Why?", "So."), pair(2, "Wh\u200by?", "Because.")])
    assert looked[0].document == looked[1].document  # type: ignore[union-attr]
    looked, found, _ = inspect([pair(1, "Why?", "So."), pair(2, "Wh\u200by?", "So.")])
    assert found["duplicates"].count == 1
    special = replace(pair(3, "Wh\u200by?", "So."), document="chapter 1")
    assert inspect([special])[0][0].document == "chapter 1"  # type: ignore[union-attr]


def test_a_row_of_which_nothing_is_left_is_skipped() -> None:
    looked, found, _ = inspect([pair(1, "Why?", "\u200b"), prose(2, "\ufeff")])
    assert looked == [
        Skipped("a.csv", 1, "data.skip_no_answer"),
        Skipped("a.txt", 2, "data.skip_empty_text"),
    ]
    assert found["empty_answers"].count == 2


# Mojibake


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("cafÃ© dÃ©jÃ\xa0 vu", "café déjà vu"),
        ("donâ€™t", "don’t"),
        ("안녕하세요".encode().decode("latin-1"), "안녕하세요"),
        ('¾È³çÇÏ¼¼¿ä, "Hello"', '안녕하세요, "Hello"'),
        ("Привет всем".encode().decode("cp1251", "replace").replace("\ufffd", ""), None),
        ("It\x92s", "It’s"),
        ("Ð¡Ð°Ð½ÐºÑ‚", "Санкт"),
        ("Ã©Ã¨Ã©Ã", None),
        ("éèé".encode().decode("latin-1"), "éèé"),
        ("이것은 좋은 책이에요.".encode("cp949").decode("latin-1"), "이것은 좋은 책이에요."),
    ],
)
def test_garbled_text_is_found_and_repaired(text: str, mended: str | None) -> None:
    assert mojibake.find(text) is not None
    if mended is not None:
        assert mojibake.mend(f"first “line”…\n{text}\nＷide") == f"first “line”…\n{mended}\nＷide"


@pytest.mark.parametrize("text", ["한글이 � 깨졌어요", "占쏙옙占쏙옙"])
def test_what_is_lost_for_good_is_found_and_left(text: str) -> None:
    assert mojibake.find(text) is not None
    assert mojibake.mend(text) == text


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        KOREAN,
        "“따옴표”와 말줄임…, 가운뎃점·, 화살표→, ℃, ½, ※ 참고",
        "Où est l’été ? Ça coûte 5 €, naïve façade, «oui» à Âge",
        "Größe, Übung, Straße, Ärger, ÄÖÜ äöüß",
        "Ещё раз: №5 — «Москва», 10 °C… Україна її ґанок",
        "東京は「日本」の首都です。北京是中国的首都。",
        "∑ x² ≥ 0 → √2 ≈ 1.41 ± 0.01, α β γ Δ",
        "┌──┐\n│ab│\n└──┘",
    ],
)
def test_ordinary_text_of_many_languages_is_not_garbled(text: str) -> None:
    assert mojibake.find(text) is None
    assert mojibake.mend(text) == text


def test_each_choice_on_mojibake() -> None:
    row = pair(1, "Wo?", "Im cafÃ© “Süd”")
    looked, found, _ = inspect([row])
    assert looked == [row]
    assert "cafÃ©" in found["mojibake"].example
    assert said(inspect([row], mojibake="fix")[0][0]) == "Wo?\nIm café “Süd”"
    assert inspect([row], mojibake="stop")[0] == [row]
    assert inspect([row], mojibake="skip")[0] == [Skipped("a.csv", 1, "data.skip_mojibake")]


# Secrets


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("메일은 kim.minsu@korea.ac.kr으로", "메일은 [email]으로"),
        (f"token {GITHUB}.", "token [key]."),
        (f"OPENAI_API_KEY={OPENAI}", "OPENAI_API_KEY=[key]"),
        ("sk-ant-" + "api03-" + "x9" * 45, "[key]"),
        ("키: hf_" + "aB" * 17 + "예요", "키: [key]예요"),
        ("AKIA" + "IOSFODNN7EXAMPLE"[:16], "[key]"),
        ('aws_secret_access_key = "' + "wJalrXUt" * 5 + '"', 'aws_secret_access_key = "[key]"'),
        (f"before\n{PRIVATE}\nafter", "before\n[key]\nafter"),
        (
            "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "dozjgNryP4J3jVmNHl0w5N",
            "[key]",
        ),
        ("postgres://admin:hunter2@db.internal/x", "postgres://[password]@db.internal/x"),
        ("주민번호 900101-" + "1234567입니다", "주민번호 [ID number]입니다"),
        ("card 4242 4242 " + "4242 4242.", "card [card number]."),
        ("전화 010-1234-" + "5678로", "전화 [phone number]로"),
        ("+82 10-1234-" + "5678", "[phone number]"),
    ],
)
def test_secrets_are_replaced(text: str, mended: str) -> None:
    excerpt = confidential.find(text)
    assert excerpt is not None
    assert "[" in excerpt
    assert confidential.mend(text) == mended
    assert confidential.find(mended) is None


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        KOREAN,
        "git clone git@github.com:owner/repo.git and pip install scikit-learn",
        "icon@2x.png, @decorator, a @ b, foo@bar, sk-learn-is-not-a-key, hf_hub_download",
        "4242 4242 4242 4241 and 1700000000000 and 1234567890123456",
        "2024-01-15 12:30:45, 3.14159265358979323846, 192.168.100.200, 900101-9234567",
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "https://example.org/a:b/c and http://localhost:8080/path",
    ],
)
def test_what_only_looks_a_little_like_a_secret_is_left(text: str) -> None:
    assert confidential.find(text) is None
    assert confidential.mend(text) == text


def test_each_choice_on_secrets_and_the_report_does_not_tell_them() -> None:
    row = pair(1, "Contact?", f"Write to jane@shop.io with {GITHUB}")
    looked, found, _ = inspect([row])
    assert looked == [row]
    assert found["secrets"].example == "Contact? Write to [email] with [key]"
    assert said(inspect([row], secrets="fix")[0][0]) == "Contact?\nWrite to [email] with [key]"
    assert inspect([row], secrets="stop")[0] == [row]
    assert inspect([row], secrets="skip")[0] == [Skipped("a.csv", 1, "data.skip_secrets")]


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000 + "@",
        "a." * 100_000 + "@" + "b-" * 100_000,
        "@a." * 60_000,
        "eyJ" + "a" * 200_000,
        ("-----BEGIN PRIVATE KEY-----" + "-" * 50) * 3000,
        "1234-" * 50_000,
        "://a:" * 40_000 + "@",
        "\u200d" * 200_000,
        "Ã©" * 100_000,
        "\xb0\xa1" * 100_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()
    for find, mend in ((confidential.find, confidential.mend), (characters.find, characters.mend)):
        find(text)
        mend(text)
    mojibake.find(text)
    assert time.process_time() - started < 5


# Languages


SENTENCES = {
    "en": "You can ask for your money back within seven days of the purchase.",
    "ko": "구매한 날부터 칠 일 안에 환불을 신청하실 수 있습니다.",
    "ja": "返品は購入日から七日以内にお申し込みください。よろしくお願いします。",
    "zh": "您可以在购买后的七天内申请退款，请联系我们的客服人员处理。",
    "ru": "Вы можете вернуть товар в течение семи дней после покупки.",
    "de": "Die Rückgabe ist innerhalb von sieben Tagen möglich, wenn die Ware unbenutzt ist.",
}


@pytest.mark.parametrize(("language", "sentence"), SENTENCES.items())
def test_languages_are_told_apart(language: str, sentence: str) -> None:
    assert languages.recognise(sentence) == language


@pytest.mark.parametrize(
    "text", ["", "네.", "Yes, of course.", "12345 67890 12345 67890", "\ud800" * 99]
)
def test_short_answers_have_no_language(text: str) -> None:
    assert languages.recognise(text) is None


def mixed(main: str, other: str, rows: int, every: int) -> list[Example]:
    return [
        pair(i, f"{i}?", f"{SENTENCES[other if i % every == 0 else main]} {i}") for i in range(rows)
    ]


@pytest.mark.parametrize(
    ("main", "other"), [("ko", "en"), ("en", "ko"), ("ja", "zh"), ("de", "ru")]
)
def test_rows_in_another_language_than_most_are_reported(main: str, other: str) -> None:
    rows = mixed(main, other, 30, 10)
    for choice in ("keep", "stop"):
        looked, found, _ = inspect(rows, languages=choice)
        assert [row.number for row in looked] == list(range(30))
        assert not any(isinstance(row, Skipped) for row in looked)
        assert found["languages"].rows == (("a.csv", 0), ("a.csv", 10), ("a.csv", 20))
        assert found["languages"].example.startswith(f"{other}: ")


def test_they_are_skipped_once_the_main_language_is_known() -> None:
    rows = mixed("ko", "en", 260, 50)
    looked, found, _ = inspect(rows, languages="skip")
    skipped = [row.number for row in looked if isinstance(row, Skipped)]
    assert skipped == [200, 250]
    assert found["languages"].count == 6
    looked, found, _ = inspect(rows[:60], expect=60, languages="skip")
    assert [row for row in looked if isinstance(row, Skipped)] == [
        Skipped("a.csv", 0, "data.skip_languages"),
        Skipped("a.csv", 50, "data.skip_languages"),
    ]


def test_two_languages_in_equal_parts_have_no_main_one() -> None:
    rows = mixed("ko", "en", 20, 2)
    looked, found, _ = inspect(rows, expect=20, languages="skip")
    assert "languages" not in found
    assert not any(isinstance(row, Skipped) for row in looked)


def test_languages_are_judged_on_the_first_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "MOST_ROWS", 15)
    found = inspect(mixed("ko", "en", 30, 10))[1]["languages"]
    assert (found.count, found.looked_at) == (2, 15)


# Same answers


def test_one_answer_in_most_rows_is_reported() -> None:
    rows = [pair(i, f"{i}?", "모르겠어요." if i < 7 else f"{i}.") for i in range(12)]
    for choice in ("keep", "stop"):
        looked, found, _ = inspect(rows, same_answers=choice)
        assert looked == rows
        assert (found["same_answers"].count, found["same_answers"].choice) == (7, choice)
        assert found["same_answers"].rows[0] == ("a.csv", 0)
        assert found["same_answers"].example == "모르겠어요."
    assert "same_answers" not in inspect(rows[2:])[1]
    assert "same_answers" not in inspect(rows[:9])[1]
    assert "same_answers" not in inspect([prose(i, "Same.") for i in range(20)])[1]


def test_an_answer_that_comes_late_is_found_among_many() -> None:
    rows = [pair(i, f"{i}?", f"{i}." if i < 4000 else "I do not know.") for i in range(10_000)]
    found = inspect(rows)[1]["same_answers"]
    assert 5950 <= found.count <= 6000


# Everything at once


ODD_TEXT = st.text(
    st.one_of(
        st.characters(),
        st.characters(categories=["Cs", "Cc", "Cf", "Co"]),
        st.sampled_from("@:/.-_ \n\tAÃÂâ€™¾È³ç占쏙옙�한국어ابп0123456789sk"),
    ),
    max_size=200,
)
ODD_EXAMPLE = st.builds(
    Example,
    file=ODD_TEXT,
    number=st.integers(0),
    document=st.sampled_from(["a", "b", "c"]),
    messages=st.lists(
        st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), ODD_TEXT),
        max_size=3,
    ).map(tuple),
    text=ODD_TEXT,
).map(lambda example: replace(example, text="") if example.messages else example)
"""A conversation or a text: none is both."""


@settings(PATIENT, max_examples=150)
@given(
    st.lists(ODD_EXAMPLE, max_size=6),
    st.sampled_from(["keep", "fix", "skip", "stop"]),
    st.sampled_from(["keep", "skip", "stop"]),
)
def test_no_example_is_too_odd_to_be_looked_at(
    examples: list[Example], text_choice: str, row_choice: str
) -> None:
    looked, found, inspector = inspect(
        examples,
        expect=2,
        **dict.fromkeys(("control_characters", "mojibake", "secrets"), text_choice),
        **dict.fromkeys(("duplicates", "near_duplicates", "languages"), row_choice),
    )
    for before, after in zip(examples, looked, strict=True):
        assert (before.file, before.number) == (after.file, after.number)
        if isinstance(after, Skipped):
            assert say(after.reason)
        else:
            assert [turn.role for turn in after.messages] == [turn.role for turn in before.messages]
            if text_choice == "fix":
                said(after).encode("utf-8")
    for finding in found.values():
        json.dumps(finding.to_dict(), ensure_ascii=False)
        assert len(finding.example) <= EXAMPLE_LENGTH
    assert set(inspector.documents) <= {"a", "b", "c"} | {row.document for row in examples}


@PATIENT
@given(ODD_TEXT)
def test_what_is_mended_needs_no_mending_again(text: str) -> None:
    once = characters.mend(text)
    assert characters.find(once) is None
    assert characters.mend(once) == once
    once = confidential.mend(text)
    assert confidential.mend(once) == once


@PATIENT
@given(ODD_TEXT)
def test_a_search_finds_what_a_repair_changes(text: str) -> None:
    if characters.find(text) is None:
        assert characters.mend(text) == text
    if confidential.find(text) is None:
        assert confidential.mend(text) == text
    if mojibake.find(text) is None:
        assert mojibake.mend(text) == text


def test_a_plain_row_costs_microseconds() -> None:
    rng = random.Random(0)
    words = ENGLISH.split() + KOREAN.split()
    rows = [pair(i, f"{i}?", " ".join(rng.choices(words, k=60))[:300]) for i in range(4000)]
    checks = ChecksSpec()
    inspector = Inspector(checks, Findings(checks))
    inspector._near._rows = inspector._languages._looked_at = sys.maxsize
    gc.collect()
    started = time.process_time()
    for row in rows:
        inspector.look(row)
    # A tenth of it where the machine is not busy.
    assert (time.process_time() - started) / len(rows) < 150e-6


def test_the_same_rows_give_the_same_findings() -> None:
    rows = [pair(i, f"{i}?", f"{LONG} {i}") for i in range(40)]
    first, second = inspect(rows), inspect(rows)
    assert first[:2] == second[:2]
