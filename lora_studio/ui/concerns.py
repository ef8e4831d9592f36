"""What the watchdogs say of a run, and what a failed one can be tried again with in one click."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lora_studio.errors import RunError, StudioError
from lora_studio.runs.history import History
from lora_studio.studio import Studio
from lora_studio.training.remedies import Remedy
from lora_studio.ui import numbers
from lora_studio.ui.language import Voice

MOST_SAID = 4
"""The latest ones; all of them are in the events file."""


def shown(studio: Studio, history: History, voice: Voice) -> dict[str, list[str]]:
    """Return the sentences of the watchdogs, and the labels of the buttons that would mend it."""
    said = [concern.say(voice.language) for concern in history.concerns[-MOST_SAID:]]
    retry = [label(remedy, voice) for remedy in _offered(studio, history)]
    return {"concerns": said, "retry": retry}


def _offered(studio: Studio, history: History) -> list[Remedy]:
    """Return what an ended run can be tried again with; nothing where its recipe is unreadable."""
    if not history.is_over or studio.runs.is_recorded(history.folder):
        return []
    try:
        return studio.retrying.remedies(history.folder.id)
    except StudioError:
        return []


def label(remedy: Remedy, voice: Voice) -> str:
    """Return a button's words: what is changed, and what that saves."""
    return voice(
        f"fix_{remedy['kind']}",
        old=remedy["old"],
        new=remedy["new"],
        saved=numbers.size(remedy["saved"]),
    )


def retried(studio: Studio, event: Any) -> str | None:
    """Start the run of a button that was clicked; return its id, None if it was no button.

    Args:
        studio: Whose run.
        event: A `gr.EventData` with `run` and the button's number as `remedy`; it comes from a
            browser, so that it names one of the run's own remedies or nothing.

    Raises:
        StudioError: If there is no such remedy, and as `Studio.retry`.
    """
    run, number = getattr(event, "run", None), getattr(event, "remedy", None)
    if not isinstance(run, str) or not isinstance(number, int):
        return None
    remedies = studio.retrying.remedies(run)
    if not 0 <= number < len(remedies):
        raise RunError("run.no_remedy", run=run)
    return studio.retrying.retry(run, remedies[number]["changes"])


def say_place(studio: Studio, run: str, voice: Voice) -> None:
    """Tell that a run has to wait for its turn, unless that has just come."""
    waiting = studio.line.waiting()
    if run in waiting:
        gr.Info(voice("queue_joined", run=run, place=waiting.index(run) + 1))
