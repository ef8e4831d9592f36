"""What marks a run's way: its best measurement, an early end, a checkpoint to go on from."""

from __future__ import annotations

from typing import Any

from lora_studio.runs.history import History
from lora_studio.ui.language import Voice


def when(step: int, voice: Voice) -> str:
    """Return which step something is of; what a run starts from is said to be before it."""
    return voice("live_at_step", step=step) if step else voice("live_before")


def marks(history: History) -> dict[str, Any]:
    """Return what the chart marks: step and loss of the best, and the step of an early end.

    With them how often the run was resumed: then what was drawn may have been forgotten.
    """
    best = history.best
    return {
        "best": [best["step"], best["loss"]] if best else None,
        "early": history.early.get("step"),
        "resumes": history.rewritten,
    }


def tiles(history: History, voice: Voice) -> list[list[str]]:
    """Return label and value of the best measurement, once there are two to choose from."""
    best = history.best
    if best is None or len(history.evals) < 3:
        return []
    at = voice("best_at", loss=f"{best['loss']:.3f}", step=f"{best['step']:,}")
    return [[voice("tile_best"), at]]


def until_adapter(history: History) -> list[dict[str, Any]]:
    """Return the evaluations up to the one of the weights that became the adapter."""
    last = history.saved.get("best_step") or history.step
    return [entry for entry in history.evals if entry["step"] <= last]


def told(sentence: str, history: History, voice: Voice) -> str:
    """Return how a run stands, and what else there is to know once it is over."""
    if not history.is_over:
        return sentence
    said = []
    if history.early:
        said.append(voice("ended_early", step=history.early["step"]))
    if history.saved.get("best_step"):
        said.append(voice("adapter_of_best", step=history.saved["best_step"]))
    if history.resumable is not None and not history.ending.get("paused"):
        said.append(voice("resume_offer", step=history.resumable))
    if not said:
        return sentence
    return (" " if sentence.endswith(".") else " · ").join([sentence, " ".join(said)])
