"""The Compare tab: ask once, the base and adapters answer side by side.

A run that sorts texts into classes has a box of its own there, see `classify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import takewhile
from typing import Any

import gradio as gr

from lora_studio.chat.request import MOST_PANES
from lora_studio.errors import StudioError
from lora_studio.studio import Studio
from lora_studio.ui import compare_panes, render
from lora_studio.ui.asking import Terms, Wish, again, asking, going_on, pane_count
from lora_studio.ui.batch_panel import BatchPanel
from lora_studio.ui.classify import ClassifyBox
from lora_studio.ui.compare_panes import BASE, FEWEST, MIXTURE, Offer, Panes
from lora_studio.ui.controls import ENGINE, button, dropdown
from lora_studio.ui.conversation import Conversation, Floor
from lora_studio.ui.difference_panel import DifferencePanel
from lora_studio.ui.judge_panel import JudgePanel
from lora_studio.ui.language import Voice, text
from lora_studio.ui.manner import Manner
from lora_studio.ui.measure_panel import MeasurePanel
from lora_studio.ui.prompt_panel import PromptPanel
from lora_studio.ui.visitors import Door, asker

PLACE = "compare"
"""What stop knows these questions by."""


class CompareTab:
    """Builds the tab and answers its events."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.nothing = gr.HTML(elem_id="compare-nothing", padding=False)
        with gr.Row(elem_classes="ls-line", elem_id="compare-bar"):
            self.run = dropdown(
                [], label=text("compare_run"), info=text("compare_run_why"), elem_id="compare-run",
                scale=3, min_width=240,
            )  # fmt: skip
            self.count = gr.Radio(
                [str(count) for count in range(FEWEST, MOST_PANES + 1)], value=str(FEWEST),
                label=text("pane_count_label"), elem_id="pane-count", scale=1, min_width=220,
            )  # fmt: skip
            self.blind = gr.Checkbox(
                label=text("blind"), info=text("blind_why"), elem_id="blind", scale=1,
                min_width=200,
            )  # fmt: skip
            self.clear = gr.Button(
                text("compare_clear"), elem_id="compare-clear", scale=0, min_width=160
            )
        self.floor, self.conversation = gr.State(Floor()), gr.State(Conversation())
        with gr.Column() as self.talk:
            self.panes = Panes()
            self.judge = JudgePanel(
                door, self.run, self.conversation, [place.title for place in self.panes.places],
                compare_panes.titles_of,
            )  # fmt: skip
            self.note = gr.HTML(elem_id="compare-note", padding=False)
            self._ask()
            self.manner = Manner()
            self.difference = DifferencePanel(
                door, self.run, self.conversation, self.floor, self.panes.differences
            )
            self.prompt = PromptPanel(door, self.run, self.conversation)
            self.judge.build_standings()
            self.measure = MeasurePanel(door, self.run)
            self.batch = BatchPanel(door, self.controls)
        self.classes = ClassifyBox(door, self.run)
        self._wire()

    def _ask(self) -> None:
        with gr.Row(elem_classes="ls-line"):
            self.question = gr.Textbox(
                label=text("question"), placeholder=text("question_hint"), lines=2, max_lines=6,
                scale=6, elem_id="question", submit_btn=False,
            )  # fmt: skip
            self.send = gr.Button(
                text("send"), variant="primary", elem_id="send", scale=0, min_width=120
            )
            self.stop, self.again, self.more = (
                button(name, min_width=110, interactive=False)
                for name in ("stop", "again", "go_on")
            )

    @property
    def found(self) -> list[Any]:
        """What `choices` and `refreshed` change."""
        return [self.run, self.nothing]

    @property
    def controls(self) -> list[Any]:
        """What `Terms.read` takes: who is to answer, and how."""
        return [
            self.run, self.count, self.blind, *self.manner.controls, *self.panes.controls
        ]  # fmt: skip

    @property
    def asked(self) -> list[Any]:
        """What every wish is read from."""
        return [self.floor, self.conversation, *self.controls]

    @property
    def answered(self) -> list[Any]:
        """What an answer changes."""
        return [
            *self.panes.texts, self.conversation, self.question, self.send, self.stop, self.again,
            self.more, self.note, *self.panes.differences, *self.judge.shown,
        ]  # fmt: skip

    def _wire(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        self._wire_wishes()
        afresh: dict[str, Any] = {
            "fn": self.start_afresh,
            "inputs": [self.floor, self.blind, *(choice.who for choice in self.panes.choices)],
            "outputs": self.answered,
            "trigger_mode": "multiple",
            "concurrency_limit": None,
            **quiet,
        }
        # In the same line as the answers, so that it comes after what they have shown.
        gr.on(
            [
                self.clear.click, self.count.input, self.blind.input,
                *(chat.clear for chat in self.panes.chats),
                *(choice.who.input for choice in self.panes.choices),
            ],
            **afresh,
        ).then(**self.prompt.showing)  # fmt: skip
        gr.on(
            [self.count.change, self.blind.change], self.lay_out, [self.count, self.blind],
            [*(place.column for place in self.panes.places), *self.panes.named],
            queue=False, **quiet,
        )  # fmt: skip
        for choice in self.panes.choices:
            gr.on(
                [choice.who.change, choice.mixed.change], compare_panes.shown_controls,
                [choice.who, choice.mixed], choice.controls[1:], queue=False, **quiet,
            )  # fmt: skip
        self.run.change(
            self.describe,
            self.run,
            [
                self.manner.mode, self.talk, self.clear, self.count, self.blind, *self.offered,
                *self.classes.shown,
            ],
            **quiet,
        ).then(
            **afresh | {"fn": self.follow_run, "inputs": [self.run, *afresh["inputs"]]}
        ).then(**self.prompt.showing)  # fmt: skip

    def _wire_wishes(self) -> None:
        settings: dict[str, Any] = {
            "outputs": self.answered, "trigger_mode": "multiple", **ENGINE
        }  # fmt: skip
        asked = [
            gr.on(
                [self.send.click, self.question.submit], self.answer,
                [self.question, *self.asked], **settings,
            ),
            self.again.click(self.answer_again, self.asked, **settings),
            self.more.click(self.go_on, self.asked, **settings),
            *(
                chat.edit(self.ask_instead, self.asked, **settings)
                for chat in self.panes.chats
            ),
        ]  # fmt: skip
        for done in [*asked, *self.judge.voted]:
            done.then(**self.difference.showing)
        for done in asked:
            done.then(**self.prompt.showing)
        self.stop.click(self.halt, None, None, queue=False)

    @property
    def offered(self) -> list[Any]:
        """What the run's base decides: who can answer in each pane, and be mixed."""
        choices = self.panes.choices
        return [*(choice.who for choice in choices), *(choice.mixed for choice in choices)]

    # Handlers

    def choices(self, request: gr.Request, wanted: str | None = None) -> list[Any]:
        """Offer the adapters there are, the wanted or newest one chosen; say if there are none."""
        offer, nothing = self._answering(request, wanted)
        return [offer.afresh(), nothing]

    def refreshed(self, request: gr.Request, run: Any) -> list[Any]:
        """Offer what is there now and keep the choice; where there is none, choose the newest."""
        offer, nothing = self._answering(request, run)
        return [offer.kept(run) if run else offer.afresh(), nothing]

    def come_back(self, request: gr.Request, run: Any, *chosen: Any) -> list[Any]:
        """Offer what is there now, to ask and in every pane; what is gone gives its place up."""
        shown = self.refreshed(request, run)
        try:
            offer = self._offer(self.door.enter(request), str(run), Voice(request))
        except StudioError:
            return [*shown, *[gr.skip()] * len(self.offered)]
        return [*shown, *(one.kept(value) for one, value in zip(offer, chosen, strict=True))]

    def describe(self, request: gr.Request, run: Any) -> list[Any]:
        """Offer who shares the chosen adapter's base; a run on plain text continues text.

        A run that sorts texts into classes gets its own box instead.
        """
        voice, studio = Voice(request), self.door.enter(request)
        try:
            named = studio.adapters.resolve(str(run))
            history = None if named.run is None else studio.runs.history(named.run.id)
        except StudioError:
            return [gr.skip()] * (5 + len(self.offered) + len(self.classes.shown))
        mode = "text" if history and history.plan.get("format") == "text" else "chat"
        prompts = [] if history is None else [sample["prompt"] for sample in history.samples]
        writes = not named.labels
        offer = self._offer(studio, named.name, voice)
        return [
            mode, gr.Column(visible=writes), gr.Button(visible=writes), gr.Radio(visible=writes),
            gr.Checkbox(visible=writes), *(one.afresh() for one in offer),
            *self.classes.show(prompts, named.labels, voice),
        ]  # fmt: skip

    def _answering(self, request: gr.Request, wanted: Any) -> tuple[Offer, str]:
        """Return who can be asked, first the wanted or newest one; and what to say if nobody."""
        usable = [
            (entry.name if entry.name == entry.id else f"{entry.name} ({entry.id})", entry.id)
            for entry in self.door.enter(request).library.entries()
            if entry.can_answer
        ]
        ids = [name for _, name in usable]
        chosen = wanted if wanted in ids else (ids[0] if ids else None)
        nothing = "" if ids else render.note(Voice(request)("no_runs_yet"), "warn")
        return Offer(usable, chosen), nothing

    def _offer(self, studio: Studio, name: str, voice: Voice) -> list[Offer]:
        """Return what every pane offers: the base, and the adapters of the same base."""
        found = studio.library.beside(name)
        who = [(voice("base_side"), BASE), *((one, one) for one in found)]
        if len(found) > 1:
            who.append((voice("mixture"), MIXTURE))
        first = [BASE, name, *[other for other in found if other != name]]
        picked = [first[number] if number < len(first) else BASE for number in range(MOST_PANES)]
        return [
            *(Offer(who, value) for value in picked),
            *(Offer([(one, one) for one in found], []) for _ in picked),
        ]

    def lay_out(self, count: Any, blind: Any) -> list[Any]:
        """Show as many panes as are wanted; who answers is chosen above them, or hidden."""
        panes = range(MOST_PANES)
        return [
            *(gr.Column(visible=number < pane_count(count)) for number in panes),
            *(gr.Column(visible=not blind) for _ in self.panes.named),
        ]

    def start_afresh(self, request: gr.Request, floor: Floor, blind: Any, *who: Any) -> list[Any]:
        """Forget what was said, and what is being said."""
        floor.take()
        self.halt(request)
        fresh = self._idle(Conversation(), Voice(request), note="")
        return [*compare_panes.unasked(who, is_blind=bool(blind)), *fresh[MOST_PANES:]]

    def follow_run(
        self, request: gr.Request, run: Any, floor: Floor, blind: Any, *who: Any
    ) -> list[Any]:
        """Start afresh with another adapter, unless it has been asked already."""
        if floor.is_for(str(run)):
            return self._same
        return self.start_afresh(request, floor, blind, *who)

    def halt(self, request: gr.Request) -> None:
        """Stop all answers at the next token."""
        self.door.enter(request).answers.stop(asker(request, PLACE))

    def answer(self, request: gr.Request, question: Any, *values: Any) -> Iterator[Any]:
        """Stream everybody's answer to one question."""
        yield from self._follow(request, values, asking(question), typed=str(question or ""))

    def answer_again(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Answer the last question once more, as the controls are now."""
        yield from self._follow(request, values, again)

    def go_on(self, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Go on with the answers that were cut short."""
        yield from self._follow(request, values, going_on(self.door.enter(request)))

    def ask_instead(self, event: gr.EditData, request: gr.Request, *values: Any) -> Iterator[Any]:
        """Ask an edited question in place of an earlier one; what came after it is dropped."""
        number = event.index // 2 if isinstance(event.index, int) else -1
        yield from self._follow(request, values, asking(event.value, number))

    # Beneath

    def _follow(
        self, request: gr.Request, values: Sequence[Any], wish: Wish, *, typed: str = ""
    ) -> Iterator[Any]:
        """Do what is wished and stream the answers; what fails is said, and nothing is lost.

        A newer wish ends it: then it changes nothing any more.
        """
        floor, before, *controls = values
        voice, studio = Voice(request), self.door.enter(request)
        try:
            asked = wish(before, Terms.read(studio, controls))
        except StudioError as error:
            yield self._said(before, voice, error.say(voice.language))
            return
        is_newest = floor.take(asked.name)
        self.halt(request)
        busy = render.busy(voice("compare_loading"))
        yield self._busy(asked.conversation, voice, note=busy, question="" if typed else None)
        note = ""
        try:
            with closing(asked.streamed(studio, voice, asker(request, PLACE))) as notes:
                for note in takewhile(lambda _: is_newest(), notes):
                    yield self._streamed(asked.conversation, voice, note)
        except StudioError as error:
            note = render.problem(error, voice)
        if is_newest():
            yield self._ended(asked.conversation, before, voice, note=note, typed=typed)
        else:
            yield self._same  # what was yielded last is shown once more at the end

    @property
    def _same(self) -> list[Any]:
        return [gr.skip()] * len(self.answered)

    def _said(self, conversation: Conversation, voice: Voice, sentence: str) -> list[Any]:
        """Change nothing but the note; an edit that is not followed is taken back."""
        return self._streamed(conversation, voice, render.note(sentence, "warn"))

    def _busy(
        self, conversation: Conversation, voice: Voice, *, note: str, question: str | None
    ) -> list[Any]:
        off, on = gr.Button(interactive=False), gr.Button(interactive=True)
        return self._all(conversation, voice, [off, on, off, off], note=note, question=question)

    def _streamed(self, conversation: Conversation, voice: Voice, note: str) -> list[Any]:
        """Change texts and note alone."""
        texts, changed = compare_panes.shown(conversation, voice), self._same
        changed[: len(texts)] = texts
        changed[self.answered.index(self.note)] = note
        return changed

    def _ended(
        self, conversation: Conversation, before: Conversation, voice: Voice, *, note: str,
        typed: str,
    ) -> list[Any]:  # fmt: skip
        """Show what was said, or else the conversation as it was, and the question to be sent."""
        if conversation.is_lost:
            if conversation.is_held_back and not note:
                note = render.note(voice("blind_stopped"), "warn")
            before.refused = conversation
            return self._idle(before, voice, note=note, question=typed or None)
        conversation.end_as(before)
        return self._idle(conversation, voice, note=note)

    def _idle(
        self, conversation: Conversation, voice: Voice, *, note: str, question: str | None = None
    ) -> list[Any]:
        buttons = [
            gr.Button(interactive=True),
            gr.Button(interactive=False),
            gr.Button(interactive=conversation.questions > 0),
            gr.Button(interactive=bool(conversation.cut_short())),
        ]
        return self._all(conversation, voice, buttons, note=note, question=question)

    def _all(
        self, conversation: Conversation, voice: Voice, buttons: list[gr.Button], *, note: str,
        question: str | None,
    ) -> list[Any]:  # fmt: skip
        texts = compare_panes.shown(conversation, voice)
        typed = gr.skip() if question is None else question
        judge = self.judge.show(conversation, voice)
        return [*texts, conversation, typed, *buttons, note, *[""] * MOST_PANES, *judge]
