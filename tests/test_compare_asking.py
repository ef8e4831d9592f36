"""What the Compare tab asks and shows, without a browser or a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from lora_studio.chat.request import Sampling
from lora_studio.errors import StudioError
from lora_studio.judging.contenders import Contender, Loaded
from lora_studio.judging.prompts import LONGEST_CHARACTERS
from lora_studio.ui import compare_panes, manner
from lora_studio.ui.asking import Terms, again, asking, going_on
from lora_studio.ui.compare import CompareTab
from lora_studio.ui.conversation import Conversation, Floor
from lora_studio.ui.language import Voice
from lora_studio.wording import say

BASE, SEA, WEAK = Contender.of(), Contender.of("sea-1"), Contender.of("sea-1", 0.5)
EN = Voice(None)
BATCHED, IN_TURN = (
    {"mode": "batched"},
    {"mode": "sequential", "reason": "page.no_runs_yet", "adapter": "sea-1"},
)


def terms(
    *contenders: Contender, is_blind: bool = False, as_text: bool = False, **sampling: Any
) -> Terms:
    return Terms(
        name="sea-1", base="starter", contenders=contenders or (BASE, SEA), loaded=Loaded(),
        is_blind=is_blind, as_text=as_text, system="", sampling=Sampling(**sampling), apart=False,
    )  # fmt: skip


def text(pane: int, words: str, **more: Any) -> dict[str, Any]:
    return {"pane": pane, "text": words, **more}


def done(pane: int, reason: str = "end") -> dict[str, Any]:
    return {
        "pane": pane, "done": True, "reason": reason, "tokens": 2, "seconds": 0.5,
        "first_s": 0.25, "tokens_per_s": 4.0,
    }  # fmt: skip


def answered(
    *words: str, under: Terms | None = None, reason: str = "end", mode: str = "batched"
) -> Conversation:
    conversation = asking("Who?")(Conversation(), under or terms()).conversation
    conversation.one_by_one = mode == "sequential"
    for pane, said in enumerate(words):
        conversation.take(pane, text(pane, said))
        conversation.take(pane, done(pane, reason))
    return conversation


def studio_of(loaded: Loaded) -> Any:
    """A studio in which this stands behind the names."""
    return SimpleNamespace(judging=SimpleNamespace(loaded=lambda *_: loaded))


def titles(conversation: Conversation) -> list[str]:
    return compare_panes.titles_of(conversation, EN)[: len(conversation.contenders)]


# Who answered is who is named


def test_the_strip_above_an_answer_names_who_gave_it_with_strength_and_mixture() -> None:
    mixed = Contender.of(mixture={"sea-1": 0.7, "poems-1": 0.3})
    base, weak, mixture = titles(answered("I.", "We.", "They.", under=terms(BASE, WEAK, mixed)))
    assert ">Base<" in base
    assert ">sea-1 × 0.5<" in weak
    assert ">0.3 × poems-1 + 0.7 × sea-1<" in mixture


def test_again_asks_whom_the_controls_name_now() -> None:
    before = answered("I.", "The sea.")
    asked = again(before, terms(BASE, WEAK))
    assert [pane.strength for pane in asked.panes] == [1, 0.5]
    assert "sea-1 × 0.5" in titles(asked.conversation)[1]
    assert asked.conversation.question == "Who?"
    assert before.answers() == ["I.", "The sea."]
    assert "× 0.5" not in titles(before)[1]


def test_again_at_temperature_0_is_refused_only_where_nothing_has_changed() -> None:
    before = answered("I.", "The sea.", under=terms(max_new_tokens=8))
    with pytest.raises(StudioError, match="temperature 0"):
        again(before, terms(max_new_tokens=8))
    assert again(before, terms(max_new_tokens=16)).panes
    assert again(before, terms(as_text=True, max_new_tokens=8)).panes
    retrained = replace(terms(max_new_tokens=8), loaded=Loaded(weights={"sea-1": "0f"}))
    assert again(before, retrained).panes
    assert again(before, terms(greedy=False, max_new_tokens=8)).sampling.seed == 43
    assert again(answered("I.", "The", reason="stopped"), terms()).panes
    with pytest.raises(StudioError, match="Ask a question first"):
        again(Conversation(), terms())


def test_an_edit_for_others_begins_anew_with_that_question() -> None:
    before = answered("I.", "The sea.")
    on = asking("Why?")(before, terms()).conversation
    asked = asking("Where?", 1)(on, terms(BASE, WEAK))
    assert [list(pane.messages) for pane in asked.panes] == [
        [{"role": "user", "content": "Where?"}]
    ] * 2
    same = asking("Where?", 1)(on, terms())
    assert [turn["content"] for turn in same.panes[1].messages] == ["Who?", "The sea.", "Where?"]


def test_a_told_blind_question_that_is_asked_again_is_hidden_anew() -> None:
    before = answered("I.", "The sea.", under=terms(is_blind=True))
    before.is_told = True
    assert any("sea-1" in title for title in titles(before))
    for wish in (again, asking("Where?", 0)):
        conversation = wish(before, terms(is_blind=True, greedy=False)).conversation
        assert conversation.names_are_hidden
        assert not any("sea-1" in title for title in titles(conversation))


# Going on


def test_while_answers_go_on_nobody_votes_and_the_old_vote_is_known_to_be_replaced() -> None:
    before = answered("I.", "The", reason="length", under=terms(greedy=False, temperature=0.7))
    before.vote, before.verdict = 7, 1
    go_on = going_on(studio_of(Loaded()))
    asked = go_on(before, terms(BASE, WEAK, max_new_tokens=64))
    conversation = asked.conversation
    assert not conversation.is_answered
    assert (conversation.vote, conversation.verdict) == (7, None)
    assert [pane.strength for pane in asked.panes] == [1, 1]  # those who began
    assert (asked.sampling.temperature, asked.sampling.max_new_tokens) == (0.7, 64)
    for pane in range(2):
        conversation.take(pane, done(pane))
    assert conversation.is_answered
    with pytest.raises(StudioError, match="cut short"):
        go_on(conversation, terms())


def test_answers_go_on_under_the_seeds_that_they_began_with() -> None:
    go_on = going_on(studio_of(Loaded()))
    for apart in (False, True):
        under = replace(terms(greedy=False), apart=apart)
        before = answered("I.", "The", reason="length", under=under)
        began = asking("Who?")(Conversation(), under).panes
        asked = go_on(before, replace(under, apart=not apart))
        assert [pane.seed for pane in asked.panes] == [pane.seed for pane in began]


def test_answers_of_other_weights_do_not_go_on() -> None:
    was = Loaded(precision="bf16", weights={"sea-1": "0f"})
    before = answered("I.", "The", reason="length", under=replace(terms(), loaded=was))
    assert going_on(studio_of(was))(before, terms()).panes
    for now in (replace(was, precision="nf4"), replace(was, weights={"sea-1": "f0"})):
        with pytest.raises(StudioError, match="Ask again instead"):
            going_on(studio_of(now))(before, terms())


# What is asked


@pytest.mark.parametrize("number", [None, 0])
def test_nothing_and_too_much_are_said_and_change_nothing(number: int | None) -> None:
    before = answered("I.", "The sea.")
    for as_text in (False, True):
        with pytest.raises(StudioError, match="Type a question first"):
            asking(" \n", number)(before, terms(as_text=as_text))
    with pytest.raises(StudioError, match="100,000"):
        asking("x" * (LONGEST_CHARACTERS + 1), number)(before, terms())
    for place in (-1, 1):
        with pytest.raises(StudioError, match="Ask a question first"):
            asking("Where?", place)(before, terms())


def test_a_text_that_is_continued_keeps_its_last_newline() -> None:
    asked = asking("Once upon\n")(Conversation(), terms(as_text=True))
    assert asked.panes[0].text == "Once upon\n"
    chat = asking("Once upon\n")(Conversation(), terms())
    assert chat.panes[0].messages[0]["content"] == "Once upon"


def test_a_question_that_still_waits_for_its_first_word_is_asked_over() -> None:
    waiting = asking("Who?")(answered("I.", "The sea."), terms()).conversation
    asked = asking("Who?")(waiting, terms())
    assert asked.conversation.questions == 2
    waiting.take(0, text(0, "I"))
    assert asking("Why?")(waiting, terms()).conversation.questions == 3


# How quick


def test_the_first_token_is_told_as_soon_as_it_is_there_unless_names_are_hidden() -> None:
    for is_blind in (False, True):
        under = terms(is_blind=is_blind)
        conversation = asking("Who?")(Conversation(), under).conversation
        conversation.take(0, text(0, "I", first_s=0.41))
        conversation.take(0, text(0, " am"))
        rates = compare_panes.shown(conversation, EN)[8:]
        assert ("first token after 0.41 s" in rates) is not is_blind
    conversation.take(0, done(0))
    conversation.is_told = True
    assert "4.0 tokens/s" in "".join(compare_panes.shown(conversation, EN)[8:])


# The tab


class FakeStudio:
    """Answers with the events it is given, and tells who was stopped."""

    def __init__(self, *events: dict[str, Any] | StudioError) -> None:
        self.events = list(events)
        self.stopped: list[str] = []
        self.adapters = SimpleNamespace(resolve=lambda _: SimpleNamespace(source="starter"))
        self.judging = SimpleNamespace(loaded=lambda *_: Loaded())
        self.answers = SimpleNamespace(ask=self.ask, stop=self.stopped.append)

    def ask(self, *_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        for event in self.events:
            if isinstance(event, StudioError):
                raise event
            yield event


class Tab:
    """A tab with its controls' values, and what it has been shown."""

    def __init__(self, tab: CompareTab, *, blind: bool = False) -> None:
        self.tab = tab
        self.request = gr.Request(headers={}, cookies={}, session_hash="tab")
        self.floor = Floor()
        self.conversation = Conversation()
        who = [["base", 1, []], ["sea-1", 1, []], *[[None, 1, []]] * 2]
        choices = [value for one in who for value in [*one, 0.5, 0.5, 0.5]]
        self.controls = ["sea-1", "2", blind, "chat", "", 0, 0.9, 8, 42, False, *choices]
        self.shown: dict[int, Any] = {}
        self.last: dict[int, list[Any]] = {}

    @property
    def values(self) -> list[Any]:
        return [self.floor, self.conversation, *self.controls]

    def show(self, outputs: list[Any]) -> None:
        """Take in what a handler returns, as the page would."""
        for component, value in zip(self.tab.answered, outputs, strict=True):
            if isinstance(value, dict) and value.get("__type__") == "update" and len(value) == 1:
                continue
            if component is self.tab.conversation:
                self.conversation = value
            self.shown[id(component)] = value

    def see(self, component: Any) -> Any:
        return self.shown[id(component)]

    def chats(self) -> list[list[str]]:
        seen = [self.see(chat) for chat in self.tab.panes.chats[:2]]
        return [[turn["content"] for turn in turns] for turns in seen]

    def step(self, stream: Iterator[list[Any]]) -> None:
        """Show what a handler yields next."""
        self.last[id(stream)] = next(stream)
        self.show(self.last[id(stream)])

    def run(self, stream: Iterator[list[Any]]) -> None:
        """Show all that a handler yields; gradio shows the last of it once more."""
        with suppress(StopIteration):
            while True:
                self.step(stream)
        self.show(self.last[id(stream)])


