"""A run's progress in a terminal or a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from lora_studio.runs.history import History
from lora_studio.studio import Studio
from lora_studio.wording import say

LOOK_EVERY_S = 0.3
PREPARING = "{desc}: {percentage:3.0f}%|{bar}|"
"""Before the first step: what is counted is bytes, or rows of which all is an estimate."""


def follow(studio: Studio, run: str) -> History:
    """Show a run's progress until it is over; a log file gets a line where something changed."""
    history, shown = studio.runs.history(run), None
    said = 0
    with tqdm(unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        while True:
            is_over = history.is_over  # the last events may come in with this look
            now = (history.status, history.step, history.stage)
            if now != shown or sys.stderr.isatty():
                _draw(bar, history)
                shown = now
            said = _print_concerns(history, said)
            if is_over:
                return history
            time.sleep(LOOK_EVERY_S)
            history.update()


def print_remedies(studio: Studio, run: str) -> None:
    """Print what a run that failed can be tried again with."""
    for remedy in studio.retrying.remedies(run):
        settings = " ".join(f"--set {change}" for change in remedy["changes"])
        print(say("cli.retry_with", run=run, settings=settings), file=sys.stderr)


def _print_concerns(history: History, said: int) -> int:
    """Print what the watchdogs say beyond so many sentences; return how many there are."""
    concerns = history.concerns
    for concern in concerns[said:]:
        tqdm.write(str(concern), file=sys.stderr)
    return len(concerns)


def _draw(bar: tqdm[Any], history: History) -> None:
    if not history.total_steps:
        stage = history.stage
        bar.total, bar.n = stage.get("total") or None, stage.get("done", 0)
        bar.bar_format = PREPARING if bar.total else "{desc}"
        bar.set_description_str(say(f"page.stage_{stage.get('stage', 'start')}"))
        return
    bar.total, bar.n, bar.bar_format = history.total_steps, history.step, None
    bar.set_description_str(history.status, refresh=False)
    last = history.newest
    if last and last["loss"] is not None:
        rate = f"loss {last['loss']:.3f}, {last['tokens_per_s']:.0f} tokens/s"
        bar.set_postfix_str(rate, refresh=False)
    bar.refresh()
