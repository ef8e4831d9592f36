"""The last question as the model sees it, special tokens and all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.judging.blind import letter
from lora_studio.ui import render
from lora_studio.ui.compare_panes import name_of
from lora_studio.ui.controls import ENGINE
from lora_studio.ui.conversation import Conversation
from lora_studio.ui.language import Voice, text
from lora_studio.ui.visitors import Door


class PromptPanel:
    """Builds the fold that shows it; while it is open it keeps up with what is asked.

    Args:
        door: Opens the studio of a request.
        run: The adapter whose base is loaded.
        conversation: Whose last question is looked at.
    """

    def __init__(self, door: Door, run: gr.Dropdown, conversation: gr.State) -> None:
        self.door = door
        self.is_open = gr.State(value=False)
        with gr.Accordion(text("prompt_seen"), open=False, elem_id="prompt-seen") as fold:
            self.seen = gr.HTML(elem_id="prompt-text", padding=False)
        self._asked = [self.is_open, run, conversation]
        fold.expand(lambda: True, None, self.is_open, queue=False).then(**self.showing)
        fold.collapse(lambda: False, None, self.is_open, queue=False)

    @property
    def showing(self) -> dict[str, Any]:
        """An event's settings after which the prompt is that of the last question."""
        return {
            "fn": self.show, "inputs": self._asked, "outputs": self.seen,
            "trigger_mode": "always_last", **ENGINE,
        }  # fmt: skip

    def show(
        self, is_open: Any, run: Any, conversation: Conversation, request: gr.Request
    ) -> Iterator[Any]:
        """Show the prompt of the last question, also of one that was refused."""
        voice = Voice(request)
        asked = conversation.refused or conversation
        if not is_open:
            yield gr.skip()
            return
        if not run or not asked.questions:
            yield render.quiet(voice("prompt_none"))
            return
        try:
            for event in self.door.enter(request).answers.render(str(run), asked.panes()):
                if "result" in event:
                    yield prompts(event["result"], asked, voice)
                else:
                    yield render.waiting(event, voice)
        except StudioError as error:
            yield render.problem(error, voice)


def prompts(rendered: Sequence[Mapping[str, Any]], asked: Conversation, voice: Voice) -> str:
    """Return each prompt once, with whose it is where they differ, how long, and what is cut.

    Args:
        rendered: The engine's, a prompt for each pane.
        asked: Whose panes they are.
        voice: Speaks to the person.
    """
    panes: dict[str, list[int]] = {}
    for place in range(len(rendered)):
        pane = asked.order.pane_at(place)
        panes.setdefault(rendered[pane]["text"], []).append(place)
    parts = []
    for places in panes.values():
        names = dict.fromkeys(_name(asked, place, voice) for place in places)
        title = f"<h4>{escape(', '.join(names))}</h4>" if len(panes) > 1 else ""
        parts.append(title + _prompt(rendered[asked.order.pane_at(places[0])], voice))
    return "".join(parts)


def _name(asked: Conversation, place: int, voice: Voice) -> str:
    if asked.names_are_hidden:
        return letter(place)
    return name_of(asked.contenders[asked.order.pane_at(place)], voice)


def _prompt(one: Mapping[str, Any], voice: Voice) -> str:
    limit, cut = one["limit"], one["cut_text"]
    key = "prompt_tokens_of" if limit else "prompt_tokens"
    length = voice(key, tokens=f"{one['tokens']:,}", limit=f"{limit or 0:,}")
    over = ""
    if one["cut"]:
        length += " · " + voice("prompt_cut", n=f"{one['cut']:,}")
        over = f"<del>{escape(cut)}</del>"
    shown = f'<pre class="ls-raw">{escape(one["text"].removesuffix(cut))}{over}</pre>'
    return render.quiet(length) + shown