@pytest.fixture(scope="module")
def compare() -> Iterator[CompareTab]:
    """The tab; what gradio opens for it and leaves open is closed."""
    make, made = asyncio.new_event_loop, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", lambda: made.append(make()) or made[-1])
        with gr.Blocks():
            yield CompareTab(SimpleNamespace())  # type: ignore[arg-type]
        for loop in made:
            loop.close()


@pytest.fixture
def open_tab(
    compare: CompareTab, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Tab, FakeStudio]]:
    """Open a tab whose every event is shown at once."""
    monkeypatch.setattr("lora_studio.ui.asking.PANE_EVERY_S", 0)

    def build(*events: dict[str, Any] | StudioError, blind: bool = False) -> tuple[Tab, FakeStudio]:
        studio = FakeStudio(*events)
        compare.door.enter = lambda _: studio  # type: ignore[method-assign]
        return Tab(compare, blind=blind), studio

    return build


FULL = (BATCHED, text(0, "I."), text(1, "The sea."), done(0), done(1))


def test_a_new_conversation_silences_the_answers_of_the_old_one(open_tab) -> None:
    tab, studio = open_tab(*FULL)
    stream = tab.tab.answer(tab.request, "Who?", *tab.values)
    for _ in range(3):
        tab.step(stream)
    assert tab.chats() == [["Who?", "I."], ["Who?"]]
    who = ["base", "sea-1", None, None]
    tab.show(tab.tab.start_afresh(tab.request, tab.floor, False, *who))
    tab.run(stream)
    assert tab.chats() == [[], []]
    assert tab.conversation.questions == 0
    assert studio.stopped == ["tab/compare"] * 2


