"""What is asked of all panes, without a page: turns, seeds, edits, who goes on."""

from __future__ import annotations

from lora_studio.judging.contenders import Contender
from lora_studio.ui.conversation import Conversation

BASE, SEA = Contender.of(), Contender.of("sea-1")


def begun(*, is_blind: bool = False) -> Conversation:
    conversation = Conversation()
    conversation.begin([BASE, SEA], "starter", is_blind=is_blind)
    conversation.ask("Who?")
    return conversation


def answer(conversation: Conversation, *texts: str, reason: str = "end") -> None:
    for pane, text in enumerate(texts):
        conversation.take(pane, {"pane": pane, "text": text})
        conversation.take(pane, {"pane": pane, "done": True, "reason": reason})


def said(conversation: Conversation, pane: int) -> list[str]:
    return [turn["content"] for turn in conversation.turns[pane]]


def test_each_is_asked_on_from_its_own_answers() -> None:
    conversation = begun()
    answer(conversation, "I.", "The sea.")
    assert conversation.is_shared
    conversation.ask("Why?")
    base, sea = conversation.panes()
    assert [turn["content"] for turn in base.messages] == ["Who?", "I.", "Why?"]
    assert [turn["content"] for turn in sea.messages] == ["Who?", "The sea.", "Why?"]
    assert (base.adapter, sea.adapter) == (None, "sea-1")
    assert not conversation.is_shared


def test_only_answers_that_were_cut_short_go_on() -> None:
    conversation = begun()
    answer(conversation, "I.")
    conversation.take(1, {"pane": 1, "text": "The"})
    conversation.take(1, {"pane": 1, "done": True, "reason": "length"})
    assert conversation.cut_short() == [1]
    (pane,) = conversation.panes(goes_on=[1])
    assert (pane.adapter, pane.continues) == ("sea-1", "The")
    conversation.take(1, {"pane": 1, "text": " sea."})
    assert conversation.answers() == ["I.", "The sea."]


def test_an_edited_question_drops_what_came_after_it() -> None:
    conversation = begun()
    answer(conversation, "I.", "The sea.")
    conversation.ask("Why?")
    answer(conversation, "So.", "Waves.")
    conversation.edit(0, "Where?")
    assert [said(conversation, pane) for pane in (0, 1)] == [["Where?", ""], ["Where?", ""]]
    assert conversation.ends == [None, None]


def test_answers_under_seeds_of_their_own_differ_by_pane_and_wrap_around() -> None:
    conversation = begun()
    conversation.seed, conversation.apart = 2**32 - 1, True
    assert [pane.seed for pane in conversation.panes()] == [2**32 - 1, 0]
    assert [pane.seed for pane in conversation.panes(goes_on=[1])] == [0]
    conversation.apart = False
    assert [pane.seed for pane in conversation.panes()] == [None, None]


def test_other_contenders_another_base_and_blind_questions_begin_anew() -> None:
    conversation = begun()
    same = [BASE, SEA]
    assert not conversation.begins_anew(same, "starter", is_blind=False)
    assert conversation.begins_anew(same, "other", is_blind=False)
    assert conversation.begins_anew([BASE, Contender.of("sea-1", 0.5)], "starter", is_blind=False)
    assert conversation.begins_anew(same, "starter", is_blind=True)
    assert begun(is_blind=True).begins_anew(same, "starter", is_blind=False)


def test_a_copy_does_not_follow() -> None:
    conversation = begun()
    before = conversation.copy()
    answer(conversation, "I.", "The sea.")
    assert said(before, 0) == ["Who?", ""]
