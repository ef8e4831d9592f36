from __future__ import annotations

import random

import pytest

from lora_studio.data.splitting import cut, hold_out, share, split_tail


def test_the_same_seed_holds_out_the_same_rows() -> None:
    documents = [str(at) for at in range(200)]
    first = hold_out(documents, fraction=0.05, seed=1)
    assert first == hold_out(documents, fraction=0.05, seed=1)
    assert first != hold_out(documents, fraction=0.05, seed=2)
    assert len(first) == 10


@pytest.mark.parametrize(
    ("total", "fraction", "expected"),
    [
        (10, 0.05, 1),
        (9, 0.05, 0),
        (100, 0.0, 0),
        (4, 0.5, 2),
        (1, 0.5, 0),
        (1, 1.0, 0),
        (0, 0.5, 0),
    ],
)
def test_the_share_held_out(total: int, fraction: float, expected: int) -> None:
    assert share(total, fraction) == expected


def test_rows_of_one_document_stay_together() -> None:
    documents = [str(at % 40) for at in range(400)]
    held = hold_out(documents, fraction=0.1, seed=3)
    names = {documents[at] for at in held}
    assert len(names) == 4
    assert held == {at for at, name in enumerate(documents) if name in names}


def test_many_answers_to_one_question_are_held_out_row_by_row() -> None:
    assert len(hold_out(["haiku"] * 100, fraction=0.05, seed=0)) == 5


@pytest.mark.parametrize("separator", ["\n\n", "\n \n\n", "\n"])
def test_the_tail_of_a_text_is_its_last_paragraphs(separator: str) -> None:
    paragraphs = [f"Paragraph {at}." for at in range(40)]
    start, tail = split_tail(separator.join(paragraphs), 0.05)
    assert start == separator.join(paragraphs[:38])
    assert tail == separator.join(paragraphs[38:])


def test_a_short_text_or_no_fraction_gives_no_tail() -> None:
    assert split_tail("a\n\nb\n\nc", 0.5) == ("a\n\nb\n\nc", "")
    assert split_tail("a\n\n" * 20 + "b", 0.0)[1] == ""


def test_cuts_cover_every_token_once_and_leave_no_crumb() -> None:
    rng = random.Random(0)
    for _ in range(300):
        words = rng.choices(["a", " b", ".", "\n", "\n\n", " ", "씨"], k=rng.randint(1, 200))
        room = rng.randint(2, 60)
        spans = cut(range(len(words)), room=room, piece=lambda at, words=words: words[at])
        assert [at for start, end in spans for at in range(start, end)] == [*range(len(words))]
        assert all(0 < end - start <= room for start, end in spans)
        assert len(spans) == 1 or spans[-1][1] - spans[-1][0] >= max(room // 4, 1)


@pytest.mark.parametrize(
    ("words", "ends_with"),
    [
        (["a", " b", "\n\n", "c", ".", " d", " e", " f", " g"], "\n\n"),
        (["a", "b", "c", "\n", "d", ".", " e", " f", "g", "h"], "\n"),
        (["a", "b", "c", "d", ".", " e", " f", "g", "h", "i"], "."),
        (["a", "b", "c", "d", " e", "f", "g", "h", "i", "j"], "d"),
    ],
)
def test_the_best_place_in_reach_is_cut(words: list[str], ends_with: str) -> None:
    start, end = cut(range(len(words)), room=6, piece=lambda at: words[at])[0]
    assert words[start:end][-1] == ends_with
