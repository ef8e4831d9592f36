"""What the comparison's controls say, and what comes of it: a question on its way to the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lora_studio.chat.request import MOST_PANES, Pane, Sampling, seed_apart
from lora_studio.errors import StudioError
from lora_studio.judging.contenders import Contender, Loaded
from lora_studio.judging.prompts import LONGEST_CHARACTERS
from lora_studio.studio import Studio
from lora_studio.ui import render
from lora_studio.ui.compare_panes import FEWEST, contenders_of
from lora_studio.ui.conversation import Conversation
from lora_studio.ui.language import Voice
from lora_studio.wording import say

PANE_EVERY_S = 1 / 8
"""Two panes are drawn four times a second: on two cores, browser and model share what there is.

The starter model wrote 9 tokens/s beside twelve drawings a second, 16 beside six, 20 beside three
(`python -m benchmarks.drawing`).
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """Who is to answer, and how."""

    name: str
    """The adapter whose base is loaded."""
    base: str
    """Source of that."""
    contenders: tuple[Contender, ...]
    loaded: Loaded
    """What stands behind their names now."""
    is_blind: bool
    as_text: bool
    system: str
    sampling: Sampling
    apart: bool
    """Whether each pane has a seed of its own."""

    @classmethod
    def read(cls, studio: Studio, values: Sequence[Any]) -> Terms:
        """Read the values of `CompareTab.controls`.

        Raises:
            StudioError: If a value is no good, or the adapter is gone.
        """
        run, count, blind, mode, system, *rest = values
        *sampled, apart = rest[:5]
        if not run:
            raise StudioError("page.no_runs_yet")
        as_text = mode == "text"
        contenders = contenders_of(pane_count(count), rest[5:])
        return cls(
            name=str(run),
            base=studio.adapters.resolve(str(run)).source,
            contenders=tuple(contenders),
            loaded=studio.judging.loaded(str(run), contenders),
            is_blind=bool(blind),
            as_text=as_text,
            system="" if as_text else str(system or ""),
            sampling=sampling_of(*sampled),
            apart=bool(apart),
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of the engine, and the conversation that takes in what it says."""

    conversation: Conversation
    name: str
    panes: list[Pane]
    numbers: list[int]
    """Which of the conversation's panes these are."""
    sampling: Sampling

    def streamed(self, studio: Studio, voice: Voice, asker: str) -> Generator[str]:
        """Take in the answers; yield a note at the pace of `PANE_EVERY_S`, and at the end.

        Raises:
            StudioError: As `Answers.ask`.
        """
        note, due = "", 0.0
        for event in studio.answers.ask(self.name, self.panes, self.sampling, asker=asker):
            note = self._take(event, note, voice)
            if time.monotonic() >= due:
                due = time.monotonic() + PANE_EVERY_S * len(self.conversation.contenders)
                yield _unseen(self.conversation, voice) or note
        yield "" if self.conversation.is_held_back else note

    def _take(self, event: dict[str, Any], note: str, voice: Voice) -> str:
        """Take in an event; return what is to be noted from now on."""
        conversation = self.conversation
        if "pane" in event:
            conversation.take(self.numbers[event["pane"]], event)
        elif "mode" in event:
            conversation.one_by_one = event["mode"] == "sequential"
            note = "" if conversation.names_are_hidden else note_of(event, voice)
        else:
            note = note_of(event, voice)
        return note


def _unseen(conversation: Conversation, voice: Voice) -> str:
    """Return how many answers are there that are not shown yet; nothing where all are shown."""
    if not conversation.is_held_back:
        return ""
    total = len(conversation.ends)
    done = total - conversation.ends.count(None)
    return render.busy(voice("blind_waits", done=done, total=total), done / total)


Wish = Callable[[Conversation, Terms], Asked]
"""Makes of what was said and the terms of now what is to be asked; what was said stays as it is."""


def asking(question: Any, number: int | None = None) -> Wish:
    """Wish for answers to a question: to the next one, or in place of an earlier one.

    The wish raises StudioError if the question is empty or too long.
    """

    def ask(before: Conversation, terms: Terms) -> Asked:
        asked = str(question or "")
        if not asked.strip():
            raise StudioError("page.ask_first")
        if len(asked) > LONGEST_CHARACTERS:
            raise StudioError("page.ask_shorter", most=f"{LONGEST_CHARACTERS:,}")
        if number is not None and not 0 <= number < before.questions:
            raise StudioError("page.again_nothing")
        place = before.next_number if number is None else number
        return _asked(before, terms, asked if terms.as_text else asked.strip(), place)

    return ask


def again(before: Conversation, terms: Terms) -> Asked:
    """Wish for other answers to the last question, under the next seed.

    Raises:
        StudioError: If there is none, or the answers would be the same.
    """
    if not before.questions:
        raise StudioError("page.again_nothing")
    if _stays(before, terms):
        raise StudioError("page.again_same")
    sampling = replace(terms.sampling, seed=seed_apart(before.seed, 1))
    return _asked(before, replace(terms, sampling=sampling), before.question, before.questions - 1)


def going_on(studio: Studio) -> Wish:
    """Wish for the rest of answers that were cut short, of those who began them and as they did.

    The wish raises StudioError if there are none, or if other weights would go on with them.
    """

    def go_on(before: Conversation, terms: Terms) -> Asked:
        conversation = before.copy()
        going = conversation.go_on()
        if not going:
            raise StudioError("page.go_on_nothing")
        now = studio.judging.loaded(terms.name, before.contenders)
        if changed := before.loaded.changed(now):
            raise StudioError("page.go_on_changed", changed=changed)
        tokens = terms.sampling.max_new_tokens
        sampling = replace(Sampling(**conversation.sampling), max_new_tokens=tokens)
        conversation.sampling = asdict(sampling)
        panes = conversation.panes(goes_on=going)
        return Asked(conversation, terms.name, panes, going, sampling)

    return go_on


def _asked(before: Conversation, terms: Terms, question: str, number: int) -> Asked:
    """Ask a question in place of one, or as the next; other terms may begin anew with it."""
    conversation = before.copy()
    if conversation.begins_anew(terms.contenders, terms.base, is_blind=terms.is_blind):
        conversation.begin(terms.contenders, terms.base, is_blind=terms.is_blind)
    conversation.as_text, conversation.system = terms.as_text, terms.system
    conversation.seed, conversation.sampling = terms.sampling.seed, asdict(terms.sampling)
    conversation.loaded, conversation.apart = terms.loaded, terms.apart
    conversation.edit(number, question)
    panes = conversation.panes()
    return Asked(conversation, terms.name, panes, list(range(len(panes))), terms.sampling)


def _stays(before: Conversation, terms: Terms) -> bool:
    """Return whether the last question would be answered word for word as it was."""
    sampling = asdict(terms.sampling)
    was = (before.contenders, before.base, before.loaded, before.as_text, before.system)
    return (
        terms.sampling.greedy
        and not before.is_broken_off
        and was == (terms.contenders, terms.base, terms.loaded, terms.as_text, terms.system)
        and all(before.sampling[key] == sampling[key] for key in ("greedy", "max_new_tokens"))
    )


def sampling_of(temperature: Any, top_p: Any, tokens: Any, seed: Any) -> Sampling:
    """Return how to pick tokens from the controls' values; temperature 0 is greedy.

    Raises:
        StudioError: If a value is no number or out of range.
    """
    try:
        return Sampling(
            greedy=not temperature,
            temperature=float(temperature or 1),
            top_p=float(top_p),
            max_new_tokens=int(tokens),
            seed=int(seed or 0),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise StudioError("page.not_numbers") from error


def note_of(event: dict[str, Any], voice: Voice) -> str:
    """Return what an event says besides answers: what is loaded, who is before, how it is done."""
    if "stage" in event or "place" in event:
        return render.waiting(event, voice)
    if event.get("mode") == "sequential":
        reason = say(event["reason"], voice.language, name=event.get("adapter", ""))
        return render.note(reason, "warn")
    return ""


def pane_count(value: Any) -> int:
    """Return how many panes are wanted."""
    return int(value) if str(value) in {str(n) for n in range(FEWEST, MOST_PANES + 1)} else FEWEST
