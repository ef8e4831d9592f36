"""What went wrong in a worker, as a sentence: every third-party exception is translated here."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from lora_studio.errors import ModelError, RunError, StudioError
from lora_studio.files import is_disk_full
from lora_studio.recipe import Recipe
from lora_studio.training.remedies import Remedy

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cuda error: out")
ASKED_FOR = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]i?B)")
"""How torch (CPU, CUDA, MPS) and NumPy say what did not fit."""
UNITS = {
    "bytes": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
PHASES = ("load", "initialise", "train", "evaluate", "sample", "save")
"""Stages of a run in which memory runs out, each with a sentence of its own."""


class Phased(Protocol):
    """Whoever knows how far a run has come."""

    def out_of_memory(self, error: BaseException) -> RunError:
        """Return what to say of memory that ran out now."""


Who = TypeVar("Who", bound=Phased)
Given = ParamSpec("Given")
Result = TypeVar("Result")


def telling_of_memory(
    work: Callable[Concatenate[Who, Given], Result],
) -> Callable[Concatenate[Who, Given], Result]:
    """Have a method say of memory that runs out in it what its object makes of it."""

    @functools.wraps(work)
    def told(who: Who, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return work(who, *args, **kwargs)
        except (RuntimeError, MemoryError, ModelError) as error:
            if not is_out_of_memory(error):
                raise
            raise who.out_of_memory(error) from error

    return told


def explain(error: BaseException, recipe: Recipe) -> StudioError:
    """Return the error to show for an exception that ended a run."""
    if isinstance(error, StudioError):
        return error
    if is_out_of_memory(error):
        return out_of_memory(error, recipe)
    if is_disk_full(error):
        return RunError("training.disk_full")
    return RunError("training.unexpected", kind=type(error).__name__, cause=_first_line(error))


def out_of_memory(
    error: BaseException,
    recipe: Recipe,
    *,
    phase: str = "",
    step: int = 0,
    remedies: Sequence[Remedy] = (),
) -> RunError:
    """Return what to say of memory that ran out.

    Args:
        error: The library's word.
        recipe: What was being trained.
        phase: The stage it happened in; any that is not of `PHASES` goes unnamed.
        step: The optimizer step it happened in.
        remedies: What to try again with.
    """
    key = f"training.out_of_memory_{phase}" if phase in PHASES else "training.out_of_memory"
    return RunError(
        key,
        asked=asked_for(error),
        step=step,
        batch=recipe.training.per_device_train_batch_size,
        length=recipe.data.max_length,
        r=recipe.adapter.r,
        remedies=list(remedies),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the device or in the machine."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY))
        or getattr(error, "key", "") == "model.out_of_memory"
    )


def asked_for(error: BaseException) -> str:
    """Return how much memory was asked for in vain, as in `2.1 GB`; a dash where nobody says."""
    found = ASKED_FOR.search(str(error)) or ASKED_FOR.search(str(error.__cause__))
    if found is None:
        return "–"
    size = float(found[1]) * UNITS[found[2]]
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
