"""The panes of the comparison: who answers in each, and where the answers stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from lora_studio.chat.request import MOST_PANES, Message
from lora_studio.errors import StudioError
from lora_studio.judging.blind import letter
from lora_studio.judging.contenders import BASE as CONTENDER_BASE
from lora_studio.judging.contenders import Contender
from lora_studio.ui import numbers
from lora_studio.ui.controls import dropdown, slider
from lora_studio.ui.conversation import ANSWER, Conversation
from lora_studio.ui.language import Voice, text

BASE, MIXTURE = "base", "mixture"
FEWEST, MOST_MIXED = 2, 3
STRENGTH_STEP = 0.05
LATEX: list[dict[str, str | bool]] = []


@dataclass(frozen=True, slots=True)
class Choice:
    """The controls that say who answers in a pane."""

    who: gr.Dropdown
    strength: gr.Slider
    mixed: gr.Dropdown
    weights: list[gr.Slider]

    @property
    def controls(self) -> list[Any]:
        """All of them, in the order in which `contender_of` takes their values."""
        return [self.who, self.strength, self.mixed, *self.weights]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a dropdown offers, as titles and values, and what it has chosen at first."""

    choices: list[tuple[str, str]]
    first: Any

    def afresh(self) -> gr.Dropdown:
        """Return the dropdown as it is at first."""
        return gr.Dropdown(choices=self.choices, value=self.first)

    def kept(self, chosen: Any) -> dict[str, Any]:
        """Return the dropdown as it is; of what is chosen, that goes which is no longer offered."""
        known = [value for _, value in self.choices]
        if isinstance(chosen, list):
            stays: Any = [one for one in chosen if one in known]
        else:
            stays = chosen if chosen is None or chosen in known else self.first
        # A value that is set, even the same, could undo one that was chosen a moment ago.
        changed = {} if stays == chosen else {"value": stays}
        return gr.update(choices=self.choices, **changed)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one answer is shown."""

    column: gr.Column
    title: gr.HTML
    chat: gr.Chatbot
    rate: gr.HTML
    difference: gr.HTML


class Panes:
    """Builds up to four panes; each has its own choice above the place of an answer."""

    def __init__(self) -> None:
        self.named: list[gr.Column] = []
        """What says who answers, two columns a pane; hidden while names are."""
        self.choices: list[Choice] = []
        self.places: list[Place] = []
        with gr.Row(elem_id="panes", equal_height=False):
            for number in range(MOST_PANES):
                with gr.Column(
                    min_width=280, visible=number < FEWEST, elem_id=f"pane-{number}"
                ) as column:
                    with gr.Column(elem_classes="ls-who") as above:
                        who = _who(number)
                    self.places.append(_place(number, column))
                    with gr.Column(elem_classes="ls-who") as below:
                        self.choices.append(_choice(number, who))
                    self.named += [above, below]

    @property
    def controls(self) -> list[Any]:
        """Every control of every choice."""
        return [control for choice in self.choices for control in choice.controls]

    @property
    def chats(self) -> list[gr.Chatbot]:
        """Where the conversations are shown."""
        return [place.chat for place in self.places]

    @property
    def texts(self) -> list[Any]:
        """What `shown` fills: titles, chats, rates, by place."""
        return [
            *(place.title for place in self.places),
            *self.chats,
            *(place.rate for place in self.places),
        ]

    @property
    def differences(self) -> list[gr.HTML]:
        """Where it is shown how the answers differ."""
        return [place.difference for place in self.places]


def _who(number: int) -> gr.Dropdown:
    return dropdown(
        [(text("base_side"), BASE)], value=BASE if number == 0 else None, label=text("pane_who"),
        elem_id=f"pane-{number}-who",
    )  # fmt: skip


def _choice(number: int, who: gr.Dropdown) -> Choice:
    strength = slider(
        0, 2, value=1, step=STRENGTH_STEP, label=text("strength"), info=text("strength_why"),
        visible=False, elem_id=f"pane-{number}-strength",
    )  # fmt: skip
    mixed = dropdown(
        [], value=[], label=text("mixed"), info=text("mixed_why"), multiselect=True,
        max_choices=MOST_MIXED, visible=False, elem_id=f"pane-{number}-mixed",
    )  # fmt: skip
    weights = [
        slider(
            0, 2, value=0.5, step=STRENGTH_STEP, label=text("weight"), visible=False,
            elem_id=f"pane-{number}-weight-{place}",
        )
        for place in range(MOST_MIXED)
    ]  # fmt: skip
    return Choice(who, strength, mixed, weights)


def _place(number: int, column: gr.Column) -> Place:
    strip = _strip(kind="base" if number == 0 else "learned")
    title = gr.HTML(strip, elem_id=f"pane-{number}-title", padding=False)
    chat = gr.Chatbot(
        show_label=False, elem_id=f"pane-{number}-chat", height=420, buttons=["copy", "copy_all"],
        latex_delimiters=LATEX, allow_tags=False, editable="user",
        placeholder=text("pane_waits"),
    )  # fmt: skip
    rate = gr.HTML(elem_id=f"pane-{number}-rate", elem_classes="ls-rate", padding=False)
    difference = gr.HTML(elem_id=f"pane-{number}-difference", padding=False)
    return Place(column, title, chat, rate, difference)


def contenders_of(count: int, values: Sequence[Any]) -> list[Contender]:
    """Return who is to answer, from the number of panes and the values of `Panes.controls`.

    Raises:
        StudioError: If a pane has nobody, a mixture nothing, or a value is no number.
    """
    size = 3 + MOST_MIXED
    parts = [values[at : at + size] for at in range(0, size * MOST_PANES, size)]
    return [contender_of(number, part) for number, part in enumerate(parts[:count], 1)]


def contender_of(number: int, values: Sequence[Any]) -> Contender:
    """Return who is to answer in one pane.

    Raises:
        StudioError: As `contenders_of`.
    """
    who, strength, mixed, *weights = values
    if not who:
        raise StudioError("page.pane_empty", number=number)
    if who == BASE:
        return Contender.of()
    try:
        if who == MIXTURE:
            names = [str(name) for name in mixed or ()][:MOST_MIXED]
            if len(names) < 2:
                raise StudioError("page.mixture_empty", number=number)
            chosen = zip(names, weights, strict=False)
            return Contender.of(mixture={name: float(weight) for name, weight in chosen})
        return Contender.of(str(who), float(strength))
    except (TypeError, ValueError, OverflowError) as error:
        raise StudioError("page.strength_no_number", number=number) from error


def shown_controls(who: Any, mixed: Any) -> list[Any]:
    """Return which controls a choice needs: strength, mixture, weights."""
    is_mixture = who == MIXTURE
    names = [str(name) for name in mixed or ()][:MOST_MIXED] if is_mixture else []
    return [
        gr.Slider(visible=bool(who) and who not in (BASE, MIXTURE)),
        gr.Dropdown(visible=is_mixture),
        *(
            gr.Slider(visible=True, label=names[place])
            if place < len(names)
            else gr.Slider(visible=False)
            for place in range(MOST_MIXED)
        ),
    ]


def unasked(who: Sequence[Any], *, is_blind: bool) -> list[str]:
    """Return what stands above each pane before anybody has answered in it."""
    if is_blind:
        return [_strip(letter(place)) for place in range(len(who))]
    return [_strip(kind="base" if one == BASE else "learned") for one in who]


def shown(conversation: Conversation, voice: Voice) -> list[Any]:
    """Return what `Panes.texts` show of a conversation."""
    order = conversation.order.order
    empty = MOST_PANES - len(order)
    titles = titles_of(conversation, voice)
    chats = [_messages(conversation, pane, voice) for pane in order]
    hidden = conversation.names_are_hidden
    rates = ["" if hidden else _rate(conversation, pane, voice) for pane in order]
    return [*titles, *chats, *[[]] * empty, *rates, *[""] * empty]


def titles_of(conversation: Conversation, voice: Voice) -> list[Any]:
    """Return what stands above each answer; a pane that nobody is asked in is left as it is."""
    places = range(len(conversation.order.order))
    titles = [_title(conversation, place, voice) for place in places]
    return [*titles, *[gr.skip()] * (MOST_PANES - len(titles))]


def _messages(conversation: Conversation, pane: int, voice: Voice) -> list[Message]:
    """Return a pane's turns; an answer that is awaited is left out, one without words is told."""
    *before, _ = conversation.turns[pane]
    answer = conversation.said(pane)
    if not answer:
        if conversation.is_held_back or conversation.ends[pane] is None:
            return before
        answer = f"*{voice('answer_empty')}*"
    return [*before, {"role": ANSWER, "content": answer}]


