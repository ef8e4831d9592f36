"""The live view of a run: one HTML component that asks for what is new and draws it itself.

The browser keeps the cursor and the server keeps nothing, so that a reload, a second tab and a
restarted app all show the same. Every function offered to the browser is a public endpoint and
checks its argument.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import RunError
from lora_studio.runs.history import History
from lora_studio.ui import concerns, milestones, numbers
from lora_studio.ui.confusion import confusion
from lora_studio.ui.language import Voice
from lora_studio.ui.render import stage_sentence
from lora_studio.ui.view import view
from lora_studio.ui.visitors import Door

APP = secrets.token_hex(4)
"""Another one after each start of the app, so that an open tab notices."""
MOST_POINTS = 2000
LOG_BYTES = 12_000
PHASES = ("train", "evaluate", "sample", "snapshot", "save")
"""Stages whose time is told apart; all before the first step are one."""
WORDS = (
    "loss", "smoothed", "held_out", "learning_rate", "grad_norm", "step", "raw", "samples", "log",
    "reconnecting", "chart_loss", "chart_rate", "chart_sorting", "accuracy", "verdicts",
    "true_class", "predicted_class", "found_share",
    "best", "early", "retry", "warnings",
)  # fmt: skip


def live_view(door: Door) -> gr.HTML:
    """Build the component; its value is the id of the run it shows, empty for none."""
    return view("live", functions=[_delta(door), _log_tail(door)])


def _delta(door: Door) -> Callable[..., dict[str, Any]]:
    def delta(query: Any, request: gr.Request) -> dict[str, Any]:
        voice = Voice(request)
        history = asked_for(door, query, request)
        if history is None:
            return {"run": "", "app": APP}
        cursor = [_whole(query.get(name)) for name in ("steps", "evals", "samples")]
        if query.get("resumes") != history.rewritten:
            cursor = [0, 0, 0]  # what was seen may have been forgotten since
        said = concerns.shown(door.enter(request), history, voice)
        return news(history, cursor, voice) | said | {"app": APP}

    return delta


def _log_tail(door: Door) -> Callable[..., str]:
    def log_tail(query: Any, request: gr.Request) -> str:
        history = asked_for(door, query, request)
        return tail(history.folder.stdout) if history else ""

    return log_tail


def asked_for(door: Door, query: Any, request: gr.Request) -> History | None:
    """Return the run that a browser asks about; None for what it may not know or is none."""
    run = query.get("run") if isinstance(query, dict) else None
    if not isinstance(run, str) or not run:
        return None
    try:
        return door.enter(request).runs.history(run)
    except RunError:
        return None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**9 else 0


def news(history: History, cursor: Sequence[int], voice: Voice) -> dict[str, Any]:
    """Return what a live view does not have yet.

    Args:
        history: The run.
        cursor: How many steps, evals and samples the view has; a count past the end starts anew.
        voice: The view's language.

    Returns:
        JSON: points after the cursor, the new cursor, and the state in words.
    """
    lists = (history.steps, history.evals, history.samples)
    start = [at if at <= len(items) else 0 for at, items in zip(cursor, lists, strict=True)]
    steps = history.steps[start[0] :]
    if start[0] == 0:
        steps = steps[:: len(steps) // MOST_POINTS + 1]
    answer: dict[str, Any] = {
        "run": history.folder.id,
        "from": start,
        "cursor": [len(items) for items in lists],
        "steps": {
            name: [entry.get(name) for entry in steps]
            for name in ("step", "loss", "learning_rate", "grad_norm")
        },
        "evals": [
            {name: entry.get(name) for name in ("step", "loss", "accuracy")}
            for entry in history.evals[start[1] :]
        ],
        "samples": [
            {name: entry[name] for name in ("step", "prompt", "answer")}
            | {"when": milestones.when(entry["step"], voice)}
            for entry in history.samples[start[2] :]
        ],
        "when": milestones.when(history.step, voice),
        "sorts": bool(history.plan.get("labels")),
        **milestones.marks(history),
        **state(history, voice),
    }
    if len(history.evals) > start[1]:
        answer["confusion"] = confusion(history, voice)
    if not any(start):
        answer["words"] = {word: voice(f"live_{word}") for word in WORDS}
    return answer


def state(history: History, voice: Voice) -> dict[str, Any]:
    """Return where a run stands, in words and as a share of its way."""
    status = history.status
    cause = history.cause
    share = history.step / history.total_steps if history.total_steps else 0.0
    if status == "preparing":
        done, total = history.stage.get("done", 0), history.stage.get("total", 0)
        share = done / total if total else 0.0
    return {
        "status": status,
        "over": history.is_over,
        "state": milestones.told(_sentence(history, voice), history, voice),
        "share": 1.0 if status == "finished" else min(share, 1.0),
        "cause": cause.say(voice.language) if cause else "",
        "tiles": _tiles(history, voice),
        "spent": _spent(history, voice) if history.is_over else "",
    }


def _sentence(history: History, voice: Voice) -> str:
    status, left = history.status, history.newest.get("seconds_left")
    if status == "preparing":
        return stage_sentence(history.stage, voice)
    if status == "stopped":
        if history.ending.get("unqueued"):
            return voice("status_unqueued")
        if history.ending.get("paused"):
            return voice("status_paused", step=history.step)
        kept = history.ending.get("kept", False)
        timed_out = history.ending.get("timed_out", False)
        late = "stopped_time" if kept else "stopped_slow"
        ended = "stopped_kept" if kept else "stopped_empty" if history.cause else "stopped"
        word = late if timed_out else ended
        return voice(f"status_{word}", step=history.step)
    if status == "finished":
        return _result(history, voice)
    if status == "queued" and history.step:
        return voice("status_queued_again")
    words = [voice(f"status_{status}")]
    if status in ("training", "evaluating", "saving") and history.total_steps:
        share = history.step / history.total_steps
        words.append(
            voice(
                "status_step",
                step=f"{history.step:,}",
                total=f"{history.total_steps:,}",
                share=f"{share:.0%}",
            )
        )
    if left is not None and status in ("training", "evaluating"):
        words.append(voice("status_left", time=numbers.duration(left, voice.language)))
    return " · ".join(words)


def _result(history: History, voice: Voice) -> str:
    evals = milestones.until_adapter(history)
    measured = [entry["perplexity"] for entry in evals if entry.get("perplexity")]
    if len(measured) > 1:
        return voice("finished_measured", first=f"{measured[0]:.3g}", last=f"{measured[-1]:.3g}")
    right = [entry["accuracy"] for entry in evals if entry.get("accuracy") is not None]
    if len(right) > 1:
        return voice(
            "finished_sorted", first=numbers.percent(right[0]), last=numbers.percent(right[-1])
        )
    return voice("finished")


def _tiles(history: History, voice: Voice) -> list[list[str]]:
    """Return label and value of each tile."""
    tiles: list[list[str]] = []
    if history.steps:
        last = history.newest
        loss = last["loss"]
        tiles.append([voice("live_loss"), "–" if loss is None else f"{loss:.3f}"])
    if history.evals:
        tiles += _measured(history.evals[-1], voice)
        tiles += milestones.tiles(history, voice)
    if history.steps:
        tiles += [
            [voice("live_step"), f"{history.step:,} / {history.total_steps:,}"],
            [voice("tile_rate"), f"{last['tokens_per_s']:,.0f}"],
            [voice("tile_memory"), numbers.size(last["memory_bytes"])],
        ]
    if history.first_time:
        stands = history.is_over or history.status == "queued"
        until = history.last_time if stands else time.time()
        spent = (until or history.first_time) - history.first_time - history.away_s
        tiles.append([voice("tile_elapsed"), numbers.duration(spent, voice.language)])
    if history.steps and history.status in ("training", "evaluating"):
        left = numbers.duration(last["seconds_left"], voice.language)
        tiles.append([voice("tile_left"), left])
    return tiles


def _spent(history: History, voice: Voice) -> str:
    """Return how long each phase of a run took, in words; of one phase the tile tells."""
    spent = {name: history.seconds.get(name, 0.0) for name in PHASES}
    spent = {"prepare": sum(history.seconds.values()) - sum(spent.values())} | spent
    parts = [
        voice(f"spent_{name}", time=numbers.duration(seconds, voice.language))
        for name, seconds in spent.items()
        if seconds >= 1
    ]
    return " · ".join(parts) if len(parts) > 1 else ""


def _measured(entry: Mapping[str, Any], voice: Voice) -> list[list[str]]:
    """Return the tiles of an evaluation: loss, and where texts are sorted accuracy and F1."""
    tiles: list[list[str]] = []
    if entry["loss"] is not None:
        tiles.append([voice("live_held_out"), f"{entry['loss']:.3f}"])
    if entry.get("accuracy") is not None:
        tiles.append([voice("live_accuracy"), numbers.percent(entry["accuracy"])])
    if entry.get("f1") is not None:
        tiles.append([voice("tile_f1"), f"{entry['f1']:.3f}"])
    return tiles


def tail(file: Path) -> str:
    """Return the last lines of a log file."""
    try:
        with file.open("rb") as source:
            source.seek(0, 2)
            source.seek(max(source.tell() - LOG_BYTES, 0))
            return source.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