def test_a_question_asked_right_after_the_adapter_was_chosen_is_answered(open_tab) -> None:
    tab, studio = open_tab(*FULL)
    stream = tab.tab.answer(tab.request, "Who?", *tab.values)
    for _ in range(3):
        tab.step(stream)
    who = ["base", "sea-1", None, None]
    tab.show(tab.tab.follow_run(tab.request, "sea-1", tab.floor, False, *who))
    tab.run(stream)
    assert tab.chats() == [["Who?", "I."], ["Who?", "The sea."]]
    tab.show(tab.tab.follow_run(tab.request, "poems-1", tab.floor, False, *who))
    assert tab.chats() == [[], []]
    assert studio.stopped == ["tab/compare"] * 2
    # Who comes back to the first finds nothing said.
    assert not tab.floor.is_for("sea-1")


def test_an_edit_while_the_first_question_is_answered_keeps_their_answers_apart(open_tab) -> None:
    tab, studio = open_tab(*FULL)
    old = tab.tab.answer(tab.request, "Who?", *tab.values)
    for _ in range(3):
        tab.step(old)
    studio.events = [BATCHED, text(0, "Here."), text(1, "There."), done(0), done(1)]
    new = tab.tab.ask_instead(SimpleNamespace(index=0, value="Where?"), tab.request, *tab.values)
    tab.step(new)
    tab.step(old)
    tab.run(new)
    tab.run(old)
    assert tab.chats() == [["Where?", "Here."], ["Where?", "There."]]
    assert tab.conversation.answers() == ["Here.", "There."]


