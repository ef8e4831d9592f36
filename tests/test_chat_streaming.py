"""Tokens to text as they come: whole characters, each row to its own end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from answering import byte_fallback_tokenizer
from transformers import AutoTokenizer

from lora_studio.chat.streaming import Detokenizer, Row, RowStreamer

TEXTS = [
    "어댑터는 작고 서로 바꿔 끼울 수 있어요. 뷁!",
    "A family: 👩‍👩‍👧‍👦 and a flag: 🇰🇷.",
    " leading and  double  spaces\n\n\ttabs ",
    "naïve café — “quotes” … 北京 ελληνικά",
]


@pytest.fixture(scope="module")
def byte_level(tiny_llama: Path):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def byte_fallback():
    return byte_fallback_tokenizer()


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_text_and_never_half_a_character(kind, text, request):
    tokenizer = request.getfixturevalue(kind)
    prompt = tokenizer("Say: 안녕", add_special_tokens=False)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer, prompt)
    pieces = [detokenizer.push(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    # SentencePiece puts its own space before a text, which belongs to the middle of this one.
    assert "".join(pieces) == (text if kind == "byte_level" else f" {text}")
    assert sum(piece != "" for piece in pieces) > 5


def test_an_answer_cut_inside_a_character_shows_only_whole_ones(byte_level):
    ids = byte_level("뷁뷁")["input_ids"]
    detokenizer = Detokenizer(byte_level, [])
    assert "".join(detokenizer.push(token) for token in ids[:-1]) == "뷁"


def test_bytes_that_are_no_character_do_not_hold_back_what_follows(byte_level):
    broken = byte_level("뷁")["input_ids"][:1]
    detokenizer = Detokenizer(byte_level, [])
    text = "".join(detokenizer.push(token) for token in broken + byte_level(" fox")["input_ids"])
    assert text == "\ufffd fox"


def test_special_tokens_are_not_shown(byte_level):
    ids = byte_level("a<|im_start|>b")["input_ids"]
    detokenizer = Detokenizer(byte_level, [])
    assert "".join(detokenizer.push(token) for token in ids) == "ab"


def test_a_long_answer_costs_no_more_per_token_than_a_short_one(byte_level):
    detokenizer = Detokenizer(byte_level, [])
    ids = byte_level("The quick brown fox. " * 300)["input_ids"]
    for token in ids:
        detokenizer.push(token)
    assert len(detokenizer._ids) < 4


def test_rows_end_alone_and_their_padding_is_dropped(byte_level):
    events = []
    fox = byte_level(" fox")["input_ids"]
    rows = [Row(pane, Detokenizer(byte_level, [])) for pane in (4, 5)]
    streamer = RowStreamer(rows, end_ids=[2], emit=events.append, stopped=lambda: False)
    streamer.put(torch.zeros(2, 7, dtype=torch.long))
    for token in fox:
        streamer.put(torch.tensor([token, token]))
    streamer.put(torch.tensor([2, fox[0]]))
    streamer.put(torch.tensor([0, fox[0]]))
    streamer.end()
    done = [event for event in events if event.get("done")]
    assert [(one["pane"], one["reason"]) for one in done] == [(4, "end"), (5, "length")]
    assert [one["tokens"] for one in done] == [len(fox), len(fox) + 2]
    assert "".join(event.get("text", "") for event in events if event["pane"] == 4) == " fox"
