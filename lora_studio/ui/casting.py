"""From the answers of a conversation to a vote that is kept; no component."""

from __future__ import annotations

from lora_studio.errors import StudioError
from lora_studio.judging.store import VoteStore
from lora_studio.judging.votes import Question, Said, Verdict, Vote
from lora_studio.ui.conversation import Conversation


def is_open(conversation: Conversation) -> bool:
    """Return whether the last answers can be voted on: all are there, to their end, and seen.

    One that was stopped before its first word says nothing of who would have given it.
    """
    stopped = [end is not None and end["reason"] == "stopped" for end in conversation.ends]
    unsaid = any(
        is_stopped and not answer
        for is_stopped, answer in zip(stopped, conversation.answers(), strict=True)
    )
    return conversation.is_answered and not conversation.is_held_back and not unsaid


def vote(conversation: Conversation, verdict: Verdict, votes: VoteStore) -> None:
    """Keep a vote on the last answers; names that were hidden may be told then.

    It takes the place of an earlier one on the same question. It is blind if names are hidden now;
    the same verdict again changes nothing, so what was blind stays so.

    Raises:
        StudioError: If voting is not open, or the vote cannot be kept.
    """
    if not is_open(conversation):
        raise StudioError("page.vote_on_nothing")
    if conversation.verdict != verdict:
        cast = _vote(conversation, verdict)
        conversation.vote = votes.cast(cast, replaces=conversation.vote)
    conversation.verdict, conversation.is_told = verdict, True


def take_back(conversation: Conversation, votes: VoteStore) -> None:
    """Forget the vote on the last answers; names that it told stay told.

    Raises:
        StudioError: If it is not there any more.
    """
    if conversation.vote is not None:
        votes.remove(conversation.vote)
    conversation.vote = conversation.verdict = None


def _vote(conversation: Conversation, verdict: Verdict) -> Vote:
    asked = conversation.asked()
    return Vote(
        question=Question(
            base=conversation.base,
            messages=() if conversation.as_text else asked,
            text=asked[-1]["content"] if conversation.as_text else None,
            sampling={**conversation.sampling, "apart": conversation.apart},
            is_shared=conversation.is_shared,
            precision=conversation.loaded.precision,
        ),
        answers=tuple(_said(conversation, pane) for pane in conversation.order.order),
        verdict=verdict,
        is_blind=conversation.names_are_hidden,
    )


def _said(conversation: Conversation, pane: int) -> Said:
    contender, end = conversation.contenders[pane], conversation.ends[pane]
    return Said(
        contender=contender,
        answer=conversation.answers()[pane],
        weights=conversation.loaded.of(contender),
        reason=end["reason"] if end else "",
    )
