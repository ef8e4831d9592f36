from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest

from lora_studio.data.splitting import blocks, cut, hold_out, sections, share, split_tail


def held_out(documents: list[str], *, fraction: float, seed: int) -> set[int]:
    flags = hold_out(documents, fraction=fraction, seed=seed)
    return {at for at, flag in enumerate(flags) if flag}


def test_the_same_seed_holds_out_the_same_rows() -> None:
    documents = [str(at) for at in range(200)]
    first = held_out(documents, fraction=0.05, seed=1)
    assert first == held_out(documents, fraction=0.05, seed=1)
    assert first != held_out(documents, fraction=0.05, seed=2)
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
    held = held_out(documents, fraction=0.1, seed=3)
    names = {documents[at] for at in held}
    assert len(names) == 4
    assert held == {at for at, name in enumerate(documents) if name in names}


def test_many_answers_to_one_question_are_held_out_row_by_row() -> None:
    assert len(held_out(["haiku"] * 100, fraction=0.05, seed=0)) == 5


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


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["a", "b", "\n", "#", " c", "\n\n", "d", "e", "f", "g"], 3),
        (["가", "나", "\n\n", " ##", " 다", "\n\n", "라", "마", "바", "사"], 3),
        (["a", "b", "\n\n", "c", "#", "d", "e", "f", "g", "h"], 3),
    ],
)
def test_a_cut_falls_before_a_heading_first_of_all(words: list[str], at: int) -> None:
    assert cut(range(len(words)), room=6, piece=lambda at: words[at])[1][0] == at


def test_pieces_overlap_and_every_token_is_in_one() -> None:
    rng = random.Random(1)
    for _ in range(500):
        words = rng.choices(["a", " b", ".", "\n", "\n\n", " ", "#", "씨"], k=rng.randint(1, 300))
        room = rng.randint(1, 60)
        overlap = rng.randint(0, room)
        spans = cut(
            range(len(words)), room=room, piece=lambda at, words=words: words[at], overlap=overlap
        )
        assert {at for start, end in spans for at in range(start, end)} == {*range(len(words))}
        assert all(0 < end - start <= room for start, end in spans)
        used = min(overlap, (room - 1) // 2)
        for (_, end), (start, next_end) in pairwise(spans):
            assert used // 2 <= end - start <= used
            assert next_end - end >= min(room // 4, 1)
        assert len(spans) <= max(4 * len(words) // room, 1) + 1


def test_an_overlap_begins_at_the_best_place_near() -> None:
    text = "First one. Second one here.\n\nThird one is the last. Fourth. " * 6
    pieces = re.findall(r"\s*\w+|[.]|\n+", text)
    spans = cut(range(len(pieces)), room=20, piece=lambda at: pieces[at], overlap=8)
    assert len(spans) > 4
    for (_, end), (start, _) in pairwise(spans):
        assert start < end
        assert pieces[start - 1] == "." or pieces[start].startswith("\n") or "\n" in pieces[start]


def test_a_document_is_split_at_its_marker_and_loses_it() -> None:
    text = "one\n\n===\ntwo\n  === \r\n\n===\n  three\n==== not\n==="
    assert sections(text, "===") == ["one", "two", "  three\n==== not"]
    assert sections(text, " === ") == sections(text, "===")
    assert sections(text, "") == [text]
    assert sections("없어요", "---") == ["없어요"]
    assert sections("---\n---", "---") == []
    assert sections("첫째 장\n### 끝 ###\n둘째 장", "### 끝 ###") == ["첫째 장", "둘째 장"]


def test_blocks_joined_are_the_text() -> None:
    rng = random.Random(2)
    for _ in range(200):
        text = "".join(
            rng.choices(["word", " ", "\n", "\n\n", "가나", "🍋"], k=rng.randint(0, 300))
        )
        limit = rng.randint(1, 80)
        found = list(blocks(text, limit))
        assert "".join(found) == text
        assert all(len(block) <= limit for block in found)
        assert all(found) or not text


def test_blocks_end_after_paragraphs_then_lines_then_words() -> None:
    assert list(blocks("ab\n\ncd\n\nef gh\nij", 10)) == ["ab\n\ncd\n\n", "ef gh\nij"]
    assert list(blocks("abcd\nef gh ij", 8)) == ["abcd\n", "ef gh ij"]
    assert list(blocks("abcdef gh ij", 8)) == ["abcdef ", "gh ij"]
    assert list(blocks("a" * 20, 8)) == ["a" * 8, "a" * 8, "a" * 4]
