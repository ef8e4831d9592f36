"""Where answers differ: a switch, and what stands under each answer while it is on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from lora_studio.chat.request import MOST_PANES, Pane, Who
from lora_studio.errors import StudioError
from lora_studio.studio import Studio
from lora_studio.ui import render
from lora_studio.ui.compare_panes import name_of
from lora_studio.ui.controls import ENGINE
from lora_studio.ui.conversation import Conversation, Floor
from lora_studio.ui.difference_text import Score, changed, coloured
from lora_studio.ui.language import Voice, text
from lora_studio.ui.visitors import Door


class DifferencePanel:
    """Builds the switch, and fills what stands under each answer.

    Args:
        door: Opens the studio of a request.
        run: The adapter whose base is loaded.
        conversation: Whose last answers are looked at.
        floor: Who has the word; what is found for answers that are no longer shown is dropped.
        places: Where it is shown, by place.
    """

    def __init__(
        self,
        door: Door,
        run: gr.Dropdown,
        conversation: gr.State,
        floor: gr.State,
        places: Sequence[gr.HTML],
    ) -> None:
        self.door = door
        self.asked = [run, conversation, floor]
        self.places = list(places)
        self.wanted = gr.Checkbox(
            label=text("differences"), info=text("differences_why"), elem_id="differences"
        )
        self.note = gr.HTML(elem_id="differences-note", padding=False)
        self.wanted.change(**self.showing)

    @property
    def showing(self) -> dict[str, Any]:
        """An event's settings after which the differences are shown, if they are wanted."""
        return {
            "fn": self.show, "inputs": [self.wanted, *self.asked],
            "outputs": [*self.places, self.note], "trigger_mode": "always_last", **ENGINE,
        }  # fmt: skip

    def show(
        self, wanted: Any, run: Any, conversation: Conversation, floor: Floor, request: gr.Request
    ) -> Iterator[list[Any]]:
        """Colour every answer's tokens by how much likelier they became."""
        voice, nothing = Voice(request), [""] * MOST_PANES
        if not wanted or not run or not conversation.is_answered:
            yield [*nothing, ""]
            return
        if conversation.names_are_hidden:
            yield [*nothing, render.note(voice("differences_hidden"), "warn")]
            return
        scores: dict[int, Score] = {}
        is_shown = floor.look()
        try:
            for event in _scored(self.door.enter(request), str(run), conversation):
                if not is_shown():
                    break
                if "text" in event:
                    scores[event["text"]] = event
                elif "stage" in event or "place" in event:
                    yield [*[gr.skip()] * MOST_PANES, render.waiting(event, voice)]
        except StudioError as error:
            yield [*nothing, render.problem(error, voice)]
            return
        found = _by_place(conversation, scores, voice)
        yield [*(found if is_shown() else [gr.skip()] * MOST_PANES), ""]


def _judges(asked: Sequence[Who]) -> list[Who]:
    """Return the base and everybody else who answers, each once."""
    found: list[Who] = [None, *(who for who in asked if who)]
    return [who for at, who in enumerate(found) if who not in found[:at]]


def _scored(studio: Studio, run: str, conversation: Conversation) -> Iterator[dict[str, Any]]:
    panes = answered(conversation)
    yield from studio.answers.score(run, panes, _judges([pane.who for pane in panes]))


def answered(conversation: Conversation) -> list[Pane]:
    """Return the last question of each pane with its answer."""
    return conversation.panes(goes_on=range(len(conversation.contenders)))


def _by_place(conversation: Conversation, scores: Mapping[int, Score], voice: Voice) -> list[str]:
    asked: list[Who] = [pane.who for pane in conversation.panes()]
    judges = _judges(asked)
    base = _beside_base(conversation, asked, judges, voice)
    answers = conversation.answers()
    found = [""] * MOST_PANES
    first = conversation.order.pane_at(0)
    for place, pane in enumerate(conversation.order.order):
        score = scores.get(pane)
        if score is None or not score["pieces"]:
            continue
        who = asked[pane]
        judge, against = (judges.index(who), "") if who else base
        found[place] = coloured(score, judge, voice, against)
        if place:
            found[place] += changed(answers[first], answers[pane], voice)
    return found


def _beside_base(
    conversation: Conversation, asked: Sequence[Who], judges: Sequence[Who], voice: Voice
) -> tuple[int, str]:
    """Return who is compared with the base in its own pane: their place among the judges, and name.

    That is the first of the others, who is named where there are several.
    """
    if len(judges) < 3:
        return len(judges) - 1, ""
    return 1, name_of(conversation.contenders[asked.index(judges[1])], voice)
