"""What has been asked of all panes, and what each has answered so far; no component, no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from lora_studio.chat.request import Message, Pane, seed_apart
from lora_studio.judging.blind import Shuffled
from lora_studio.judging.contenders import Contender, Loaded
from lora_studio.judging.votes import Verdict

Turns = list[Message]
ANSWER = "assistant"


@dataclass
class Conversation:
    """A conversation with several contenders, each asked on from its own answers.

    Panes are numbered as they were chosen; `order` says at which place each is shown.
    """

    base: str = ""
    """Source of the base model."""
    contenders: tuple[Contender, ...] = ()
    order: Shuffled = field(default_factory=lambda: Shuffled.open(0))
    is_blind: bool = False
    is_told: bool = False
    """Whether names that were hidden have been told, after the vote."""
    as_text: bool = False
    """Whether texts are continued instead of questions answered."""
    system: str = ""
    turns: list[Turns] = field(default_factory=list)
    ends: list[Mapping[str, Any] | None] = field(default_factory=list)
    """How each pane's last answer ended: the engine's event; None while it is awaited."""
    firsts: list[float | None] = field(default_factory=list)
    """Seconds to its first token, once that is there."""
    begun: list[str] = field(default_factory=list)
    """What it began with, where it is gone on with."""
    one_by_one: bool = False
    """Whether panes are answered one after the other, as the engine says before it begins."""
    seed: int = 42
    """Of the last answers."""
    apart: bool = False
    """Whether each of them has a seed of its own."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    loaded: Loaded = field(default_factory=Loaded)
    """Which weights gave them."""
    refused: Conversation | None = None
    """What was asked after this and not answered: its prompt can still be seen."""
    verdict: Verdict | None = None
    """The vote on the last answers, by place."""
    vote: int | None = None
    """Its number; the next vote takes its place, also where answers have gone on since."""

    @property
    def names_are_hidden(self) -> bool:
        """Whether the panes go by letters."""
        return self.is_blind and not self.is_told

    @property
    def is_answered(self) -> bool:
        """Whether every pane's last answer has come to an end."""
        return bool(self.ends) and None not in self.ends

    @property
    def is_broken_off(self) -> bool:
        """Whether an answer was stopped, or is not there yet."""
        return any(end is None or end["reason"] == "stopped" for end in self.ends)

    @property
    def is_held_back(self) -> bool:
        """Whether answers are kept from view: who answers first would tell who it is."""
        return self.names_are_hidden and self.one_by_one and self.is_broken_off

    @property
    def is_lost(self) -> bool:
        """Whether nothing that was said since the last wish can be shown."""
        return self.is_broken_off and (self.is_held_back or self.answers() == self.begun)

    @property
    def questions(self) -> int:
        """How many questions have been asked."""
        return sum(1 for turn in self.turns[0] if not is_answer(turn)) if self.turns else 0

    @property
    def next_number(self) -> int:
        """The next question's number; one that nobody has said a word to yet is asked over."""
        is_waited = bool(self.ends) and not self.is_answered and not any(self.answers())
        return self.questions - is_waited

    @property
    def question(self) -> str:
        """The last question, empty if there is none."""
        return self.turns[0][-2]["content"] if self.questions else ""

    def begins_anew(self, contenders: Sequence[Contender], base: str, *, is_blind: bool) -> bool:
        """Return whether these contenders cannot go on from what was said.

        Who is hidden would be known by earlier answers.
        """
        same = [one.key for one in self.contenders] == [one.key for one in contenders]
        return is_blind or self.is_blind or self.base != base or not same

    def begin(self, contenders: Sequence[Contender], base: str, *, is_blind: bool) -> None:
        """Forget what was said, and draw who stands where."""
        count = len(contenders)
        self.base, self.contenders = base, tuple(contenders)
        self.order = Shuffled.draw(count) if is_blind else Shuffled.open(count)
        self.is_blind, self.is_told = is_blind, False
        self.turns = [[] for _ in contenders]
        self._await_answers()

    def ask(self, question: str) -> None:
        """Add a question to every pane, and room for its answer."""
        for turns in self.turns:
            turns += [_asked(question), _answer("")]
        self._await_answers()

    def edit(self, number: int, question: str) -> None:
        """Ask another question in place of one, counted from 0; what came after it is dropped."""
        for turns in self.turns:
            del turns[2 * number :]
        self.ask(question)

    def cut_short(self) -> list[int]:
        """Return the panes whose answer stopped before its end."""
        return [
            pane
            for pane, end in enumerate(self.ends)
            if end is not None and end["reason"] in ("length", "stopped")
        ]

    def go_on(self) -> list[int]:
        """Have the answers that were cut short gone on with; return their panes."""
        going = self.cut_short()
        for pane in going:
            self.ends[pane] = self.firsts[pane] = None
        self.begun = self.answers()
        self.one_by_one, self.verdict, self.refused = False, None, None
        return going

    def panes(self, *, goes_on: Sequence[int] = ()) -> list[Pane]:
        """Return what to ask the engine.

        Args:
            goes_on: Panes whose answer is gone on with; without them all answer anew.
        """
        chosen = goes_on or range(len(self.contenders))
        return [self._pane(pane, continues=bool(goes_on)) for pane in chosen]

    def copy(self) -> Conversation:
        """Return the same again, which does not change with this one."""
        return deepcopy(self)

    def take(self, pane: int, event: Mapping[str, Any]) -> None:
        """Take in an event of the engine about a pane."""
        if "done" in event:
            self.ends[pane] = event
        elif "text" in event:
            last = self.turns[pane][-1]
            self.turns[pane][-1] = _answer(last["content"] + event["text"])
            self.firsts[pane] = event.get("first_s", self.firsts[pane])

    def end_as(self, before: Conversation) -> None:
        """Where the rest of an answer failed, let it have ended as its beginning had."""
        if any(self.begun):
            ends = zip(self.ends, before.ends, strict=True)
            self.ends = [now or then for now, then in ends]

    def said(self, pane: int) -> str:
        """Return what a pane's last answer may show."""
        return self.begun[pane] if self.is_held_back else self.turns[pane][-1]["content"]

    def answers(self) -> list[str]:
        """Return the last answer of each pane."""
        return [turns[-1]["content"] if turns else "" for turns in self.turns]

    def asked(self) -> tuple[Message, ...]:
        """Return the leftmost pane's conversation up to the last question."""
        if not self.turns:
            return ()
        return (*self._system(), *self.turns[self.order.pane_at(0)][:-1])

    @property
    def is_shared(self) -> bool:
        """Whether all panes were asked the last question after the same turns."""
        return self.as_text or all(turns[:-1] == self.turns[0][:-1] for turns in self.turns)

    def _pane(self, pane: int, *, continues: bool) -> Pane:
        contender, turns = self.contenders[pane], self.turns[pane]
        if self.as_text:
            asked = contender.pane(text=turns[-2]["content"])
        else:
            asked = contender.pane([*self._system(), *turns[:-1]])
        if self.apart:
            asked = replace(asked, seed=seed_apart(self.seed, pane))
        return replace(asked, continues=turns[-1]["content"]) if continues else asked

    def _system(self) -> Turns:
        return [{"role": "system", "content": self.system}] if self.system.strip() else []

    def _await_answers(self) -> None:
        count = len(self.turns)
        self.ends, self.firsts, self.begun = [None] * count, [None] * count, [""] * count
        self.one_by_one = False
        self.verdict = self.vote = self.refused = None


class Floor:
    """Who has the word in a tab: the newest wish, while earlier ones go unheard."""

    def __init__(self) -> None:
        self._holder: object = None
        self._name = ""

    def take(self, name: str = "") -> Callable[[], bool]:
        """Take the floor; return what says whether it is still held.

        Args:
            name: The adapter that was chosen when something was wished; empty if nothing is.
        """
        self._holder, self._name = object(), name
        return self.look()

    def is_for(self, name: str) -> bool:
        """Return whether this adapter was chosen when the newest wish was made."""
        return self._name == name

    def look(self) -> Callable[[], bool]:
        """Return what says whether nobody has taken the floor since."""
        holder = self._holder
        return lambda: self._holder is holder


def is_answer(turn: Message) -> bool:
    """Return whether a turn is the model's."""
    return turn["role"] == ANSWER


def _asked(question: str) -> Message:
    return {"role": "user", "content": question}


def _answer(text: str) -> Message:
    return {"role": ANSWER, "content": text}