def name_of(contender: Contender, voice: Voice) -> str:
    """Return how a contender is called on the page."""
    if contender.mixture:
        return " + ".join(f"{weight:g} × {name}" for name, weight in contender.mixture)
    if contender.adapter is None:
        return voice("base_side")
    if contender.strength == 1:
        return contender.adapter
    return f"{contender.adapter} × {contender.strength:g}"


def _title(conversation: Conversation, place: int, voice: Voice) -> str:
    """Return the strip above an answer: whose it is, or its letter where names are hidden."""
    if conversation.names_are_hidden:
        return _strip(letter(place))
    contender = conversation.contenders[conversation.order.pane_at(place)]
    name = name_of(contender, voice)
    if conversation.is_blind:
        name = voice("blind_was", letter=letter(place), name=name)
    return _strip(name, kind="base" if contender.key == CONTENDER_BASE else "learned")


def _strip(name: str = "", kind: str = "") -> str:
    return f'<div class="ls-pane {kind}">{escape(name)}</div>'


def _rate(conversation: Conversation, pane: int, voice: Voice) -> str:
    """Return how quick an answer was, as far as that is known yet."""
    end, first_s = conversation.ends[pane], conversation.firsts[pane]
    if end is None:
        return "" if first_s is None else voice("rate_first", first=f"{first_s:.2f}")
    return voice(
        f"rate_{end['reason']}",
        rate=f"{end['tokens_per_s']:.1f}",
        tokens=end["tokens"],
        time=numbers.duration(end["seconds"], voice.language),
        first="–" if end["first_s"] is None else f"{end['first_s']:.2f}",
    )