def test_an_edit_to_nothing_says_so_and_shows_the_question_as_it_was(open_tab) -> None:
    tab, _ = open_tab(*FULL)
    tab.run(tab.tab.answer(tab.request, "Who?", *tab.values))
    before = tab.conversation
    edit = SimpleNamespace(index=0, value=" ")
    tab.run(tab.tab.ask_instead(edit, tab.request, *tab.values))
    assert say("page.ask_first") in tab.see(tab.tab.note)
    assert tab.chats() == [["Who?", "I."], ["Who?", "The sea."]]
    assert tab.conversation is before


def test_what_fails_before_a_word_gives_the_question_back_and_what_fails_later_stays(
    open_tab,
) -> None:
    tab, studio = open_tab(StudioError("chat.out_of_memory"))
    tab.run(tab.tab.answer(tab.request, "Who?", *tab.values))
    assert tab.see(tab.tab.question) == "Who?"
    assert tab.conversation.questions == 0
    studio.events = [BATCHED, text(0, "I"), StudioError("chat.out_of_memory")]
    tab.run(tab.tab.answer(tab.request, "Who?", *tab.values))
    assert tab.see(tab.tab.question) == ""
    assert tab.chats() == [["Who?", "I"], ["Who?"]]
    assert not tab.conversation.is_answered


def test_going_on_that_fails_can_be_tried_again(open_tab) -> None:
    tab, studio = open_tab(BATCHED, text(0, "I"), text(1, "The"), done(0, "length"), done(1))
    tab.run(tab.tab.answer(tab.request, "Who?", *tab.values))
    studio.events = [BATCHED, text(0, " am"), StudioError("chat.out_of_memory")]
    tab.run(tab.tab.go_on(tab.request, *tab.values))
    assert tab.conversation.answers() == ["I am", "The"]
    assert tab.conversation.cut_short() == [0]


