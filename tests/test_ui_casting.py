"""Votes on the answers of a conversation, without a page: what is kept, and when it may be cast."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from kept import write_run

from lora_studio.cases.machine import Machine
from lora_studio.chat.request import Sampling
from lora_studio.errors import StudioError
from lora_studio.judging.batch import Asked
from lora_studio.judging.contenders import Contender, Loaded
from lora_studio.judging.prompts import Prompt
from lora_studio.judging.store import VoteStore
from lora_studio.judging.winning import win_rates
from lora_studio.runs.folder import WEIGHTS
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.ui import casting
from lora_studio.ui.conversation import Conversation

BASE, CAFE = Contender.of(), Contender.of("cafe-1")


def answered(*, is_blind: bool = True, reason: str = "end") -> Conversation:
    """Return a conversation of two contenders who have answered one question."""
    conversation = Conversation()
    conversation.begin([BASE, CAFE], "starter", is_blind=is_blind)
    conversation.loaded = Loaded(precision="bf16", weights={"cafe-1": "0a1b2c"})
    conversation.ask("Hello?")
    for pane in range(2):
        conversation.take(pane, {"text": f"I am {pane}."})
        conversation.take(pane, {"done": True, "reason": reason})
    return conversation


@pytest.fixture
def votes(tmp_path: Path) -> VoteStore:
    return VoteStore(tmp_path / "votes.sqlite")


def test_a_vote_keeps_which_weights_answered_and_how_the_answers_ended(votes: VoteStore) -> None:
    casting.vote(answered(reason="length"), 0, votes)
    (kept,) = votes.all()
    assert kept.vote.question.precision == "bf16"
    said = {one.contender.key: (one.weights, one.reason) for one in kept.vote.answers}
    assert said == {"(base)": ({}, "length"), "cafe-1": ({"cafe-1": "0a1b2c"}, "length")}


def test_a_vote_tells_whether_each_answer_had_a_seed_of_its_own(votes: VoteStore) -> None:
    for apart in (False, True):
        conversation = answered()
        conversation.apart = apart
        casting.vote(conversation, 0, votes)
        assert votes.all()[-1].vote.question.sampling["apart"] is apart


def test_only_a_vote_cast_while_names_were_hidden_is_blind(votes: VoteStore) -> None:
    def is_blind() -> list[bool]:
        return [kept.vote.is_blind for kept in votes.all()]

    conversation = answered()
    casting.vote(conversation, 0, votes)
    assert is_blind() == [True]
    casting.vote(conversation, 0, votes)  # the same again
    assert is_blind() == [True]
    casting.vote(conversation, 1, votes)  # another one, with the names told
    assert is_blind() == [False]
    casting.take_back(conversation, votes)
    assert is_blind() == []
    casting.vote(conversation, 0, votes)
    assert is_blind() == [False]
    casting.vote(answered(is_blind=False), "tie", votes)
    assert is_blind() == [False]  # it takes the place of the other: the answers are the same


def test_an_answer_that_was_stopped_before_its_first_word_is_not_voted_on(
    votes: VoteStore,
) -> None:
    conversation = answered(reason="stopped")
    assert casting.is_open(conversation)
    conversation.ask("And now?")
    for pane in range(2):
        conversation.take(pane, {"done": True, "reason": "stopped"})
    assert not casting.is_open(conversation)
    with pytest.raises(StudioError):
        casting.vote(conversation, 0, votes)


def test_answers_that_went_on_are_voted_on_once_and_not_before_they_end(votes: VoteStore) -> None:
    conversation = answered(reason="length")
    for turn in range(3):
        assert casting.is_open(conversation)
        casting.vote(conversation, turn % 2, votes)
        assert [kept.vote.is_blind for kept in votes.all()] == [turn == 0]
        conversation.go_on()
        conversation.take(0, {"text": " More."})
        conversation.take(0, {"done": True, "reason": "length"})
        assert not casting.is_open(conversation)
        with pytest.raises(StudioError, match="Not every answer is finished"):
            casting.vote(conversation, "bad", votes)
        conversation.take(1, {"done": True, "reason": "length"})
    (kept,) = votes.all()
    assert kept.vote.verdict == 0
    assert [rate.all.votes for rate in win_rates(votes)] == [1]
    casting.take_back(conversation, votes)
    assert votes.all() == []


def test_what_stands_behind_a_name_is_told_by_its_weights(settings: Settings) -> None:
    run = write_run(settings, checkpoints=(2,))
    weights = run.adapter / WEIGHTS
    judging = Studio(settings, Machine.open(settings, isolated=True)).judging
    mixed = Contender.of(mixture={"poems-1": 0.5, "poems-1@2": 0.5})
    weights.write_bytes(b"first")
    loaded = judging.loaded("poems-1", [BASE, Contender.of("poems-1", 0.5), mixed])
    assert loaded.precision == "fp32"
    assert loaded.of(BASE) == {}
    first, at_2 = (hashlib.sha256(text).hexdigest() for text in (b"first", b"weights"))
    assert loaded.of(mixed) == {"poems-1": first, "poems-1@2": at_2}

    weights.write_bytes(b"trained on")
    (now,) = judging.loaded("poems-1", [Contender.of("poems-1")]).weights.values()
    assert now == hashlib.sha256(b"trained on").hexdigest()
    for folder in (run.adapter, run.checkpoint(2)):
        (folder / WEIGHTS).unlink()
    with pytest.raises(StudioError, match="poems-1"):
        judging.loaded("poems-1", [Contender.of("poems-1")])


def test_a_table_that_other_weights_began_is_not_filled(settings: Settings) -> None:
    run = write_run(settings)
    studio = Studio(settings, Machine.open(settings, isolated=True))
    judging, asked = studio.judging, [BASE, Contender.of("poems-1")]
    batch = judging.begin(
        Asked(
            base=studio.adapters.resolve("poems-1").source,
            contenders=tuple(asked),
            prompts=(Prompt.of("Hello?"),),
            sampling=Sampling(),
            loaded=judging.loaded("poems-1", asked),
        )
    )
    assert next(judging.fill(batch, "poems-1"))["done"] == 0
    (run.adapter / WEIGHTS).write_bytes(b"trained on")
    with pytest.raises(StudioError, match=r"changed: poems-1\..* Begin a new table"):
        next(judging.fill(judging.open(batch.name), "poems-1"))
    (known,) = judging.tables()
    assert (known.name, known.done, known.total) == (batch.name, 0, 1)
