"""Votes on the answers that stand side by side, and how often who wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from lora_studio.chat.request import MOST_PANES
from lora_studio.errors import StudioError
from lora_studio.judging.blind import letter
from lora_studio.judging.votes import Verdict
from lora_studio.studio import Studio
from lora_studio.ui import casting, render
from lora_studio.ui.conversation import Conversation
from lora_studio.ui.language import Voice, text
from lora_studio.ui.outgoing import fresh_folder, hand_out, handed
from lora_studio.ui.standings import standings
from lora_studio.ui.visitors import Door

EXPORTS = ("csv", "jsonl", "preferences")
PLACES = range(MOST_PANES)
# 1 to 4, 0 and - vote, unless somebody types. Gradio takes words in plain quotes for events.
KEYS = """
const votes = { 1: 0, 2: 1, 3: 2, 4: 3, 0: `tie`, [`-`]: `bad` };
const key = (event) => {
  if (!element.isConnected) return document.removeEventListener(`keydown`, key);
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const typed = `textarea, select, [contenteditable], input:not([type=checkbox], [type=radio])`;
  if (event.target.closest?.(typed)) return;
  const button = event.key in votes && document.querySelector(`#vote-${votes[event.key]}`);
  if (button && button.offsetParent && !button.disabled) button.click();
};
document.addEventListener(`keydown`, key);
"""


class JudgePanel:
    """Builds the bar of votes and what has come of them, and answers its events.

    Args:
        door: Opens the studio of a request.
        run: The adapter whose base's votes are counted.
        conversation: What is voted on.
        titles: Where names that were hidden are told after a vote.
        tell: Returns what the titles show of a conversation.
    """

    def __init__(
        self,
        door: Door,
        run: gr.Dropdown,
        conversation: gr.State,
        titles: Sequence[gr.HTML],
        tell: Callable[[Conversation, Voice], list[Any]],
    ) -> None:
        self.door = door
        self._run = run
        self._conversation = conversation
        self._titles = list(titles)
        self._tell = tell
        with gr.Row(elem_id="votes", elem_classes="ls-votes") as self.bar:
            self.best = [_button(f"vote-{place}") for place in PLACES]
            self.tie = _button("vote-tie", text("vote_tie"))
            self.bad = _button("vote-bad", text("vote_bad"))
            self.undo = _button("vote-undo", text("vote_undo"))
        self.said = gr.HTML(elem_id="vote-said", padding=False, js_on_load=KEYS)

    def build_standings(self) -> None:
        """Lay out what has come of the votes, where it is to stand, and wire it all."""
        with gr.Accordion(text("votes"), open=False, elem_id="votes-more") as self.more:
            self.table = gr.HTML(elem_id="win-rates", padding=False)
            with gr.Row(elem_classes="ls-line"):
                self.exports = [
                    gr.Button(
                        text(f"votes_{kind}"), elem_id=f"votes-{kind}", size="sm", scale=0,
                        min_width=160,
                    )
                    for kind in EXPORTS
                ]  # fmt: skip
        self.file = handed("votes-file")
        self._wire()

    @property
    def shown(self) -> list[Any]:
        """What `show` fills: the buttons and the sentence beneath them."""
        return [*self.best, self.tie, self.bad, self.undo, self.said]

    def _wire(self) -> None:
        verdicts: list[tuple[gr.Button, Verdict]] = [
            *zip(self.best, PLACES, strict=True), (self.tie, "tie"), (self.bad, "bad"),
        ]  # fmt: skip
        voted_on = [self._conversation, self._run]
        outputs = [self._conversation, *self._titles, *self.shown, self.table]
        self.voted = [
            button.click(_casting(self, verdict), voted_on, outputs, show_progress="hidden")
            for button, verdict in verdicts
        ]
        self.undo.click(self.take_back, voted_on, outputs, show_progress="hidden")
        gr.on(
            [self.more.expand, self._run.change], self.standings, self._run, self.table,
            show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip
        for kind, button in zip(EXPORTS, self.exports, strict=True):
            packing = button.click(_exporting(self, kind), None, self.file, show_progress="hidden")
            hand_out(packing, self.file)

    def show(self, conversation: Conversation, voice: Voice) -> list[Any]:
        """Return the buttons that make sense for a conversation as it stands."""
        count, is_open = len(conversation.contenders), casting.is_open(conversation)
        chosen = conversation.verdict
        best = [
            gr.Button(
                _label(place, count, voice, hidden=conversation.is_blind),
                visible=is_open and place < count,
                variant=_weight(chosen == place),
            )
            for place in PLACES
        ]
        return [
            *best,
            gr.Button(visible=is_open, variant=_weight(chosen == "tie")),
            gr.Button(visible=is_open, variant=_weight(chosen == "bad")),
            gr.Button(visible=is_open and conversation.vote is not None),
            render.quiet(voice("vote_keys"), is_news=True) if is_open and chosen is None else "",
        ]

    def vote(
        self, conversation: Conversation, run: Any, verdict: Verdict, request: gr.Request
    ) -> list[Any]:
        """Keep a vote on the last answers, and tell who gave them; another vote replaces it."""
        voice, studio = Voice(request), self.door.enter(request)
        try:
            casting.vote(conversation, verdict, studio.judging.votes)
        except StudioError as error:
            return self._refused(error, voice)
        return self._changed(conversation, run, studio, voice, said=voice("vote_kept"))

    def take_back(self, conversation: Conversation, run: Any, request: gr.Request) -> list[Any]:
        """Forget the vote on the last answers; names that it told stay told."""
        voice, studio = Voice(request), self.door.enter(request)
        if conversation.vote is None:
            return self._changed(conversation, run, studio, voice, said="")
        try:
            casting.take_back(conversation, studio.judging.votes)
        except StudioError as error:
            return self._refused(error, voice)
        return self._changed(conversation, run, studio, voice, said=voice("vote_taken_back"))

    def standings(self, run: Any, request: gr.Request) -> str:
        """Show how often who wins on the base of the adapter that is chosen."""
        return _standings(run, self.door.enter(request), Voice(request))

    def pack(self, kind: str, request: gr.Request) -> Any:
        """Write the votes as a file for download."""
        try:
            return str(self.door.enter(request).judging.export(kind, fresh_folder()))  # type: ignore[arg-type]
        except StudioError as error:
            raise render.toast(error, request) from error

    def _changed(
        self, conversation: Conversation, run: Any, studio: Studio, voice: Voice, *, said: str
    ) -> list[Any]:
        *buttons, _ = self.show(conversation, voice)
        titles = self._tell(conversation, voice)
        note = render.quiet(said, is_news=True) if said else ""
        return [conversation, *titles, *buttons, note, _standings(run, studio, voice)]

    def _refused(self, error: StudioError, voice: Voice) -> list[Any]:
        skipped = [gr.skip()] * (1 + len(self._titles) + len(self.shown))
        return [*skipped[:-1], render.problem(error, voice), gr.skip()]


def _casting(panel: JudgePanel, verdict: Verdict) -> Callable[..., list[Any]]:
    def cast(conversation: Conversation, run: Any, request: gr.Request) -> list[Any]:
        return panel.vote(conversation, run, verdict, request)

    return cast


def _exporting(panel: JudgePanel, kind: str) -> Callable[..., Any]:
    def export(request: gr.Request) -> Any:
        return panel.pack(kind, request)

    return export


def _standings(run: Any, studio: Studio, voice: Voice) -> str:
    try:
        base = studio.adapters.resolve(str(run)).source if run else None
        left_out = studio.judging.votes.unshared(base)
        return standings(studio.judging.win_rates(base), left_out, voice)
    except StudioError as error:
        return render.problem(error, voice)


def _label(place: int, count: int, voice: Voice, *, hidden: bool) -> str:
    if count == 2 and not hidden:
        return voice("vote_left" if place == 0 else "vote_right")
    return voice("vote_best", letter=letter(place) if hidden else str(place + 1))


def _weight(is_chosen: bool) -> Any:  # noqa: FBT001 - what it weighs
    return "primary" if is_chosen else "secondary"


def _button(elem_id: str, label: Any = "") -> gr.Button:
    return gr.Button(label, visible=False, elem_id=elem_id, scale=1, min_width=90, size="md")