def test_hidden_answers_that_come_one_by_one_are_shown_together(open_tab) -> None:
    events = [IN_TURN, text(0, "I."), done(0), text(1, "The sea."), done(1)]
    tab, _ = open_tab(*events, blind=True)
    seen = []
    for outputs in tab.tab.answer(tab.request, "Who?", *tab.values):
        tab.show(outputs)
        seen.append((sorted(tab.chats()), "1 of 2" in str(tab.see(tab.tab.note))))
    whole = [["Who?", "I."], ["Who?", "The sea."]]
    assert [chats for chats, _ in seen if chats != [["Who?"], ["Who?"]]] == [whole] * 3
    assert any(told for _, told in seen)
    assert tab.see(tab.tab.note) == ""
    tab.shown.pop(id(tab.tab.conversation))
    assert "sea-1" not in str(tab.shown)


@pytest.mark.parametrize("end", [[text(1, "Th"), done(1, "stopped")], [done(1, "stopped")]])
def test_hidden_answers_that_are_stopped_one_by_one_stay_hidden(open_tab, end) -> None:
    tab, _ = open_tab(IN_TURN, text(0, "I."), done(0), *end, blind=True)
    tab.run(tab.tab.answer(tab.request, "Who?", *tab.values))
    assert tab.chats() == [[], []]
    assert tab.see(tab.tab.question) == "Who?"
    assert say("page.blind_stopped") in tab.see(tab.tab.note)


def test_differences_of_answers_that_are_no_longer_shown_are_dropped(open_tab) -> None:
    tab, studio = open_tab(*FULL)
    tab.run(tab.tab.answer(tab.request, "Who?", *tab.values))
    score = {
        "text": 0, "pieces": ["I."], "logprobs": [[-1.0], [-0.1]], "first": ["I"],
        "first_logprobs": [-0.5], "is_first": [False],
    }  # fmt: skip
    for is_shown in (True, False):
        studio.answers.score = lambda *_: iter([{"stage": "load", "done": 0, "total": 0}, score])
        asked = [True, "sea-1", tab.conversation, tab.floor, tab.request]
        stream = tab.tab.difference.show(*asked)
        next(stream)
        if not is_shown:
            tab.floor.take()
        *_, last = stream
        assert ("ls-differ" in str(last[0])) is is_shown
        assert last[-1] == ""


def test_win_rates_are_those_on_the_base_that_is_chosen(open_tab) -> None:
    tab, studio = open_tab()
    bases: list[str | None] = []
    studio.judging.votes = SimpleNamespace(unshared=lambda _: 0)
    studio.judging.win_rates = lambda base: bases.append(base) or []
    tab.tab.judge.standings("sea-1", tab.request)
    assert bases == ["starter"]


def test_a_question_that_is_being_typed_is_left_alone_by_again(open_tab) -> None:
    tab, _ = open_tab(*FULL)
    tab.run(tab.tab.answer(tab.request, "Who?", *tab.values))
    tab.controls[5] = 1
    tab.shown.clear()
    tab.run(tab.tab.answer_again(tab.request, *tab.values))
    assert tab.chats() == [["Who?", "I."], ["Who?", "The sea."]]
    assert id(tab.tab.question) not in tab.shown


def test_a_text_that_is_continued_says_that_it_has_no_system_prompt() -> None:
    request = gr.Request(headers={}, cookies={})
    unused = manner.system_use(request, "text")
    assert (unused.interactive, unused.info) == (False, say("page.system_unused"))
    assert manner.system_use(request, "chat").interactive


def test_nobody_is_named_above_an_empty_pane() -> None:
    assert compare_panes.unasked(["base", "sea-1"], is_blind=True)[1] == (
        '<div class="ls-pane ">B</div>'
    )
    base, learned = compare_panes.unasked(["base", "sea-1"], is_blind=False)
    assert (base, learned) == (
        '<div class="ls-pane base"></div>', '<div class="ls-pane learned"></div>',
    )  # fmt: skip
